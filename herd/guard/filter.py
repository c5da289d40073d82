"""`herd guard filter`: training data without what a guard calls unsafe.

Rows are JSON lines: a document, {"text": …}, judged as a message of the user; or a chat, {"messages": […]}, of which
every message of the user and the assistant is judged. A chat whose assistant refuses an unsafe request is kept: what is
asked there is what the model has to learn to refuse (`keep_refused`). What is removed goes to a file of its own, with
the reason, so that somebody can look at it.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from herd.core.files import naming_full_disk
from herd.core.progress import progress_bar
from herd.errors import HerdError
from herd.guard.model_guard import Guard, Verdict
from herd.guard.taxonomy import HAZARDS, read_policy

BATCH = 64
"""Rows that are judged at one time."""
REMOVED = "removed"


def filter_file(guard: Guard, source: Path, out: Path, *, keep_refused: bool = True) -> Counter[str]:
    """Write the safe rows of `source` to `out`, as they were, and the others to a file beside it, `OUT.removed.jsonl`.
    Returns how many were kept, removed, and removed for each category."""
    removed = out.with_name(f"{out.name.removesuffix('.jsonl')}.{REMOVED}.jsonl")
    if there := [str(path) for path in (out, removed) if path.exists()]:
        raise HerdError(f"{there[0]} is there already: give another --out, or remove it first")
    counts: Counter[str] = Counter(kept=0, removed=0)
    out.parent.mkdir(parents=True, exist_ok=True)
    parts = [path.with_name(f"{path.name}.partial") for path in (out, removed)]
    total = sum(1 for _ in numbered_rows(source))
    with naming_full_disk(out.parent), progress_bar("judged rows", total) as bar:
        with parts[0].open("w", encoding="utf-8") as kept_file, parts[1].open("w", encoding="utf-8") as removed_file:
            lines = numbered_rows(source)
            while batch := list(islice(lines, BATCH)):
                turns = [judged_turns(row, f"{source}, line {number}") for number, row, _ in batch]
                verdicts = iter(guard.judge_all([turn for of in turns for turn in of]))
                for (number, row, line), of in zip(batch, turns, strict=True):
                    found = [next(verdicts) for _ in of]
                    if reasons := reasons_against(of, found, keep_refused=keep_refused):
                        counts.update(["removed", *reasons])
                        removed_file.write(json.dumps({"line": number, "categories": reasons, "row": row}) + "\n")
                    else:
                        counts["kept"] += 1
                        kept_file.write(line if line.endswith("\n") else line + "\n")
                bar.advance(len(batch))
        for part, path in zip(parts, (out, removed), strict=True):
            os.replace(part, path)
    return counts


def filter_command(folder: Path, source: Path, out: Path, *, policy: Path | None, keep_refused: bool) -> None:
    """What `herd guard filter` does."""
    with Guard(folder, policy=HAZARDS if policy is None else read_policy(policy)) as guard:
        counts = filter_file(guard, source, out, keep_refused=keep_refused)
    by_category = ", ".join(f"{code} {counts[code]:,}" for code in guard.policy.codes if counts[code])
    print(f"kept {counts['kept']:,} rows, removed {counts['removed']:,}{': ' + by_category if by_category else ''}")
    print(f"wrote {out}")


def numbered_rows(source: Path) -> Iterator[tuple[int, Mapping[str, Any], str]]:
    """The rows of a file of JSON lines: number, contents, and the line as it is."""
    with source.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise HerdError(f"{source}, line {number} is no JSON: {error}") from error
                if not isinstance(row, Mapping):
                    raise HerdError(f"{source}, line {number} is no object: {line.strip()[:80]}")
                yield number, row, line


def judged_turns(row: Mapping[str, Any], where: str) -> list[list[Mapping[str, Any]]]:
    """The conversations whose last messages are judged."""
    if isinstance(row.get("text"), str):
        return [[{"role": "user", "content": row["text"]}]] if row["text"].strip() else []
    messages = row.get("messages")
    if not isinstance(messages, list) or not all(isinstance(one, Mapping) for one in messages):
        raise HerdError(f'{where} has neither "text" nor "messages"')
    said = [i for i, one in enumerate(messages) if one.get("role") in ("user", "assistant") and one.get("content")]
    return [messages[: i + 1] for i in said]


def reasons_against(
    turns: Sequence[Sequence[Mapping[str, Any]]], verdicts: Sequence[Verdict], *, keep_refused: bool
) -> list[str]:
    """The categories for which a row goes; [] where it stays."""
    found: dict[str, None] = {}
    for place, (turn, verdict) in enumerate(zip(turns, verdicts, strict=True)):
        answer = place + 1 < len(turns) and turns[place + 1][-1]["role"] == "assistant"
        refused = turn[-1]["role"] == "user" and answer and not verdicts[place + 1].unsafe
        if verdict.unsafe and not (keep_refused and refused):
            found |= dict.fromkeys(verdict.categories)
    return list(found)
