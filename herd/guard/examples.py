"""Messages that somebody has judged, as JSON lines: {"messages": […], "unsafe": ["S1", "S2"]}.

`messages` are OpenAI's, of text; the last one of the user or the assistant is what was judged. An empty list is safe.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herd.core.files import read_text
from herd.errors import HerdError, unknown
from herd.guard.prompt import Part, Role, last_message
from herd.guard.taxonomy import Taxonomy


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A message, and the categories that it violates."""

    parts: list[Part]
    role: Role
    before: str = ""
    """The user's message that an assistant's answers."""
    codes: tuple[str, ...] = ()


def read_examples(path: Path, policy: Taxonomy) -> list[Judged]:
    """The examples of a file, under a policy. Raises HerdError that names the line which is none."""
    found = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            try:
                found.append(_example(json.loads(line), policy))
            except (ValueError, RecursionError) as error:
                raise HerdError(f"{path}, line {number}: {error}") from error
    if not found:
        raise HerdError(f'{path} has no examples: each line is {{"messages": […], "unsafe": ["S1"]}}')
    return found


def _example(row: Any, policy: Taxonomy) -> Judged:
    if not isinstance(row, Mapping) or set(row) != {"messages", "unsafe"}:
        raise HerdError(f"{str(row)[:80]} is not an object with messages and unsafe")
    codes, messages = row["unsafe"], row["messages"]
    if not isinstance(codes, list) or not isinstance(messages, list):
        raise HerdError(f"messages and unsafe must be lists, unsafe is {str(codes)[:80]}")
    for code in codes:
        if code not in policy.codes:
            raise unknown("category", str(code), policy.codes)
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise HerdError(f"{str(message)[:80]} is not a message with a role and a content of text")
    parts, role, before = last_message(messages)
    return Judged(parts=parts, role=role, before=before, codes=tuple(one for one in policy.codes if one in codes))
