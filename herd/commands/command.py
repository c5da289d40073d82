"""What a line of `herd --help` is, and how it finds its code without importing it before it is called."""

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from typing import Any

from herd.core.device import VARIABLE, DeviceName

DEVICE_HELP = f"Device to compute on; {VARIABLE} if not given, else the CUDA card where there is one, else the CPU."


def load_object(place: str) -> Any:
    """The object at `module:name`, imported now and not before."""
    module, name = place.split(":")
    return getattr(import_module(module), name)


@dataclass(frozen=True, kw_only=True)
class Command:
    """A line of `herd --help`."""

    summary: str
    example: str
    function: Callable[..., None]
    """A function whose signature is the usage; or one that takes what was parsed by `usage`."""
    usage: Callable[[Sequence[str]], Any] | None = None
    """Makes the type that tyro parses, from the arguments, where it depends on them: a recipe's settings."""
    place: str = ""
    """The stage whose settings its options are, for those that were renamed; else the command's own name."""
    computes: bool = False
    """Whether it works on large tensors for minutes, so that memory is worth tuning."""


def command(function: Callable[..., None], *, example: str, computes: bool = False, on_device: bool = False) -> Command:
    """The command that calls `function`; the first line of its docstring is the summary. With `on_device` it has the
    option --device."""
    assert function.__doc__ is not None
    summary = function.__doc__.splitlines()[0].removesuffix(".")
    return Command(
        summary=summary, example=example, function=with_device(function) if on_device else function, computes=computes
    )


def with_device(function: Callable[..., None]) -> Callable[..., None]:
    """`function` with the option --device."""

    @wraps(function)
    def wrapper(*args: Any, device: DeviceName | None = None, **options: Any) -> None:
        set_device(device)
        function(*args, **options)

    wrapper.__dict__.pop("__wrapped__")  # or the parser would read the signature of `function`
    option = inspect.Parameter("device", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=DeviceName | None)
    signature = inspect.signature(function)
    wrapper.__signature__ = signature.replace(parameters=[*signature.parameters.values(), option])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {**function.__annotations__, "device": DeviceName | None}
    wrapper.__doc__ = f"{(function.__doc__ or '').rstrip()}\n        device: {DEVICE_HELP}\n    "
    return wrapper


def set_device(name: str | None) -> None:
    """Have this process and its children compute on a device, as --device asks; None leaves HERD_DEVICE as it is."""
    if name is not None:
        os.environ[VARIABLE] = name
