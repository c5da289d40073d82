"""Generation for many requests at once: schedule, run, draw.

One thread owns the model. Each turn asks the scheduler (herd.engine.scheduler) for a step, has the runner
(herd.engine.runner) compute it as one packed forward, draws the next token of every request that has come so far, and
tells what is new. docs/engine.md walks one request through.
"""

import asyncio
import contextlib
import queue
import secrets
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from herd.config import ModelConfig
from herd.core.errors import HerdError
from herd.engine.answer import Answer, Piece, take
from herd.engine.load import Model, Prompt
from herd.engine.pages import Pages
from herd.engine.runner import Runner, TokenRequest, content_of
from herd.engine.sampler import SamplingParams
from herd.engine.scheduler import Scheduler
from herd.engine.speculative import Drafter, DraftModel, NGrams, drafts, num_drafts
from herd.model.cache import KVCache
from herd.plan.counts import page_bytes

MAX_CAPACITY = 8192
"""Tokens of a request, where nothing is said."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The options of `Model.engine`."""

    num_slots: int = 8
    """Requests that run at a time."""
    capacity: int | None = None
    """Most tokens of a request, prompt and answer; None: what the model claims, at most MAX_CAPACITY."""
    cache_bytes: int | None = None
    """For keys and values; None: room for `num_slots` requests of `capacity` tokens. Memory is taken as it is used."""
    cache_folder: Path | None = None
    """Where the global layers' pages lie in a file, for contexts beyond memory; None: in memory."""
    cache_int8: bool = False
    """Whether the global layers' pages are in 8 bits; what that does to the answers is in docs/engine.md."""
    prompt_tokens: int = 2048
    """Tokens of prompts that a step reads at most, …"""
    beside_tokens: int = 512
    """… and while answers are under way."""
    guess_tokens: int = 0
    """Tokens of an answer that are guessed ahead at most, from its own past or by `draft`."""
    draft: Model | None = None
    """A smaller model of the same tokenizer, that guesses."""

    def __post_init__(self) -> None:
        for name in ("num_slots", "capacity", "cache_bytes", "prompt_tokens", "beside_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise HerdError(f"{name}={value} must be at least 1")
        if self.guess_tokens < 0 or (self.draft and not self.guess_tokens):
            raise HerdError(f"guess_tokens={self.guess_tokens} must not be negative, and above 0 with a draft model")


@dataclass(kw_only=True, eq=False)
class Generation(TokenRequest):
    """A request in the engine."""

    put: Callable[[Piece], object]
    """Where its pieces go; called in `loop`, where it has one, else by the engine's thread."""
    loop: asyncio.AbstractEventLoop | None
    answer: Answer
    prompt_logprobs: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class WeightUpdate:
    """What `update_weights` hands to the engine's thread."""

    version: int
    tensors: Mapping[str, Tensor]
    done: "Future[None]"


Delivery = tuple[Callable[[Piece], object], Piece]


def _deliver(pieces: Sequence[Delivery]) -> None:
    for put, piece in pieces:
        put(piece)


class EngineFault(RuntimeError):
    """The engine failed: no mistake of the caller's."""


def _raise_if_failed(piece: Piece) -> None:
    if piece.finish_reason == "error":
        raise HerdError(piece.text)
    if piece.finish_reason == "fault":
        raise EngineFault(piece.text)


def _joined(news: "queue.SimpleQueue[Piece]") -> str:
    """The text of all pieces to the last."""
    text = ""
    while True:
        piece = news.get()
        _raise_if_failed(piece)
        text += piece.text
        if piece.finish_reason is not None:
            return text


class Engine:
    """Answers prompts; safe to call from any thread or event loop."""

    def __init__(self, model: Model, config: EngineConfig) -> None:
        self.model, self.version = model, 0
        self.capacity = config.capacity or min(model.config.max_positions, MAX_CAPACITY)
        weight = model.transformer.embedding.weight  # the unembedding may be packed
        self._page_bytes = page_bytes(model.config, number_bytes=weight.itemsize, int8=config.cache_int8)
        num_global, num_local = num_pages(model.config, config, self.capacity, self._page_bytes)
        cache = KVCache(
            model.config,
            num_global=num_global,
            num_local=num_local,
            dtype=weight.dtype,
            device=weight.device,
            int8=config.cache_int8,
            folder=config.cache_folder,
        )
        self.cache_bytes = cache.num_bytes
        self._runner = Runner(model, cache)
        self._pages = Pages(
            page_tokens=model.config.page_tokens,
            chunk_size=model.config.chunk_size,
            num_global=num_global,
            num_local=num_local,
            grow=cache.grow,
        )
        self._scheduler: Scheduler[Generation] = Scheduler(
            self._pages,
            num_slots=config.num_slots,
            prompt_tokens=config.prompt_tokens,
            beside_tokens=config.beside_tokens,
        )
        self._guess_tokens = config.guess_tokens
        self._drafter: Drafter = (
            DraftModel(config.draft, model, num_slots=config.num_slots, capacity=self.capacity)
            if config.draft
            else NGrams()
        )
        self._num_drafted = self._num_accepted = 0
        self._outgoing: dict[asyncio.AbstractEventLoop, list[Delivery]] = {}
        self._news: queue.SimpleQueue[Generation | WeightUpdate | None] = queue.SimpleQueue()
        self._most_used_bytes = 0
        self._closed = False
        self._door = threading.Lock()
        """Held by who hands something in: nothing comes after the engine has closed."""
        self._thread = threading.Thread(target=self._run, name="herd-engine", daemon=True)
        self._thread.start()

    async def generate(
        self, prompt: Prompt, params: SamplingParams, *, caller: str = "", salt: str = "", priority: int = 0
    ) -> AsyncGenerator[Piece, None]:
        """Pieces of one answer as they come; closing the iterator cancels the request.

        Callers share the engine fairly; only requests of the same salt share what they begin with; a step of priority
        is worth herd.engine.scheduler.HEAD_START tokens.
        """
        news: asyncio.Queue[Piece] = asyncio.Queue()
        request = self._submit(
            prompt,
            params,
            news.put_nowait,
            loop=asyncio.get_running_loop(),
            caller=caller,
            salt=salt,
            priority=priority,
        )
        try:
            while True:
                piece = await news.get()
                _raise_if_failed(piece)
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            request.cancelled = True

    def stream(
        self, prompt: Prompt, params: SamplingParams, *, caller: str = "", salt: str = "", priority: int = 0
    ) -> Generator[Piece, None, None]:
        """As `generate`, for code without an event loop."""
        news: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        request = self._submit(prompt, params, news.put, caller=caller, salt=salt, priority=priority)
        try:
            while True:
                piece = news.get()
                _raise_if_failed(piece)
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            request.cancelled = True

    def generate_batch(self, prompts: Sequence[Prompt], params: SamplingParams, *, caller: str = "") -> list[str]:
        """Whole answers, in the order of the prompts."""
        if isinstance(prompts, Prompt | str):
            raise HerdError(f"generate_batch takes a list of prompts, not one {type(prompts).__name__}: put it in [ ]")
        streams = [queue.SimpleQueue[Piece]() for _ in prompts]
        requests: list[Generation] = []
        try:
            for prompt, news in zip(prompts, streams, strict=True):
                requests.append(self._submit(prompt, params, news.put, caller=caller))
            return [_joined(news) for news in streams]
        finally:  # one that is refused or fails ends the others too
            for request in requests:
                request.cancelled = True

    def update_weights(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        """Replace parameters, by their names in the transformer, between two steps; returns when that is done.

        Running requests go on with the keys and values that they have, tokens from then on by the new weights; nothing
        that older weights computed is shared with requests that come later.
        """
        done: Future[None] = Future()
        self._hand_in(WeightUpdate(version=version, tensors=tensors, done=done))
        done.result()

    def stats(self) -> dict[str, int]:
        """What runs and what is held, for a display or a log; counted without stopping the engine."""
        whole, chunk = self._pages.whole, self._pages.chunk
        global_bytes, local_bytes = self._page_bytes
        return {
            "running": len(self._scheduler.running),
            "waiting": sum(map(len, list(self._scheduler.waiting.values()))),
            "preempted": self._scheduler.num_preempted,
            "cache_bytes": self.cache_bytes,
            "used_bytes": self._used_bytes(),
            "most_used_bytes": self._most_used_bytes,
            "shared_bytes": whole.idle * global_bytes + chunk.idle * local_bytes,
            "version": self.version,
            "drafted": self._num_drafted,
            "accepted": self._num_accepted,
        }

    def close(self) -> None:
        """Stop the engine's thread; running requests end with an error."""
        with self._door:
            self._closed = True
            self._news.put(None)
        self._thread.join()

    def _hand_in(self, news: Generation | WeightUpdate) -> None:
        with self._door:
            if self._closed:
                raise HerdError("the engine is closed")
            self._news.put(news)

    def _submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        put: Callable[[Piece], object],
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        caller: str = "",
        salt: str = "",
        priority: int = 0,
    ) -> Generation:
        if not isinstance(prompt, Prompt):
            raise HerdError(f"the prompt is a {type(prompt).__name__}, not what Model.render makes of messages")
        length = len(prompt.token_ids)
        if not length:
            raise HerdError("the prompt has no tokens")
        if length >= self.capacity:
            raise HerdError(f"the prompt has {length} tokens, the context holds {self.capacity}: shorten it")
        limit = min(length + params.max_tokens, self.capacity)
        if not self._scheduler.fits(limit):
            raise HerdError(
                f"the prompt has {length} tokens and the answer may have {limit - length}: their keys and values are "
                f"{self._bytes_of(limit):,} bytes, the cache has {self.cache_bytes:,}: lower max_tokens or raise "
                "cache_bytes"
            )
        answer = Answer(
            params,
            prompt=prompt.token_ids,
            tokenizer=self.model.tokenizer,
            end_tokens=self.model.config.special.stop,
            room=self.capacity - length,
            seed=secrets.randbits(63),
            progress=self.model.structures.start(params.structure) if params.structure else None,
        )
        content = content_of(prompt, self.model)
        ids = list(prompt.token_ids)
        request = Generation(
            content=ids if content is prompt.token_ids else content,
            num_prompt=length,
            limit=limit,
            caller=caller,
            salt=salt,
            priority=priority,
            reuse=not params.prompt_logprobs,
            prompt=prompt,
            ids=ids,
            scored=params.prompt_logprobs,
            answer=answer,
            put=put,
            loop=loop,
        )
        self._hand_in(request)
        return request

    def _used_bytes(self) -> int:
        """Of pages that running requests hold."""
        pools = zip((self._pages.whole, self._pages.chunk), self._page_bytes, strict=True)
        return sum((pool.size - pool.free - pool.idle) * size for pool, size in pools)

    def _bytes_of(self, length: int) -> int:
        return sum(number * size for number, size in zip(self._pages.needs(length), self._page_bytes, strict=True))

    def _run(self) -> None:
        with torch.inference_mode():
            while not self._closed:
                self._listen()
                try:
                    if not self._scheduler.idle:
                        self._turn()
                    self._hand_over()
                except Exception as error:  # a fault must reach the callers, not die with the thread
                    self._fail(f"generation failed: {type(error).__name__}: {error}", "fault")
        self._listen()
        self._fail("the engine was closed", "error")

    def _listen(self) -> None:
        """Take in what has come; wait for something when there is nothing to do."""
        while True:
            try:
                news = self._news.get(block=self._scheduler.idle and not self._closed)
            except queue.Empty:
                return
            if isinstance(news, Generation):
                self._scheduler.add(news)
            elif isinstance(news, WeightUpdate):
                self._update(news)

    def _turn(self) -> None:
        """One step."""
        if self._guess_tokens:
            self._guess()
        step = self._scheduler.schedule()
        for request, reason in step.refused:
            self._emit(request, Piece(text=reason, token_ids=[], finish_reason="error"))
        if not step.works:
            return
        self._most_used_bytes = max(self._most_used_bytes, self._used_bytes())
        results = self._runner.run(step)
        answering: list[tuple[Generation, Tensor]] = []
        for work, result in zip(step.works.values(), results, strict=True):
            work.request.prompt_logprobs += result.prompt_logprobs
            if work.num_logits:
                answering.append((work.request, result.logits_RV))
            else:
                self._scheduler.enter(work.request)
        if answering:
            self._advance([request for request, _ in answering], [logits_RV for _, logits_RV in answering])

    def _guess(self) -> None:
        """Draft what may follow in each running answer."""
        requests = [request for request in self._scheduler.running if request.answer.tokens]
        answers = [request.answer for request in requests]
        chunk = self.model.config.chunk_size
        counts = [num_drafts(answer, self._guess_tokens, chunk_size=chunk) for answer in answers]
        for request, draft in zip(requests, drafts(self._drafter, answers, counts), strict=True):
            request.draft = draft

    def _advance(self, requests: Sequence[Generation], logits: Sequence[Tensor]) -> None:
        """Draw the next tokens of each request and tell what is new."""
        pieces = take(
            [request.answer for request in requests],
            torch.cat(list(logits)),
            [request.draft[: len(logits_RV) - 1] for request, logits_RV in zip(requests, logits, strict=True)],
        )
        for request, piece in zip(requests, pieces, strict=True):
            if self.version or request.prompt_logprobs:
                piece = replace(piece, version=self.version, prompt_logprobs=tuple(request.prompt_logprobs))
            # Where a draft was wrong, what was computed behind it does not hold; the last token is not computed yet.
            known = len(request.ids)
            for token in request.answer.tokens[known - request.num_prompt :]:
                request.append(token)
            self._scheduler.truncate(request, len(request.ids) - 1)
            request.draft, request.prompt_logprobs = [], []
            if piece.finish_reason is None:
                self._scheduler.enter(request)
            else:
                self._scheduler.finish(request)
                self._num_drafted += request.answer.num_drafted
                self._num_accepted += request.answer.num_accepted
            self._emit(request, piece)

    def _emit(self, request: Generation, piece: Piece) -> None:
        if request.loop is None:
            request.put(piece)
        else:
            self._outgoing.setdefault(request.loop, []).append((request.put, piece))

    def _hand_over(self) -> None:
        """Give each event loop what a step made for its requests, at once: to wake it for each piece costs the engine
        more than drawing the token."""
        for loop, pieces in self._outgoing.items():
            # The loop may have gone: that is its own end, not the engine's.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_deliver, pieces)
        self._outgoing = {}

    def _update(self, update: WeightUpdate) -> None:
        """Put new weights in place: all of them, or none where one does not fit."""
        try:
            parameters = dict(self.model.transformer.named_parameters())
            for name, tensor in update.tensors.items():
                if name not in parameters:
                    raise HerdError(f"update_weights: the model has no parameter {name!r}")
                if tensor.shape != parameters[name].shape:
                    shape, wanted = tuple(tensor.shape), tuple(parameters[name].shape)
                    raise HerdError(f"update_weights: {name} has the shape {shape}, the model's is {wanted}")
            for name, tensor in update.tensors.items():
                parameters[name].copy_(tensor)
            self.version = update.version
            self._scheduler.forget_prefixes()
        except Exception as error:
            update.done.set_exception(error)
        else:
            update.done.set_result(None)

    def _fail(self, message: str, reason: Literal["error", "fault"]) -> None:
        """End every running request, of a closed engine the waiting ones too."""
        for request in [*self._scheduler.running, *(self._scheduler.all_waiting() if self._closed else ())]:
            self._emit(request, Piece(text=message, token_ids=[], finish_reason=reason))
            self._scheduler.finish(request, computed=False)
        self._hand_over()


def num_pages(model: ModelConfig, config: EngineConfig, capacity: int, page_bytes: tuple[int, int]) -> tuple[int, int]:
    """Global and local pages of an engine; without a budget as many as all slots can need."""
    size = model.page_tokens
    whole, chunk = -(-capacity // size), -(-min(capacity, model.chunk_size) // size)
    if config.cache_bytes is None:
        return config.num_slots * whole, config.num_slots * chunk
    global_bytes, local_bytes = page_bytes
    budget = config.cache_bytes
    # Local pages are few and every request needs them; they get half of the budget at most, but one chunk in any case.
    num_local = config.num_slots * chunk
    if local_bytes:
        num_local = max(chunk, min(num_local, budget // 2 // local_bytes))
    rest = budget - num_local * local_bytes
    num_global = config.num_slots * whole
    if global_bytes:
        num_global = min(num_global, rest // global_bytes)
    if rest < 0 or num_global < 1:
        least = chunk * local_bytes + global_bytes
        raise HerdError(f"cache_bytes={budget} is less than {least}, what one request needs at the least: raise it")
    return num_global, num_local
