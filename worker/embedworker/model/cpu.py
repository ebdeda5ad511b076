"""How much of the processor this process may use, and whether it knows bfloat16."""

import os
from typing import Final

from embedworker.machine import cpu_quota

__all__ = ["cpu_quota", "has_bfloat16", "set_threads"]

# Instruction sets that multiply bfloat16 natively; anywhere else it is emulated and slow.
BFLOAT16_CAPABILITIES: Final = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
# oneDNN multiplies for torch and OpenVINO. It uses no newer instructions than these variables allow
# (oneDNN developer guide, "CPU Dispatcher Control"). Up to these levels it has no bfloat16.
ONEDNN_LIMITS: Final = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
WITHOUT_BFLOAT16: Final = frozenset(
    ["SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"]
)


def set_threads(count: int) -> None:
    """Let torch use ``count`` threads in the calling thread; other threads keep their own number.

    torch runs on OpenMP, whose setting belongs to a thread: call this inside each lane's thread.
    """
    import torch

    torch.set_num_threads(count)


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 natively, and oneDNN may use it."""
    import torch

    limits = [os.environ.get(name, "").upper() for name in ONEDNN_LIMITS]
    if not WITHOUT_BFLOAT16.isdisjoint(limits):
        return False

    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in BFLOAT16_CAPABILITIES)
