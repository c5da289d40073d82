"""A run cut into windows: what is planned and shuffled at a time, and how its pieces are dealt out to steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from herd.data.loading.pack import steps_of
from herd.errors import HerdError


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of a run."""

    number: int
    first_step: int
    num_steps: int | None
    """None: as many as its pieces fill; of the last one."""
    text: tuple[int, int]
    """Tokens of text that are shown before its beginning and before its end."""
    pictures: tuple[int, int]
    """The same of pictures with their names."""
    clips: tuple[int, int]
    """The same of clips."""


def cut_run(
    num_tokens: int, batch_tokens: int, shares: Sequence[tuple[float, float]], shuffle_tokens: int
) -> list[Window]:
    """The windows of a run: no more than about `shuffle_tokens` each, and each in one part of the schedule, whose
    `shares` are those of pictures and of clips in parts of equal length."""
    steps = max(1, num_tokens // batch_tokens)
    edges: list[tuple[int, tuple[float, float]]] = []
    for part, share in enumerate(shares):
        begin, end = (round(number * steps / len(shares)) for number in (part, part + 1))
        tokens = num_tokens if len(shares) == 1 else (end - begin) * batch_tokens
        count = min(max(1, -(-tokens // shuffle_tokens)), end - begin)
        edges += [(begin + (end - begin) * number // count, share) for number in range(count)]
    if len(edges) > 1 and shuffle_tokens < batch_tokens:
        raise HerdError(f"shuffle_tokens={shuffle_tokens} is less than batch_tokens={batch_tokens}: make it larger")
    windows = []
    begins = [0, 0, 0]
    for number, (step, (pictures, clips)) in enumerate(edges):
        last = number == len(edges) - 1
        num_steps = None if last else edges[number + 1][0] - step
        tokens = num_tokens - step * batch_tokens if num_steps is None else num_steps * batch_tokens
        each = (1 - pictures - clips, pictures, clips)
        spans = [(begin, begin + int(tokens * share)) for begin, share in zip(begins, each, strict=True)]
        windows.append(
            Window(
                number=number, first_step=step, num_steps=num_steps, text=spans[0], pictures=spans[1], clips=spans[2]
            )
        )
        begins = [end for _, end in spans]
    return windows


def deal_out(lengths: np.ndarray, batch_tokens: int, num_steps: int | None) -> list[range]:
    """Which consecutive pieces make each step: about `batch_tokens`, or as even parts as whole pieces make."""
    if num_steps is None:
        return steps_of(lengths, batch_tokens)
    if len(lengths) < num_steps:
        raise HerdError(
            f"{len(lengths)} pieces do not fill {num_steps} steps of batch_tokens={batch_tokens}: make it larger, or "
            "context smaller"
        )
    ends = np.cumsum(lengths)
    places = np.searchsorted(ends, np.arange(1, num_steps) * (ends[-1] / num_steps))
    numbers = np.arange(1, num_steps)
    # No step is empty: each takes at least one piece, and leaves one for each step after it.
    places = np.maximum.accumulate(np.maximum(places, 1) - numbers) + numbers
    places = np.minimum(places, len(lengths) - num_steps + numbers)
    edges = [0, *places.tolist(), len(lengths)]
    return [range(begin, end) for begin, end in pairwise(edges)]
