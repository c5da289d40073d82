"""Herd: raise, measure and serve Llama-4-class models. `herd.load(folder)` opens any model folder."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from herd.engine.conversation import Conversation
    from herd.engine.load import Model, load
    from herd.engine.reply import Reply
    from herd.engine.sampler import SamplingParams

__version__ = "0.1.0"
__all__ = ["Conversation", "Model", "Reply", "SamplingParams", "__version__", "load"]

_PLACES = {
    "Conversation": "herd.engine.conversation",
    "Model": "herd.engine.load",
    "Reply": "herd.engine.reply",
    "SamplingParams": "herd.engine.sampler",
    "load": "herd.engine.load",
}


def __getattr__(name: str) -> Any:
    # Torch takes a second to import; `herd --help` must not pay for it.
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'herd' has no attribute {name!r}")
