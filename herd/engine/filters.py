"""Filters of a reply's text while it streams: what may be shown of it, and whether it must end.

A filter is fed the text as it comes, cut anywhere, and gives what may be shown by now: it can hold text back until it
knows more, replace it, or end the reply with a `Verdict`. The engine itself runs `StopFilter`, as a stop string ends
the sampling (herd.engine.answer); others are given to the answer pipeline (herd.engine.pipeline).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """That a filter ends the reply."""

    finish_reason: str
    """As the client is given it: `stop`, `content_filter`, …"""
    explanation: str = ""


class StreamFilter(Protocol):
    """One reply's filter; it is made anew for each."""

    @property
    def verdict(self) -> Verdict | None:
        """Once not None, the reply has ended, and `push` and `finish` give nothing more."""

    def push(self, text: str) -> str:
        """Take the next text; returns what may be shown by now."""

    def finish(self) -> str:
        """The text has ended; returns what may be shown of what was held back."""


class Gate(Protocol):
    """Judges what is asked and what is answered, such as a guard (herd.guard.stream).

    Both may take long, as another model computes them: the pipeline calls them outside of an event loop.
    """

    def check(self, messages: Sequence[Mapping[str, Any]], caller: str = "") -> Verdict | None:
        """Why the model must not read these messages of a caller; None where it may."""

    def filter(self, messages: Sequence[Mapping[str, Any]], caller: str = "") -> StreamFilter:
        """The filter of the reply to these messages."""


class StopFilter:
    """Passes text on up to the first stop string, which is left out, however the text is cut into pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.verdict: Verdict | None = None
        self.found = ""
        """The stop string that ended the text."""

    def push(self, text: str) -> str:
        if self.verdict:
            return ""
        text = self._held + text
        # The one that ends first: a stream fed letter by letter would see no other.
        ends = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            _, at, self.found = min(ends)
            self.verdict = Verdict(finish_reason="stop")
            self._held = ""
            return text[:at]
        held = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
