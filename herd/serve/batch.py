"""`herd generate`: answers to a file of prompts, as many at a time as the engine has slots for.

A line of the prompts is a JSON object: `{"prompt": …}`, asked by the user, with `"images": [PATH, …]` if there are any;
`{"messages": […]}`, a conversation; or `{"text": …}`, continued as it is. Paths begin at the prompts' folder, and
further fields are passed on to the answer. Or it is a request of OpenAI's batch file; see `batch_line`.
What becomes of the answers file, also after a kill, is in `batch_file`. A prompt at fault has a line with its `error`,
and is tried again the next time. The seed of a prompt is a function of its number: in fp32 order, slots and kills
change no answer.
"""

import asyncio
import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from herd.config import EngineConfig
from herd.core.files import read_json, read_text, write_atomic
from herd.core.lineage import hash_of
from herd.core.progress import ProgressBar, progress_bar
from herd.engine.engine import Engine
from herd.engine.load import load
from herd.engine.pipeline import AnswerPipeline
from herd.engine.sampler import SamplingParams
from herd.engine.structure import Structure
from herd.errors import HerdError
from herd.serve.batch_file import answer_key, digest_of, line_of, open_answers, read_answers
from herd.serve.batch_line import Lines, is_failed, is_openai

AHEAD = 2
"""Prompts that are made ready for each slot: one is answered while the next is rendered."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a run did."""

    prompts: int
    answered: int
    failed: int
    reused: int
    """Answers that were there already."""
    tokens: int
    """Generated in this run."""
    seconds: float


def run(
    folder: Path,
    prompts: Path,
    out: Path,
    params: SamplingParams,
    config: EngineConfig,
    *,
    schema: Path | None = None,
    base: Path | None = None,
    draft_model: Path | None = None,
    as_json: bool = False,
) -> None:
    """Open the model, answer, and print what was written. Raises HerdError at the end when prompts failed."""
    if schema is not None:
        params = dataclasses.replace(params, structure=Structure.from_schema(read_json(schema)))
    model = load(folder, base=base)
    engine = Engine(model, config, draft_model=load(draft_model) if draft_model else None)
    try:
        done = generate(
            AnswerPipeline(model, engine),
            prompts,
            out,
            params,
            slots=config.max_num_seqs,
            source=" ".join(hash_of(path) for path in (folder, base) if path is not None),
            name=folder.resolve().name,
        )
        stats = engine.stats()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; what {out} holds is kept: re-run the same command to resume") from None
    finally:
        engine.close()
    summary = dataclasses.asdict(done) | {"tokens_per_s": done.tokens / max(1e-9, done.seconds), "out": str(out)}
    if config.num_speculative_tokens:
        summary |= {"drafted": stats["drafted"], "accepted": stats["accepted"]}
    if as_json:
        print(json.dumps(summary))
    else:
        drafted = f", {stats['accepted']:,} of {stats['drafted']:,} drafted tokens accepted"
        guessed = drafted if config.num_speculative_tokens else ""
        print(
            f"wrote {out}: {done.answered:,} answers, {done.reused:,} of them were there, {done.tokens:,} tokens in "
            f"{done.seconds:,.0f} s ({summary['tokens_per_s']:,.0f} tokens/s{guessed})"
        )
    if done.failed:
        raise HerdError(f"{done.failed} of {done.prompts} prompts failed: their lines in {out} have an error")


def generate(
    pipeline: AnswerPipeline,
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
    lines = read_text(prompts).split("\n")  # U+2028 may be inside a line
    numbers = [number for number, line in enumerate(lines) if line.strip()]
    if not numbers:
        raise HerdError(f'{prompts} has no prompts: a line is like {{"prompt": "What is the capital of Japan?"}}')
    digest = functools.cache(digest_of)  # many lines may ask about one picture
    keys = {number: answer_key(source, lines[number], number, params, prompts.parent, digest) for number in numbers}
    _refuse_duplicate_ids(lines)
    with open_answers(out, keys) as (file, kept):
        missing = [number for number in numbers if number not in kept]
        work = _Work(Lines(pipeline, params, folder=prompts.parent, name=name), lines, file, keys)
        begin = time.monotonic()
        with progress_bar("answers", len(numbers), done=len(kept)) as bar:
            work.on_answer = _token_rate(bar)
            asyncio.run(work.run(missing, at_once=AHEAD * slots))
        seconds = time.monotonic() - begin
    whole = read_answers(out)[0]
    write_atomic(out, b"".join(line_of(whole[number]) for number in numbers))
    return Done(
        prompts=len(numbers),
        answered=len(numbers) - work.num_failed,
        failed=work.num_failed,
        reused=len(kept),
        tokens=work.num_tokens,
        seconds=seconds,
    )


def _refuse_duplicate_ids(lines: list[str]) -> None:
    """Raises HerdError where two of OpenAI's requests have one id: it is what an answer is found by."""
    places: dict[str, int] = {}
    for place, line in enumerate(lines, start=1):
        try:
            asked = json.loads(line)
        except (ValueError, RecursionError):  # its own answer has the error
            continue
        if is_openai(asked) and isinstance(name := asked.get("custom_id"), str):
            if name in places:
                raise HerdError(f"lines {places[name]} and {place} have one custom_id: {name!r}")
            places[name] = place


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
        answer, tokens = await self._answering.answer(self._lines[number], number, key)
        self.num_failed += is_failed(answer)
        data = line_of({"number": number, "key": key, **answer})
        assert os.write(self._file, data) == len(data), "a regular file takes a line whole"
        self.num_tokens += tokens
        self.on_answer(tokens)


def _token_rate(bar: ProgressBar) -> Callable[[int], None]:
    """What is called after each answer with its tokens: their rate is shown."""
    begin, count = time.monotonic(), 0

    def advance(num_tokens: int) -> None:
        nonlocal count
        count += num_tokens
        bar.advance(rate=f"{count / max(1e-9, time.monotonic() - begin):,.0f} tokens/s")

    return advance
