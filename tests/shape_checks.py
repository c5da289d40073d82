"""Checks of the shapes in signatures, for each call that a test makes; what has none is called as it is, since
jaxtyping's import hook would bind and check it too, and a decoding step took three times as long."""

import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any

import jaxtyping


def has_shape(annotation: Any) -> bool:
    if isinstance(annotation, str):  # a forward reference; names of shapes are always in brackets
        return "[" in annotation
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(map(has_shape, typing.get_args(annotation)))


def function_of(decorated: Any) -> Any:
    """What the hook would check: of a dataclass, its construction."""
    if inspect.isclass(decorated):
        return decorated.__init__
    if isinstance(decorated, property):
        return decorated.fget
    return getattr(decorated, "__func__", decorated)


@functools.wraps(jaxtyping.jaxtyped)
def check_shapes(*, typechecker: Any) -> Callable[[Any], Any]:
    def decorate(decorated: Any) -> Any:
        if any(map(has_shape, getattr(function_of(decorated), "__annotations__", {}).values())):
            return whole(typechecker=typechecker)(decorated)
        return decorated

    return decorate


whole = jaxtyping.jaxtyped


def install(modules: Sequence[str]) -> None:
    """Have these modules checked when they are imported."""
    jaxtyping.jaxtyped = check_shapes  # by this name the hook decorates
    jaxtyping.install_import_hook(modules, "beartype.beartype")
