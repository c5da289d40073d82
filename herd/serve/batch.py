"""`herd generate`: answers to a file of prompts, as many at a time as the engine has slots for.

A line of the prompts is a JSON object: `{"prompt": …}`, asked by the user, with `"images": [PATH, …]` if there are any;
`{"messages": […]}`, a conversation; or `{"text": …}`, continued as it stands. Paths begin at the prompts' folder, and
further fields are passed on to the answer. Or it is a request of OpenAI's batch file; see `batch_line`.
An answer is appended in one write when it is whole, so that a kill loses those under way alone; said again, the
command goes on with what is missing. At the end the lines stand in the order of the prompts. A prompt at fault has a
line with its `error`, and is tried again the next time. An answer has a key of what it answers: the contents of the
model's folder and of the pictures, the line and the settings. The seed of a prompt is a function of its number: in fp32
order, slots and kills change no answer.
"""

import asyncio
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from herd.core.errors import HerdError
from herd.core.files import read_bytes, read_json, read_text, sha256, write_atomic
from herd.core.lineage import hash_of
from herd.engine.engine import Engine
from herd.engine.load import Model, load
from herd.engine.sampler import SamplingParams
from herd.engine.structure import Structure
from herd.serve.batch_line import Lines, failed, is_openai

AHEAD = 2
"""Prompts that are made ready for each slot: one is answered while the next is rendered."""
BEGIN = b'{"number": '
"""What every line of an answers file begins with."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a run did."""

    prompts: int
    answered: int
    failed: int
    reused: int
    """Answers that stood already."""
    tokens: int
    """Made in this run."""
    seconds: float


def run(
    folder: Path,
    prompts: Path,
    out: Path,
    params: SamplingParams,
    *,
    schema: Path | None = None,
    slots: int = 32,
    guess: int = 0,
    draft: Path | None = None,
    as_json: bool = False,
) -> None:
    """Open the model, answer, and tell what was written. Raises HerdError at the end when prompts failed."""
    if schema is not None:
        params = dataclasses.replace(params, structure=Structure.schema(read_json(schema)))
    model = load(folder)
    engine = model.engine(num_slots=slots, guess_tokens=guess, draft=load(draft) if draft else None)
    try:
        done = generate(
            model, engine, prompts, out, params, slots=slots, source=hash_of(folder), name=folder.resolve().name
        )
        stats = engine.stats()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; what {out} holds is kept: the same command goes on from there") from None
    finally:
        engine.close()
    told = dataclasses.asdict(done) | {"tokens_per_s": done.tokens / max(1e-9, done.seconds), "out": str(out)}
    if guess:
        told |= {"drafted": stats["drafted"], "accepted": stats["accepted"]}
    if as_json:
        print(json.dumps(told))
    else:
        guessed = f", {stats['accepted']:,} of {stats['drafted']:,} guesses right" if guess else ""
        print(
            f"wrote {out}: {done.answered:,} answers, {done.reused:,} of them were there, {done.tokens:,} tokens in "
            f"{done.seconds:,.0f} s ({told['tokens_per_s']:,.0f} tokens/s{guessed})"
        )
    if done.failed:
        raise HerdError(f"{done.failed} of {done.prompts} prompts failed: their lines in {out} have an error")


def generate(
    model: Model,
    engine: Engine,
    prompts: Path,
    out: Path,
    params: SamplingParams,
    *,
    slots: int = 8,
    source: str = "",
    name: str = "",
) -> Done:
    """Answer the lines of `prompts` into `out`. Raises HerdError where `out` holds answers to something else, or of
    another `source`, the hash of the model; `name` is for OpenAI's answers."""
    lines = read_text(prompts).split("\n")  # U+2028 may stand inside a line
    numbers = [number for number, line in enumerate(lines) if line.strip()]
    if not numbers:
        raise HerdError(f'{prompts} has no prompts: a line is like {{"prompt": "What is the capital of Japan?"}}')
    digest = functools.cache(_digest)  # many lines may ask about one picture
    keys = {number: _key(source, lines[number], number, params, prompts.parent, digest) for number in numbers}
    _refuse_doubles(lines)
    with _answers(out, keys) as (file, kept):
        missing = [number for number in numbers if number not in kept]
        work = _Work(Lines(model, engine, params, folder=prompts.parent, name=name), lines, file, keys)
        begin = time.monotonic()
        with _bar() as bar:
            work.on_answer = _showing(bar, total=len(numbers), done=len(kept))
            asyncio.run(work.run(missing, at_once=AHEAD * slots))
        seconds = time.monotonic() - begin
    whole = _read(out)[0]
    write_atomic(out, b"".join(_line(whole[number]) for number in numbers))
    return Done(
        prompts=len(numbers),
        answered=len(numbers) - work.num_failed,
        failed=work.num_failed,
        reused=len(kept),
        tokens=work.num_tokens,
        seconds=seconds,
    )


