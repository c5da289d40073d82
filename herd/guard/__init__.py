"""What is unsafe, who finds it, and how well: guards of messages, of prompts and of code, red team, balance."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from herd.guard.prompt_guard.guard import PromptGuard

__all__ = ["PromptGuard"]


def __getattr__(name: str) -> Any:
    # Torch takes a second to import; what needs only the taxonomy must not pay for it.
    if name == "PromptGuard":
        return import_module("herd.guard.prompt_guard.guard").PromptGuard
    raise AttributeError(f"module 'herd.guard' has no attribute {name!r}")
