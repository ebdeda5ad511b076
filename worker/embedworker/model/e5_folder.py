"""Writer of an E5S1 file as an ordinary sentence-transformers folder in float32."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import Unigram
from tokenizers.processors import TemplateProcessing

from embedworker.model.e5_file import E5File

__all__ = ["write_folder"]

Array = npt.NDArray[np.float32]

# Our layer names and the names BertModel gives the same weights.
_LAYER: Final = (
    ("q", "attention.self.query"),
    ("k", "attention.self.key"),
    ("v", "attention.self.value"),
    ("ao", "attention.output.dense"),
    ("aln", "attention.output.LayerNorm"),
    ("fi", "intermediate.dense"),
    ("fo", "output.dense"),
    ("oln", "output.LayerNorm"),
)


def write_folder(source: E5File, folder: Path, progress: Callable[[int, int], None]) -> None:
    """Write weights, tokeniser and configuration; ``progress`` counts tensors."""
    # BertModel has a pooler that mean pooling never reads; without these zeros transformers would
    # report its weights as missing at every start.
    weights = {
        "pooler.dense.weight": np.zeros((source.hidden, source.hidden), np.float32),
        "pooler.dense.bias": np.zeros(source.hidden, np.float32),
    }
    total = len(source.tensors) + 1  # the last step is the writing itself
    for done, (name, array) in enumerate(_weights(source)):
        progress(done, total)
        weights[name] = array
    progress(total - 1, total)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _tokenizer(source).save(str(folder / "tokenizer.json"))
    for name, content in _configuration(source).items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    progress(total, total)


def _weights(source: E5File) -> Iterator[tuple[str, Array]]:
    hidden, wide = source.hidden, source.feed_forward
    shapes = {
        "ao": (hidden, hidden),
        "fi": (wide, hidden),
        "fo": (hidden, wide),
        "k": (hidden, hidden),
        "q": (hidden, hidden),
        "v": (hidden, hidden),
    }
    for ours, theirs, rows in (
        ("word", "word_embeddings", source.vocabulary),
        ("pos", "position_embeddings", source.positions),
        ("type", "token_type_embeddings", source.token_types),
    ):
        yield f"embeddings.{theirs}.weight", source.tensor(f"emb.{ours}", (rows, hidden))
    for part, name in (("w", "weight"), ("b", "bias")):
        yield f"embeddings.LayerNorm.{name}", source.tensor(f"emb.ln.{part}", (hidden,))
    for layer in range(source.layers):
        for ours, theirs in _LAYER:
            shape = shapes.get(ours, (hidden,))  # the rest are the two layer norms
            prefix = f"encoder.layer.{layer}.{theirs}"
            yield f"{prefix}.weight", source.tensor(f"l{layer}.{ours}.w", shape)
            yield f"{prefix}.bias", source.tensor(f"l{layer}.{ours}.b", shape[:1])


def _tokenizer(source: E5File) -> Tokenizer:
    """XLM-R's tokeniser. Nmt, NFKC and joining spaces give what its own character map gives."""
    tokenizer = Tokenizer(Unigram(list(source.pieces), unk_id=source.unk, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    bos, eos = source.pieces[source.bos][0], source.pieces[source.eos][0]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} {eos} $B {eos}",
        special_tokens=[(bos, source.bos), (eos, source.eos)],
    )
    tokenizer.add_special_tokens(
        [AddedToken(piece, special=True, normalized=False) for piece in _special(source).values()]
    )
    return tokenizer


def _special(source: E5File) -> dict[str, str]:
    pieces = source.pieces
    return {
        "bos_token": pieces[source.bos][0],
        "cls_token": pieces[source.bos][0],
        "eos_token": pieces[source.eos][0],
        "sep_token": pieces[source.eos][0],
        "pad_token": pieces[source.pad][0],
        "unk_token": pieces[source.unk][0],
        "mask_token": pieces[-1][0],
    }


def _configuration(source: E5File) -> dict[str, Any]:
    """Return the small files of the folder, by name."""
    module = "sentence_transformers.models"
    return {
        "config.json": {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "attention_probs_dropout_prob": 0.1,
            "bos_token_id": source.bos,
            "dtype": "float32",
            "eos_token_id": source.eos,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "hidden_size": source.hidden,
            "initializer_range": 0.02,
            "intermediate_size": source.feed_forward,
            "layer_norm_eps": source.epsilon,
            "max_position_embeddings": source.positions,
            "num_attention_heads": source.heads,
            "num_hidden_layers": source.layers,
            "pad_token_id": source.pad,
            "type_vocab_size": source.token_types,
            "vocab_size": source.vocabulary,
        },
        "tokenizer_config.json": {
            **_special(source),
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": source.positions,
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
        },
        "special_tokens_map.json": _special(source),
        # The module names of sentence-transformers before version 6, which 6 still reads: other
        # programs that use this folder may have an older one.
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": f"{module}.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{module}.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{module}.Normalize"},
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": source.hidden,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
        "sentence_bert_config.json": {
            "max_seq_length": source.positions,
            "do_lower_case": False,
        },
        # No prompts: this package adds the prefixes itself, and a default prompt would double them.
        "config_sentence_transformers.json": {
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }
