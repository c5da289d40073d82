"""Generation for many requests at once, over the training forward and a cache of slots.

One thread owns the model. Each turn admits waiting requests into free slots, reads the next piece of every prompt that
is not yet read, then decodes one token for every other request: all of it one packed forward.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from herd.core.batch import Images
from herd.core.errors import HerdError
from herd.core.streams import seed_of
from herd.engine.load import Model, Prompt
from herd.engine.sampler import SamplingParams, sample
from herd.model.cache import Slots, chunk_pieces

PREFILL_TOKENS = 2048
"""Prompt tokens of one request that a forward reads at most."""
UNFINISHED = "\ufffd"
"""How the tokenizer shows the bytes of a character that is not whole yet."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """News of an answer: the text since the last piece, its tokens, and at the end why it ended."""

    text: str
    token_ids: list[int]
    finish_reason: str | None
    """None while running; "stop" at an end token, "length" at max_tokens or the context's end; "error" where the prompt
    is at fault or the engine was closed, "fault" where the engine failed, with the reason as the text."""


@dataclass(kw_only=True, eq=False)
class Request:
    """A request in the engine."""

    prompt: Prompt
    params: SamplingParams
    emit: Callable[[Piece], object]
    generator: torch.Generator
    features: Images | None = None
    pieces: list[tuple[int, int]] = field(default_factory=list)
    """Parts of the prompt that are not yet read."""
    answer: list[int] = field(default_factory=list)
    shown: str = ""
    slot: int = -1
    cancelled: bool = False


class EngineFault(RuntimeError):
    """The engine failed: no mistake of the caller's."""


def _raise_if_failed(piece: Piece) -> None:
    if piece.finish_reason == "error":
        raise HerdError(piece.text)
    if piece.finish_reason == "fault":
        raise EngineFault(piece.text)


