"""What a build of a data folder prints when it is done: what each source gave, what the filters dropped, and which
filter took most of a source, with the option that switches it off."""

from collections.abc import Mapping, Sequence
from typing import Any

Facts = dict[str, Any]
HEAVY = 0.5
"""Share of a source's documents that one filter drops from which on a line of its own says so."""
EXAMPLE_CHARS = 80
OPTIONS = {
    "document: short": "min-bytes 0",
    "document: symbols": "max-symbol-share 1",
    "document: unknown language": "no-language",
    "document: other language": "no-language",
    "document: contaminated": "contamination-ngram 0",
    "document: exact duplicate": "no-exact-duplicates",
    "document: near duplicate": "near-duplicates 0",
    "line: symbols": "no-line-symbols",
    "line: other language": "no-line-language",
    "line: boilerplate": "boilerplate-documents 0",
}
"""What switches off a filter whose reason is not the name of its field."""


def describe_source(facts: Facts) -> str:
    """What became of a source, in a line and one for each reason why something was not used."""
    rows = ", ".join(f"{count:,} {split}" for split, count in sorted(facts["rows"].items(), reverse=True)) or "nothing"
    unit = "documents " if facts["what"] == "text" else ""
    files = count_of(facts["files"], "file")
    lines = [f"{facts['name']}: {facts['what']}, {files}, {facts['bytes'] / 1e6:,.1f} MB, {unit}{rows}"]
    for what in ("skipped", "changed"):
        for reason, of in facts.get(what, {}).items():
            more = ", …" if of["count"] > len(of["places"]) else ""
            lines.append(f"  {what} {of['count']:,} {reason} ({'; '.join(of['places'])}{more})")
    return "\n".join(lines)


def describe_cleaning(facts: Mapping[str, Any]) -> str:
    """What the filters left, and what they dropped, the most first."""
    read, kept = (facts["left"].get(step, {"documents": 0})["documents"] for step in ("read", "near duplicates"))
    dropped = sorted(facts["dropped"].items(), key=lambda item: -item[1])
    why = "".join(f"; {_describe_loss(reason, count, facts)}" for reason, count in dropped[:6])
    more = f"; {count_of(len(dropped) - 6, 'more reason')} in herd.json" if len(dropped) > 6 else ""
    return (
        f"filters: {count_of(read, 'document')} read (a long text file is cut into several), {kept:,} kept{why}{more}"
    )


def describe_heldout(documents: Mapping[str, Facts], *, share: float, least_bytes: int) -> str:
    """Which part of the text is held out where `least_bytes` decides it in a language, from documents and bytes by
    language and split; else empty."""
    sizes = {language: sum(of["bytes"] for of in splits.values()) for language, splits in documents.items()}
    if not any(0 < share * size < least_bytes for size in sizes.values()):
        return ""
    held = sum(splits["heldout"]["bytes"] for splits in documents.values()) / sum(sizes.values())
    if held <= share:
        return ""
    return (
        f"held out: {held:.0%} of the text, more than heldout={share:g}: heldout_bytes={least_bytes:,} of each "
        "language, but at most a fifth of it, to the end of a whole file"
    )


def _describe_loss(reason: str, count: int, facts: Mapping[str, Any]) -> str:
    """`2 documents: short`, of a reason of `dropped`; of contaminated documents with the evaluation sets."""
    unit, _, why = reason.partition(": ")
    line = f"{count_of(count, unit)}: {why}"
    if reason != "document: contaminated":
        return line
    example = "".join(filter(str.isprintable, facts["examples"][reason][0]["text"]))[:EXAMPLE_CHARS]
    return f'{line} (a passage of {", ".join(facts["contaminated"])}), such as "{example}"'


def count_of(count: int, what: str) -> str:
    """`1 file`, `1,200 files`."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def losses(cleaning: Mapping[str, Any], sources: Sequence[str], *, share: float = HEAVY) -> list[str]:
    """A line for each filter that dropped more than `share` of the documents of one of the `sources`: how many, an
    example, and the option that switches the filter off."""
    lines = []
    for source in sources:
        outcomes = cleaning["outcomes"].get(source, {})
        whole = sum(count for reason, count in outcomes.items() if not reason.startswith("line: "))
        by_lines = max((reason for reason in outcomes if reason.startswith("line: ")), key=outcomes.get, default="")
        for reason, count in sorted(outcomes.items(), key=lambda item: -item[1]):
            if not reason.startswith("document: ") or count <= share * whole:
                continue
            is_rest = reason in ("document: empty", "document: short") and outcomes.get(by_lines, 0) >= count
            cause = by_lines if is_rest else reason
            example = "".join(filter(str.isprintable, cleaning["first_examples"][source][cause]))[:EXAMPLE_CHARS]
            lines.append(
                f"{source}: {count:,} of {whole:,} documents were dropped: {reason.partition(': ')[2]}"
                + (f", as their lines were ({cause.partition(': ')[2]})" if cause != reason else "")
                + f', such as "{example}"'
                + option_of(cause)
            )
    return lines


def option_of(reason: str) -> str:
    """The option that switches off the filter of this reason; empty where there is none."""
    name = reason.partition(": ")[2]
    if name in ("empty", "language not wanted"):
        return ""
    return f": --cleaning.{OPTIONS.get(reason, 'no-' + name.replace('_', '-'))} switches it off"
