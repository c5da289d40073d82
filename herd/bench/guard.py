"""`herd bench guard`: what guards catch and what they flag without reason, beside peers in the same run."""

from collections.abc import Sequence
from pathlib import Path

from herd.bench.table import Row, show
from herd.errors import HerdError


def guard(
    *,
    cases: Sequence[str],
    prompt_guard: Path | None,
    message_guard: Path | None,
    parts: Sequence[str],
    limit: int,
    offset_step: int,
    as_json: bool,
) -> None:
    """Run the cases and print their rows."""
    rows: list[Row] = []
    if "prompt" in cases:
        from herd.bench.guard_prompt import PARTS, prompt_rows

        if prompt_guard is None:
            raise HerdError("the case prompt needs a guard: give --prompt-guard FOLDER")
        rows += prompt_rows(prompt_guard, parts=parts or PARTS, limit=limit, offset_step=offset_step)
    if "message" in cases:
        from herd.bench.guard_items import packs
        from herd.bench.guard_model import message_case

        if message_guard is None:
            raise HerdError("the case message needs a guard: give --message-guard FOLDER")
        rows += message_case(message_guard, packs(), limit=limit)
    show(rows, as_json=as_json)
