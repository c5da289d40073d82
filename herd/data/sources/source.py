"""What a source is: items one after the other, each with its place in a file, and a count of what could not be read.

A file becomes rows by the reader of its kind (`readers`), rows become documents, chats, preferences or prompts
(`documents`, `chats`, `preferences`, `prompts`). Nothing is read into memory whole.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

MAX_ROW_CHARS = 16 * 2**20
"""A longer line, row or document of one piece is skipped: it is no text that a person wrote, and would fill memory."""
EXAMPLES = 3
"""Places that are named for each reason."""

Item = TypeVar("Item", covariant=True)


class Source(Protocol[Item]):
    """Documents, chats, preferences or prompts; each knows the place that it comes from."""

    @property
    def name(self) -> str:
        """What the source is called in the tables and the card."""

    def __iter__(self) -> Iterator[Item]:
        """All items, in an order that is the same each time."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a file, or one document."""

    place: str
    """File and row, as a person looks it up: `notes/a.jsonl row 3`."""
    values: Mapping[str, Any]
    folder: Path = Path()
    """Where paths in its values begin."""


class Unreadable(Exception):
    """Why a file is not read, or not to its end: a reason of `Notes`, and what it was in this one."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail


@dataclass(kw_only=True)
class Notes:
    """What was skipped and what was changed on reading, by reason, with the first places of each."""

    skipped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, reason: str, place: object, detail: str = "") -> None:
        """Count a file, row or chat that is not used."""
        self._count(self.skipped, reason, place, detail)

    def change(self, reason: str, place: object, detail: str = "") -> None:
        """Count one that is used, but not as it is."""
        self._count(self.changed, reason, place, detail)

    def _count(self, counts: Counter[str], reason: str, place: object, detail: str) -> None:
        counts[reason] += 1
        places = self.places.setdefault(reason, [])
        if len(places) < EXAMPLES:
            places.append(f"{place}: {' '.join(detail.split())}" if detail else str(place))

    def merge(self, other: "Notes") -> None:
        """Add what was counted elsewhere."""
        self.skipped.update(other.skipped)
        self.changed.update(other.changed)
        for reason, places in other.places.items():
            self.places[reason] = (self.places.get(reason, []) + places)[:EXAMPLES]

    @classmethod
    def from_note(cls, note: Mapping[str, Any]) -> "Notes":
        """What JSON kept of `vars(notes)`."""
        return cls(skipped=Counter(note["skipped"]), changed=Counter(note["changed"]), places=dict(note["places"]))

    def lines(self) -> Iterator[str]:
        """A line for each reason, the most frequent first."""
        for what, counts in (("skipped", self.skipped), ("changed", self.changed)):
            for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
                more = ", …" if count > len(self.places[reason]) else ""
                yield f"{what} {count:,} {reason} ({'; '.join(self.places[reason])}{more})"

    def as_json(self) -> dict[str, Any]:
        """For the data card."""
        return {
            what: {reason: {"count": count, "places": self.places[reason]} for reason, count in sorted(counts.items())}
            for what, counts in (("skipped", self.skipped), ("changed", self.changed))
            if counts
        }


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How files are read."""

    encoding: str = "auto"
    part_chars: int = 0
    """A text file is cut into documents of about so many characters, at the end of a line; 0: never."""
    columns: tuple[str, ...] = ()
    """Columns to read where a format stores them apart; all if none is given."""


Reader = Callable[[Path, ReadOptions, Notes], Iterator[Row]]
"""Gives the rows of one file. Raises Unreadable."""
