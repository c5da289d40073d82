"""What a line of `herd --help` is, and how it finds its code without importing it before it is called."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any


def named(place: str) -> Any:
    """The object at `module:name`, imported now and not before."""
    module, name = place.split(":")
    return getattr(import_module(module), name)


@dataclass(frozen=True, kw_only=True)
class Command:
    """A line of `herd --help`."""

    summary: str
    example: str
    does: Callable[..., None]
    """A function whose signature is the usage; or one that takes what was parsed by `usage`."""
    usage: Callable[[Sequence[str]], Any] | None = None
    """Makes the type that tyro parses, from the arguments, where it depends on them: a recipe's settings."""
    place: str = ""
    """The stage whose settings its options are, for those that were renamed; else the command's own name."""
    computes: bool = False
    """Whether it works on large tensors for minutes, so that memory is worth tuning."""


def command(does: Callable[..., None], *, example: str, computes: bool = False) -> Command:
    """The command that calls `does`; the first line of its docstring is the summary."""
    assert does.__doc__ is not None
    summary = does.__doc__.splitlines()[0].removesuffix(".")
    return Command(summary=summary, example=example, does=does, computes=computes)
