"""What the filters did, for the data card: documents and bytes left after every step, and examples of what was dropped.

Personal data is masked in the examples, whatever the config masks in the text.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from herd.data.text.documents import Document, digest
from herd.data.text.pii import mask

EXAMPLES = 3
"""Examples of each reason: those with the smallest hashes, so that they do not depend on the order of reading."""
EXAMPLE_CHARS = 200
_READ_CHARS = 2_000
"""Characters that are masked to show EXAMPLE_CHARS of them: what is cut in half at their end is not shown."""

Example = tuple[str, str, str]
"""Hash, source and the masked beginning of what was dropped."""


@dataclass(kw_only=True)
class Report:
    """Counts and examples, complete when the last document has been read from the pipeline."""

    left: dict[str, Counter[str]] = field(default_factory=dict)
    """After each step: `documents` and `bytes`."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Lines by `line: …`, documents by `document: …`."""
    examples: dict[str, list[Example]] = field(default_factory=dict)
    masked: Counter[str] = field(default_factory=Counter)
    """Personal data and secrets that were masked, by kind."""
    contaminated: Counter[str] = field(default_factory=Counter)
    """Documents dropped for an evaluation set, by its name."""
    contaminated_items: Counter[str] = field(default_factory=Counter)
    """The same by `set: beginning of the item`."""
    checked_items: Counter[str] = field(default_factory=Counter)
    """Items of evaluation sets that were looked for, by set."""
    unchecked_items: Counter[str] = field(default_factory=Counter)
    """Items of evaluation sets that are too short to look for, by set."""
    cluster_sizes: Counter[int] = field(default_factory=Counter)
    """Documents kept, by the number of duplicates that each was kept of, itself included."""
    by_language: Counter[str] = field(default_factory=Counter)
    """Bytes kept, by language and script, such as `de_Latn`."""
    by_source: Counter[str] = field(default_factory=Counter)
    """Bytes kept, by source."""
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    """By source: documents that were `kept`, and what was dropped by the reasons of `dropped`."""
    first_examples: dict[str, dict[str, Example]] = field(default_factory=dict)
    """By source and reason: the example with the smallest hash."""

    def count(self, step: str, document: Document) -> None:
        """Count a document that is left after `step`."""
        left = self.left.get(step)
        if left is None:
            left = self.left[step] = Counter(documents=0, bytes=0)
        left["documents"] += 1
        left["bytes"] += document.num_bytes

    def drop(self, reason: str, text: str, document: Document) -> None:
        """Count a line or document that a filter took, and keep it if it makes an example."""
        self.dropped[reason] += 1
        self.outcomes.setdefault(document.source, Counter())[reason] += 1
        kept, key = self.examples.setdefault(reason, []), digest(text)
        first = self.first_examples.setdefault(document.source, {})
        is_first = reason not in first or key < first[reason][0]
        if is_first or len(kept) < EXAMPLES or key <= kept[-1][0]:
            shown = " ".join(mask(text[:_READ_CHARS])[0].split())[:EXAMPLE_CHARS]
            self.examples[reason] = sorted({*kept, (key, document.source, shown)})[:EXAMPLES]
            if is_first:
                first[reason] = (key, document.source, shown)

    def keep(self, document: Document) -> None:
        """Count a document that is left after all filters."""
        self.by_source[document.source] += document.num_bytes
        self.outcomes.setdefault(document.source, Counter())["kept"] += 1

    def merge(self, other: "Report") -> None:
        """Add the counts of another run of the filters."""
        for step, count in other.left.items():
            self.left.setdefault(step, Counter()).update(count)
        for reason, examples in other.examples.items():
            merged = {*self.examples.get(reason, ()), *examples}
            self.examples[reason] = sorted(merged)[:EXAMPLES]
        for source, outcomes in other.outcomes.items():
            self.outcomes.setdefault(source, Counter()).update(outcomes)
        for source, firsts in other.first_examples.items():
            first = self.first_examples.setdefault(source, {})
            for reason, example in firsts.items():
                first[reason] = min(example, first.get(reason, example))
        for name, value in vars(self).items():
            if isinstance(value, Counter):
                value.update(getattr(other, name))

    @classmethod
    def from_note(cls, note: dict[str, Any]) -> "Report":
        """What JSON kept of `vars(report)`."""

        def example(parts: list[str]) -> Example:
            key, source, shown = parts
            return key, source, shown

        made = cls()
        for name, value in vars(made).items():
            if isinstance(value, Counter):
                value.update(note[name])
        made.cluster_sizes = Counter({int(size): count for size, count in note["cluster_sizes"].items()})
        made.left = {step: Counter(counts) for step, counts in note["left"].items()}
        made.outcomes = {source: Counter(counts) for source, counts in note["outcomes"].items()}
        made.examples = {reason: [example(one) for one in examples] for reason, examples in note["examples"].items()}
        made.first_examples = {
            source: {reason: example(one) for reason, one in of.items()}
            for source, of in note["first_examples"].items()
        }
        return made

    def as_json(self) -> dict[str, Any]:
        """For the data card."""
        return {
            "left": {step: dict(count) for step, count in self.left.items()},
            "dropped": dict(sorted(self.dropped.items())),
            "examples": {
                reason: [{"source": source, "text": text} for _, source, text in examples]
                for reason, examples in sorted(self.examples.items())
            },
            "masked": dict(sorted(self.masked.items())),
            "contaminated": dict(sorted(self.contaminated.items())),
            "contaminated_items": dict(sorted(self.contaminated_items.items())),
            "checked_items": dict(sorted(self.checked_items.items())),
            "unchecked_items": dict(sorted(self.unchecked_items.items())),
            "cluster_sizes": {str(size): count for size, count in sorted(self.cluster_sizes.items())},
            "by_language": dict(sorted(self.by_language.items())),
            "by_source": dict(sorted(self.by_source.items())),
            "outcomes": {source: dict(sorted(of.items())) for source, of in sorted(self.outcomes.items())},
            "first_examples": {
                source: {reason: text for reason, (_, _, text) in sorted(of.items())}
                for source, of in sorted(self.first_examples.items())
            },
        }
