"""Which numbers a field of a config takes: declared in its type, checked when the config is made.

`num_tokens: Count`, `picture_share: Share`. What is out of range raises HerdError with field, value and range.
"""

from dataclasses import dataclass, fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from herd.errors import HerdError

MOST = 10**15
"""No count of tokens, steps or bytes is larger than this: a slip of the finger is."""


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, without the ends that are declared open."""

    low: float
    high: float
    above: bool = False
    """Whether `low` itself is left out."""
    below: bool = False
    """Whether `high` itself is left out."""

    def __contains__(self, value: float) -> bool:
        # A comparison with NaN is false.
        return (self.low < value or (value == self.low and not self.above)) and (
            value < self.high or (value == self.high and not self.below)
        )

    def asks(self, value: float) -> str:
        """What `value`, which is not within, should be."""
        low = f"{'above' if self.above else 'at least'} {self.low:,g}"
        high = f"{'below' if self.below else 'at most'} {self.high:,g}"
        if value <= self.low:
            return low
        return high if value >= self.high else f"{low} and {high}"  # the last for NaN


def at_least(low: int) -> Range:
    """Whole numbers from `low` on."""
    return Range(low, MOST)


Count = Annotated[int, at_least(1)]
"""Tokens, steps, rows, bytes, where there must be one."""
CountOrNone = Annotated[int, at_least(0)]
"""The same where 0 means none."""
Context = Annotated[int, at_least(16)]
"""Tokens of a piece of text: a few words must fit."""
Seed = Annotated[int, Range(0, 2**63 - 1)]
Share = Annotated[float, Range(0, 1)]
PartialShare = Annotated[float, Range(0, 1, below=True)]
"""A share that leaves something for the rest."""
TrueShare = Annotated[float, Range(0, 1, above=True, below=True)]
"""A share that leaves something on both sides."""
Weight = Annotated[float, Range(0, 1e6)]
Rate = Annotated[float, Range(0, 100)]
Seconds = Annotated[float, Range(0, 1e9)]
Positive = Annotated[float, Range(0, 1e12, above=True)]


class Checked:
    """A config whose numbers are checked against the ranges in their types. Its `__post_init__`, if any, calls this."""

    def __post_init__(self) -> None:
        for name, limits, many in _ranges(type(self)):
            value = getattr(self, name)
            if value is None:
                continue
            for number in value if many else (value,):
                if number not in limits:
                    raise HerdError(f"{name}={value} must be {limits.asks(number)}")


def _ranges(config: type) -> list[tuple[str, Range, bool]]:
    """The fields of `config` that have a range: name, range, and whether each of several values must be in it."""
    hints = get_type_hints(config, include_extras=True)
    found = []
    for field in fields(config):
        for hint, many in _parts(hints[field.name]):
            found += [(field.name, item, many) for item in get_args(hint)[1:] if isinstance(item, Range)]
    return found


def _parts(hint: Any) -> list[tuple[Any, bool]]:
    """The annotated types in a field's type: itself, an option of a union, or what a tuple has."""
    if get_origin(hint) is Annotated:
        return [(hint, False)]
    many = get_origin(hint) is tuple
    return [(one, many) for one in dict.fromkeys(get_args(hint)) if get_origin(one) is Annotated]
