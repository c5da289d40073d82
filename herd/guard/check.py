"""`herd guard check`: verdicts on messages, in lines or as JSON."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from herd.core.files import read_text
from herd.data.media.image import read_picture
from herd.errors import HerdError
from herd.guard.model_guard import Guard, Verdict
from herd.guard.taxonomy import HAZARDS, Taxonomy, read_policy

BATCH = 64
"""Messages that are judged at one time."""


def check(
    folder: Path,
    message: str | None,
    *,
    role: str,
    file: Path | None,
    images: tuple[Path, ...],
    policy: Path | None,
    exclude: tuple[str, ...],
    threshold: float | None,
    as_json: bool,
) -> bool:
    """Print the verdict on a message, or on each line of a file; whether any of them is unsafe."""
    if (message is None) == (file is None):
        raise HerdError("give one message (- reads it from the input), or --file with one on each line")
    if file is not None and images:
        raise HerdError("--images go with one message: in a file, name them in its lines")
    taxonomy: Taxonomy = (HAZARDS if policy is None else read_policy(policy)).exclude(exclude)
    if message is not None:
        text = sys.stdin.read() if message == "-" else message
        parts = [*({"type": "image", "image": read_picture(path)} for path in images), {"type": "text", "text": text}]
        conversations = iter([[{"role": role, "content": parts}]])
    else:
        assert file is not None
        conversations = read_conversations(file, role)
    found = False
    with Guard(folder, policy=taxonomy, threshold=threshold) as guard:
        while batch := list(islice(conversations, BATCH)):
            for verdict in guard.judge_all(batch):
                found = found or verdict.unsafe
                print(json.dumps(asdict(verdict)) if as_json else line_of(verdict, taxonomy), flush=True)
    return found


def line_of(verdict: Verdict, policy: Taxonomy) -> str:
    """A verdict as a person reads it."""
    word = "unsafe" if verdict.unsafe else "safe"
    named = ", ".join(f"{code} {policy[code].name}" for code in verdict.categories)
    windows = f", {verdict.windows} windows" if verdict.windows > 1 else ""
    notes = "".join(f"; {note}" for note in verdict.notes)
    return f"{word} ({verdict.score:.3f}{windows}){': ' + named if named else ''}{notes}"


def read_conversations(path: Path, role: str) -> Iterator[list[dict[str, Any]]]:
    """Lines of JSON: a text, {"prompt": …, "images": […]} or {"messages": […]}; `role` is of those without one."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise HerdError(f"{path}, line {number} is no JSON: {error}") from error
        text = row if isinstance(row, str) else row.get("prompt") if isinstance(row, Mapping) else None
        if isinstance(text, str):
            named = row.get("images", []) if isinstance(row, Mapping) else []
            if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
                raise HerdError(f"{path}, line {number}: images must be a list of files, not {str(named)[:80]}")
            shown = [{"type": "image", "image": read_picture(path.parent / one)} for one in named]
            yield [{"role": role, "content": [*shown, {"type": "text", "text": text}]}]
        elif isinstance(row, Mapping) and isinstance(row.get("messages"), list):
            yield row["messages"]
        else:
            raise HerdError(f'{path}, line {number} has neither "messages" nor "prompt": {line[:80]}')
