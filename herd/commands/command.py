"""What a line of `herd --help` is, and how it finds its code without importing it before it is called."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from herd.stages.recipe import StageKind


def named(place: str) -> Any:
    """The object at `module:name`, imported now and not before."""
    module, name = place.split(":")
    return getattr(import_module(module), name)


@dataclass(frozen=True, kw_only=True)
class Command:
    """A line of `herd --help`."""

    summary: str
    example: str
    does: Callable[..., None] | StageKind
    """A function whose signature is the usage; or a stage, whose config's fields are."""
    computes: bool = False
    """Whether it works on large tensors for minutes, so that memory is worth tuning."""


def command(does: Callable[..., None], *, example: str, computes: bool = False) -> Command:
    """The command that calls `does`; the first line of its docstring is the summary."""
    assert does.__doc__ is not None
    summary = does.__doc__.splitlines()[0].removesuffix(".")
    return Command(summary=summary, example=example, does=does, computes=computes)
