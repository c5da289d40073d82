"""Herd: raise, measure and serve Llama-4-class models. `herd.load(folder)` opens any model folder."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from herd.engine.load import Model, load

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # Torch takes a second to import; `herd --help` must not pay for it.
    if name in {"load", "Model"}:
        from herd.engine import load as module

        return getattr(module, name)
    raise AttributeError(f"module 'herd' has no attribute {name!r}")