class Engine:
    """Answers prompts; safe to call from any thread or event loop."""

    def __init__(self, model: Model, *, num_slots: int, capacity: int) -> None:
        self.model, self.capacity = model, capacity
        weight = model.transformer.embedding.weight  # the unembedding may be packed
        self._cache = Slots(
            model.config, num_slots=num_slots, capacity=capacity, dtype=weight.dtype, device=weight.device
        )
        self._free = list(range(num_slots))
        self._running: list[Request] = []
        self._waiting: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._count = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="herd-engine", daemon=True)
        self._thread.start()

    async def generate(self, prompt: Prompt, params: SamplingParams) -> AsyncGenerator[Piece, None]:
        """Pieces of one answer as they come; closing the iterator cancels the request."""
        loop = asyncio.get_running_loop()
        news: asyncio.Queue[Piece] = asyncio.Queue()

        def emit(piece: Piece) -> None:
            # The caller's loop may have gone: that is its own end, not the engine's.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(news.put_nowait, piece)

        request = self._submit(prompt, params, emit)
        try:
            while True:
                piece = await news.get()
                _raise_if_failed(piece)
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            request.cancelled = True

    def generate_batch(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[str]:
        """Whole answers, in the order of the prompts."""
        news: list[queue.SimpleQueue[Piece]] = [queue.SimpleQueue() for _ in prompts]
        for prompt, channel in zip(prompts, news, strict=True):
            self._submit(prompt, params, channel.put)
        answers = []
        for channel in news:
            text = ""
            while True:
                piece = channel.get()
                _raise_if_failed(piece)
                text += piece.text
                if piece.finish_reason is not None:
                    break
            answers.append(text)
        return answers

    def close(self) -> None:
        """Stop the engine's thread; running requests end with an error."""
        self._closed = True
        self._waiting.put(None)
        self._thread.join()

    def _submit(self, prompt: Prompt, params: SamplingParams, emit: Callable[[Piece], object]) -> Request:
        length = len(prompt.token_ids)
        if not length:
            raise HerdError("the prompt has no tokens")
        if length >= self.capacity:
            raise HerdError(f"the prompt has {length} tokens, the context holds {self.capacity}: shorten it")
        if self._closed:
            raise HerdError("the engine is closed")
        self._count += 1
        seed = params.seed if params.seed is not None else seed_of(0, "request", self._count)
        request = Request(
            prompt=prompt, params=params, emit=emit, generator=torch.Generator().manual_seed(seed % 2**63)
        )
        self._waiting.put(request)
        return request

    def _run(self) -> None:
        with torch.inference_mode():
            while not self._closed:
                self._admit()
                if not self._running:
                    continue
                try:
                    self._turn()
                except Exception as error:  # a fault must reach the callers, not die with the thread
                    self._fail(f"generation failed: {type(error).__name__}: {error}")
        self._fail("the engine was closed", "error")
        while not self._waiting.empty():
            if (request := self._waiting.get()) is not None:
                request.emit(Piece(text="the engine was closed", token_ids=[], finish_reason="error"))

    def _admit(self) -> None:
        """Move waiting requests into free slots; wait for one when nothing runs."""
        while self._free:
            try:
                request = self._waiting.get(block=not self._running)
            except queue.Empty:
                return
            if request is None:
                return
            if request.cancelled:
                continue
            try:
                request.features = self.model.encode([request.prompt])
            except HerdError as error:
                request.emit(Piece(text=str(error), token_ids=[], finish_reason="error"))
                continue
            request.slot = self._free.pop()
            length = len(request.prompt.token_ids)
            request.pieces = chunk_pieces(0, length, self.model.config.chunk_size, PREFILL_TOKENS)
            self._running.append(request)

    def _turn(self) -> None:
        """One forward: the next piece of each unread prompt, one token of each other request."""
        for request in [r for r in self._running if r.cancelled]:
            self._release(request)
        if not self._running:
            return
        tokens: list[int] = []
        positions: list[int] = []
        starts, features, rows = [0], [], []
        for request in self._running:
            ids = request.prompt.token_ids
            if request.pieces:
                begin, end = request.pieces.pop(0)
                if request.features is not None:
                    inside = (request.features.rows >= begin) & (request.features.rows < end)
                    rows.append(request.features.rows[inside] - begin + len(tokens))
                    features.append(request.features.tiles[inside])
                tokens += ids[begin:end]
            else:
                begin = len(ids) + len(request.answer) - 1
                end = begin + 1
                tokens.append(request.answer[-1])
            positions += range(begin, end)
            starts.append(len(tokens))
        positions_N, starts_S = torch.tensor(positions), torch.tensor(starts, dtype=torch.int32)
        hidden_ND = self.model.transformer(
            torch.tensor(tokens),
            positions_N=positions_N,
            starts_S=starts_S,
            images=Images(tiles=torch.cat(features), rows=torch.cat(rows), encoded=True) if rows else None,
            cache=self._cache.at([r.slot for r in self._running], positions_N, starts_S),
        )
        logits_SV = self.model.transformer.unembed(hidden_ND[starts_S[1:].long() - 1]).float()
        for request, logits_V in zip(list(self._running), logits_SV, strict=True):
            if not request.pieces:
                self._advance(request, logits_V)

    def _advance(self, request: Request, logits_V: Tensor) -> None:
        """Choose the request's next token and tell what is new."""
        token = sample(logits_V, request.params, request.generator)
        stop = token in self.model.config.special.stop
        if not stop:
            request.answer.append(token)
        full = len(request.prompt.token_ids) + len(request.answer) >= self.capacity
        length = len(request.answer) >= request.params.max_tokens or full
        reason = "stop" if stop else "length" if length else None
        text = self.model.tokenizer.decode(request.answer)
        if reason is None and text.endswith(UNFINISHED):
            text = request.shown  # wait for the rest of the character
        request.emit(Piece(text=text[len(request.shown) :], token_ids=[] if stop else [token], finish_reason=reason))
        request.shown = text
        if reason is not None:
            self._release(request)

    def _release(self, request: Request) -> None:
        self._running.remove(request)
        self._free.append(request.slot)

    def _fail(self, message: str, reason: str = "fault") -> None:
        """End every running request."""
        for request in list(self._running):
            request.emit(Piece(text=message, token_ids=[], finish_reason=reason))
            self._release(request)
