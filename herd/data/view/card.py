"""The data card of a folder as one HTML page that needs nothing beside itself: the `card` of herd.json."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from herd.core.files import write_atomic
from herd.data.view.templates import render

CARD = "card.html"
STEPS = {
    "read": "read",
    "language": "in a known and wanted language",
    "lines": "after the filters of lines",
    "quality": "after the filters of quality",
    "contamination": "without passages of an evaluation set",
    "budget": "within the budget of its language",
    "exact duplicates": "without exact duplicates",
    "near duplicates": "without near duplicates: kept",
}
"""The steps of cleaning in their order, as `herd.data.text.report.Report.left` names them."""
COUNTED = ("documents", "books", "pictures", "clips", "chats", "preferences", "prompts", "tokens", "tokenizer")


def write_card(folder: Path, card: Mapping[str, Any]) -> Path:
    """Write `card.html` into `folder`; a reader sees the whole file or none. The page does not name the folder, whose
    bytes depend on its config and its sources alone."""
    cleaning = card.get("cleaning", {})
    left = cleaning.get("left", {})
    text = render(
        "card.html.j2",
        steps=[(words, left[step]) for step, words in STEPS.items() if step in left],
        dropped=sorted(cleaning.get("dropped", {}).items(), key=lambda item: (-item[1], item[0])),
        examples=cleaning.get("examples", {}),
        tables=[table for table in _tables(cleaning) if table[2]],
        sources=card.get("sources", []),
        skipped=_skipped(card),
        left_out=card.get("left_out", []),
        counted={name: card[name] for name in COUNTED if card.get(name)},
    )
    path = folder / CARD
    write_atomic(path, text.encode())
    return path


def _skipped(card: Mapping[str, Any]) -> list[tuple[str, str, str, Mapping[str, Any]]]:
    """Source, `skipped` or `changed`, reason, and count and first places, of what was not read as it is."""
    notes = [(source["name"], source) for source in card.get("sources", [])]
    notes.append(("in no source", card.get("unread", {})))
    return [
        (name, what, reason, of)
        for name, note in notes
        for what in ("skipped", "changed")
        for reason, of in note.get(what, {}).items()
    ]


def _tables(cleaning: Mapping[str, Any]) -> list[tuple[str, tuple[str, str], list[tuple[str, int]]]]:
    """Title, the two columns and rows of what was counted, the largest first."""

    def rows(name: str) -> list[tuple[str, int]]:
        return sorted(cleaning.get(name, {}).items(), key=lambda item: (-item[1], item[0]))

    by_source = Counter(
        {
            f"{source}: {reason.removeprefix('document: ')}": count
            for source, outcomes in cleaning.get("outcomes", {}).items()
            for reason, count in outcomes.items()
            if not reason.startswith("line: ")
        }
    )
    clusters = sorted(cleaning.get("cluster_sizes", {}).items(), key=lambda item: int(item[0]))
    return [
        ("Bytes by language and script", ("language", "bytes"), rows("by_language")),
        ("Bytes by source", ("source", "bytes"), rows("by_source")),
        ("Documents by source", ("source: kept, or why it was dropped", "documents"), sorted(by_source.items())),
        ("Masked personal data and secrets", ("kind", "masked"), rows("masked")),
        ("Documents dropped for an evaluation set", ("set", "documents"), rows("contaminated")),
        ("Items of evaluation sets that were found", ("item", "documents"), rows("contaminated_items")),
        ("Items of evaluation sets that were looked for", ("set", "items"), rows("checked_items")),
        ("Items too short to look for", ("set", "items"), rows("unchecked_items")),
        ("Duplicates, the kept one included", ("duplicates", "documents"), clusters),
    ]