def _refuse_doubles(lines: list[str]) -> None:
    """Raises HerdError where two of OpenAI's requests have one id: by it answers are told apart."""
    places: dict[str, int] = {}
    for place, line in enumerate(lines, start=1):
        try:
            asked = json.loads(line)
        except (ValueError, RecursionError):  # its own answer says so
            continue
        if is_openai(asked) and isinstance(name := asked.get("custom_id"), str):
            if name in places:
                raise HerdError(f"lines {places[name]} and {place} have one custom_id: {name!r}")
            places[name] = place


def _line(answer: dict[str, Any]) -> bytes:
    """As a line of the file; what is no Unicode, from the fields of a prompt, in escapes."""
    try:
        return (json.dumps(answer, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(answer) + "\n").encode()


def _key(
    source: str, line: str, number: int, params: SamplingParams, folder: Path, digest: Callable[[Path], str]
) -> str:
    """What an answer is an answer to."""
    seen = [digest(folder / path) for path in _media(line)]
    return hashlib.blake2b(repr((source, line, number, params, seen)).encode(), digest_size=6).hexdigest()


def _media(line: str) -> list[str]:
    """The pictures and videos that a line names, whatever else is wrong with it."""
    try:
        asked = json.loads(line)
    except (ValueError, RecursionError):  # its own answer says so
        return []
    if not isinstance(asked, dict):
        return []
    contents = [message.get("content") for message in _list(asked.get("messages")) if isinstance(message, dict)]
    parts = [part for content in contents for part in _list(content) if isinstance(part, dict)]
    named = [*_list(asked.get("images")), *(part.get(kind) for part in parts for kind in ("image", "video"))]
    return [path for path in named if isinstance(path, str)]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _digest(path: Path) -> str:
    """Of a file; of one that cannot be read, nothing: its own answer says so."""
    try:
        return sha256(path)
    except (OSError, ValueError):
        return ""


@contextlib.contextmanager
def _answers(out: Path, keys: dict[int, str]) -> Iterator[tuple[int, dict[int, Any]]]:
    """The open file to append to, and what stands in it; a torn last line and errors are taken out."""
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(out.with_name(f".{out.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HerdError(f"another herd writes {out}: wait until it is done, or give another --out") from None
        kept, changed = _read(out) if out.exists() else ({}, False)
        for number, answer in kept.items():
            if not failed(answer) and answer.get("key") != keys.get(number):
                raise HerdError(
                    f"{out} holds answers of another model, to other prompts or with other settings (number {number}): "
                    "give another --out, or remove it"
                )
        good = {number: answer for number, answer in kept.items() if not failed(answer)}
        if changed or len(good) < len(kept):
            write_atomic(out, b"".join(map(_line, good.values())))
        file = os.open(out, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            yield file, good
        finally:
            os.close(file)
    finally:
        out.with_name(f".{out.name}.lock").unlink(missing_ok=True)
        os.close(lock)


def _read(out: Path) -> tuple[dict[int, Any], bool]:
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


class _Work:
    """The answering of many prompts on one event loop."""

    def __init__(self, answering: Lines, lines: list[str], file: int, keys: dict[int, str]) -> None:
        self._answering, self._lines, self._file, self._keys = answering, lines, file, keys
        self.num_failed = self.num_tokens = 0
        self.on_answer: Callable[[int], None] = lambda num_tokens: None

    async def run(self, numbers: list[int], *, at_once: int) -> None:
        queue = iter(numbers)

        async def worker() -> None:
            for number in queue:
                await self._one(number)

        tasks = [asyncio.create_task(worker()) for _ in range(min(at_once, len(numbers)))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, number: int) -> None:
        key = self._keys[number]
        said, tokens = await self._answering.answer(self._lines[number], number, key)
        self.num_failed += failed(said)
        data = _line({"number": number, "key": key, **said})
        assert os.write(self._file, data) == len(data), "a regular file takes a line whole"
        self.num_tokens += tokens
        self.on_answer(tokens)


def _bar() -> Progress:
    return Progress(
        TextColumn("answers"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )


def _showing(bar: Progress, *, total: int, done: int) -> Callable[[int], None]:
    """What is called after each answer: progress, and the rate."""
    task = bar.add_task("", total=total, completed=done, note="")
    begin, count = time.monotonic(), 0

    def show(num_tokens: int) -> None:
        nonlocal count
        count += num_tokens
        bar.update(task, advance=1, note=f"{count / max(1e-9, time.monotonic() - begin):,.0f} tokens/s")

    return show
