"""Benches of the guards: `herd bench guard`, `herd bench code`."""

from pathlib import Path
from typing import Literal

from herd.commands.command import load_object


def bench_guard(
    *,
    cases: tuple[Literal["prompt", "message"], ...] = ("prompt",),
    prompt_guard: Path | None = None,
    message_guard: Path | None = None,
    parts: tuple[Literal["sets", "flagged", "overlap", "evasions", "offsets", "time", "agent"], ...] = (),
    limit: int = 2000,
    offset_step: int = 1,
    json: bool = False,
) -> None:
    """Measure guards on attacks and benign texts that they have not seen, beside peers in the same run.

    Args:
        cases: `prompt`: a prompt guard; `message`: a guard of messages.
        prompt_guard: Folder of a prompt guard.
        message_guard: Folder of a guard of messages.
        parts: Of the case prompt; all if none is given.
        limit: Texts of each set; of the part agent, pairs of a task and an injection of each suite.
        offset_step: Words between two offsets at which a payload is planted.
        json: Print one JSON object, for scripts.
    """
    load_object("herd.bench.guard:guard")(
        cases=cases, prompt_guard=prompt_guard, message_guard=message_guard, parts=parts, limit=limit,
        offset_step=offset_step, as_json=json,
    )  # fmt: skip


def bench_code(purplellama: Path, /, *, json: bool = False) -> None:
    """Measure the code scanner on labelled code, beside semgrep and bandit.

    Args:
        purplellama: Folder of a checkout of PurpleLlama.
        json: Print one JSON object, for scripts.
    """
    load_object("herd.bench.code_scan:bench_code")(purplellama, as_json=json)
