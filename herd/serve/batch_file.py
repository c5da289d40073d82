"""The answers file of `herd generate`: what is kept of an earlier run, and lines that are appended whole.

An answer is appended in one write when it is whole, so that a kill loses those under way alone; the same command then
answers what is missing. Each has a key of what it answers: the contents of the model's folder and of the pictures,
the line and the settings; answers to anything else are not mixed with these. At the end the lines are put in the order
of the prompts. A lock keeps a second command from the file.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from herd.core.files import read_bytes, sha256, write_atomic
from herd.engine.sampler import SamplingParams
from herd.errors import HerdError
from herd.serve.batch_line import is_failed

BEGIN = b'{"number": '
"""What every line of an answers file begins with."""


def line_of(answer: dict[str, Any]) -> bytes:
    """As a line of the file; what is no Unicode, from the fields of a prompt, in escapes."""
    try:
        return (json.dumps(answer, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(answer) + "\n").encode()


def answer_key(
    source: str, line: str, number: int, params: SamplingParams, folder: Path, digest: Callable[[Path], str]
) -> str:
    """What an answer is an answer to."""
    seen = [digest(folder / path) for path in _media(line)]
    return hashlib.blake2b(repr((source, line, number, params, seen)).encode(), digest_size=6).hexdigest()


def _media(line: str) -> list[str]:
    """The pictures and videos that a line names, whatever else is wrong with it."""
    try:
        asked = json.loads(line)
    except (ValueError, RecursionError):  # its own answer has the error
        return []
    if not isinstance(asked, dict):
        return []
    contents = [message.get("content") for message in _list(asked.get("messages")) if isinstance(message, dict)]
    parts = [part for content in contents for part in _list(content) if isinstance(part, dict)]
    named = [*_list(asked.get("images")), *(part.get(kind) for part in parts for kind in ("image", "video"))]
    return [path for path in named if isinstance(path, str)]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def digest_of(path: Path) -> str:
    """The sha256 of a file; nothing of one that cannot be read: its own answer has the error."""
    try:
        return sha256(path)
    except (OSError, ValueError):
        return ""


@contextlib.contextmanager
def open_answers(out: Path, keys: dict[int, str]) -> Iterator[tuple[int, dict[int, Any]]]:
    """The open file to append to, and the answers in it; a torn last line and errors are removed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(out.with_name(f".{out.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HerdError(f"another herd writes {out}: wait until it is done, or give another --out") from None
        kept, changed = read_answers(out) if out.exists() else ({}, False)
        for number, answer in kept.items():
            if not is_failed(answer) and answer.get("key") != keys.get(number):
                raise HerdError(
                    f"{out} holds answers of another model, to other prompts or with other settings (number {number}): "
                    "give another --out, or remove it"
                )
        good = {number: answer for number, answer in kept.items() if not is_failed(answer)}
        if changed or len(good) < len(kept):
            write_atomic(out, b"".join(map(line_of, good.values())))
        file = os.open(out, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            yield file, good
        finally:
            os.close(file)
    finally:
        out.with_name(f".{out.name}.lock").unlink(missing_ok=True)
        os.close(lock)


def read_answers(out: Path) -> tuple[dict[int, Any], bool]:
    """The answers of a file by number, and whether a kill left its last line torn. Raises HerdError where it holds
    something else, which is not written over."""
    answers: dict[int, Any] = {}
    *lines, rest = read_bytes(out).split(b"\n")
    torn = rest.strip(b"\0")
    if torn and not (torn.startswith(BEGIN) or BEGIN.startswith(torn)):
        lines.append(torn)
    for place, line in enumerate(lines, start=1):
        try:
            answer = json.loads(line.decode())
            answers[answer["number"]] = answer | {"key": answer["key"]}
        except (ValueError, TypeError, KeyError):
            raise HerdError(f"{out}:{place} is no answer of herd generate: give another --out") from None
    return answers, bool(rest)
