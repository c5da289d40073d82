"""Commands of the guards: `herd guard check` and others; `herd guard train` is a stage."""

from pathlib import Path
from typing import Literal

from herd.commands.command import load_object

UNSAFE_EXIT = 3
"""Exit code where something unsafe was found: not that of a failure."""


def guard_check(
    guard: Path,
    message: str | None = None,
    /,
    *,
    file: Path | None = None,
    role: Literal["user", "assistant"] = "user",
    images: tuple[Path, ...] = (),
    policy: Path | None = None,
    exclude: tuple[str, ...] = (),
    threshold: float | None = None,
    json: bool = False,
) -> None:
    """Judge messages with a guard; exit code 3 if one is unsafe.

    Args:
        guard: Folder of a guard, of herd guard train or in the form of Llama Guard.
        message: What is judged; - reads it from the input.
        file: JSON lines to judge instead: {"messages": […]}, {"prompt": …, "images": […]} or a text each.
        role: Who said it, where no message says that.
        images: Pictures of the message.
        policy: Policy file (TOML) with categories of yours.
        exclude: Categories that are no violation, such as S12.
        threshold: Score from which on a message is unsafe; as the guard was trained if not given.
        json: Print a JSON object for each, for scripts.
    """
    unsafe = load_object("herd.guard.check:check")(
        guard, message, role=role, file=file, images=images, policy=policy, exclude=exclude, threshold=threshold,
        as_json=json,
    )  # fmt: skip
    if unsafe:
        raise SystemExit(UNSAFE_EXIT)
