"""A request as its caller holds it: the pieces of its answers as they come, or the whole outputs.

The engine's thread puts pieces into a queue that any thread may read. `async for` reads the same queue: the engine
wakes the event loop once a step for all its requests (`wake`). Leaving a loop over the pieces cancels what still runs.
"""

import asyncio
import queue
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from herd.engine.answer import Answer, Piece, TokenLogprob
from herd.engine.runner import TokenRequest
from herd.errors import HerdError


class EngineFault(RuntimeError):
    """The engine failed: no mistake of the caller's."""


@dataclass(frozen=True, kw_only=True)
class CompletionOutput:
    """One finished answer. `logprobs`, where `params.logprobs` is set, and `versions` have an entry for each token."""

    index: int
    seed: int
    text: str
    token_ids: list[int]
    """With the end token, where one was drawn."""
    logprobs: list[TokenLogprob]
    versions: list[int]
    """Of the weights that a token was drawn from; see `Engine.update_weights`."""
    prompt_logprobs: list[float]
    finish_reason: str
    routes: np.ndarray | None = field(default=None, compare=False)
    """Of `Piece.routes`."""


class EngineRequest:
    """What `Engine.submit` returns: the pieces of n answers, each with its `Piece.index`."""

    def __init__(self, *, num_prompt: int, seeds: Sequence[int]) -> None:
        self.num_prompt = num_prompt
        self.seeds = tuple(seeds)
        """Of each answer."""
        self.loop: asyncio.AbstractEventLoop | None = None
        """To be woken when there are pieces."""
        self.generations: list[Generation] = []
        """By index; set by the engine."""
        self._pieces: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        self._news: asyncio.Event | None = None
        self._num_open = len(self.seeds)

    def put(self, piece: Piece) -> None:
        """Called by the engine's thread."""
        self._pieces.put(piece)

    def cancel(self, index: int | None = None) -> None:
        """End one answer, or all of them: the last piece has the finish reason "abort"."""
        for generation in self.generations if index is None else [self.generations[index]]:
            generation.cancelled = True

    def __iter__(self) -> Iterator[Piece]:
        """Pieces as they come, until all answers have ended. Raises HerdError; EngineFault where the engine failed."""
        try:
            while self._num_open > 0:
                yield self._accept(self._pieces.get())
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncGenerator[Piece, None]:
        """As `__iter__`, in an event loop."""
        # In this order: a piece that came before the loop was known finds nobody to wake, and is read below.
        news = self._news = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        try:
            while self._num_open > 0:
                news.clear()
                while not self._pieces.empty():
                    yield self._accept(self._pieces.get_nowait())
                if self._num_open > 0:
                    await news.wait()
        finally:
            self.cancel()

    def result(self) -> list[CompletionOutput]:
        """Wait for all answers."""
        return self._outputs(list(self))

    async def wait(self) -> list[CompletionOutput]:
        """As `result`, in an event loop."""
        return self._outputs([piece async for piece in self])

    def _accept(self, piece: Piece) -> Piece:
        if piece.finish_reason == "error":
            raise HerdError(piece.text)
        if piece.finish_reason == "fault":
            raise EngineFault(piece.text)
        self._num_open -= piece.finish_reason is not None
        return piece

    def _outputs(self, pieces: Sequence[Piece]) -> list[CompletionOutput]:
        return [
            make_output([piece for piece in pieces if piece.index == index], seed)
            for index, seed in enumerate(self.seeds)
        ]


def make_output(pieces: Sequence[Piece], seed: int) -> CompletionOutput:
    """The whole of one answer's pieces."""
    token_ids: list[int] = []
    versions: list[int] = []
    for piece in pieces:
        token_ids += piece.token_ids if piece.end_token is None else [*piece.token_ids, piece.end_token]
        versions += [piece.version] * (len(token_ids) - len(versions))
    assert pieces and pieces[-1].finish_reason is not None, "an answer has a last piece"
    return CompletionOutput(
        index=pieces[0].index,
        seed=seed,
        text="".join(piece.text for piece in pieces),
        token_ids=token_ids,
        logprobs=[one for piece in pieces for one in piece.logprobs],
        versions=versions,
        prompt_logprobs=[one for piece in pieces for one in piece.prompt_logprobs],
        finish_reason=pieces[-1].finish_reason,
        routes=pieces[-1].routes,
    )


def wake(requests: Sequence[EngineRequest]) -> None:
    """Called in the event loop: there are pieces."""
    for request in requests:
        if request._news is not None:
            request._news.set()


@dataclass(kw_only=True, eq=False)
class Generation(TokenRequest):
    """One answer of a request, as the engine's thread runs it."""

    request: EngineRequest
    index: int
    answer: Answer
    prompt_logprobs: list[float] = field(default_factory=list)
    prompt_top: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
