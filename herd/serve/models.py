"""The models of one server: which there are, which of them are in memory, and which of them a request uses.

The first is the default. One is opened when it is first asked for; where a budget of memory is set and it does not fit,
the ones that were not used for longest are closed. A request holds a lease of its model until its answer has ended, and
a model with a lease is never closed. Not counted: the guards, the activations of a step, and what Python needs.
"""

import asyncio
import gc
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

import torch
from starlette.types import ASGIApp, Receive, Scope, Send

from herd.data.tokens.tokenizer import Tokenizer
from herd.engine.filters import Gate
from herd.engine.pipeline import AnswerPipeline
from herd.engine.reply import Reply
from herd.engine.sampler import SamplingParams
from herd.errors import HerdError
from herd.plan.counts import amount
from herd.serve.prepare import PreparedRequest, prepare_chat, prepare_texts
from herd.serve.refusal import ApiError
from herd.serve.schema import ChatRequest, TextRequest

log = logging.getLogger("herd.serve")
LEASES = "herd.leases"
"""In the scope of a request: an ExitStack that is closed when the answer has ended."""
RETRY_S = 5
"""After so long a client asks again for a model that busy ones leave no room for."""


class ServedModel(Protocol):
    """A model that answers, here or elsewhere."""

    @property
    def name(self) -> str: ...

    @property
    def context(self) -> int | None:
        """Tokens of a prompt and its answer at most, where that is known."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None where the tokens are not known here."""

    async def prepare_chat(self, chat: ChatRequest) -> PreparedRequest:
        """Raises ApiError."""

    async def prepare_texts(self, texts: TextRequest) -> PreparedRequest:
        """Raises ApiError."""

    def streams(self, prepared: PreparedRequest, *, caller: str, salt: str) -> list[AsyncGenerator[Reply, None]]:
        """The replies, each generated once it is read."""


class Models(Protocol):
    """What a server can be asked for. Of one event loop, but for `close` and `stats`."""

    gate: Gate | None
    """Judges both sides of every model."""

    @property
    def default(self) -> str:
        """The name of the first; empty where it is not known yet."""

    async def names(self) -> Sequence[str]:
        """The default first. Raises ApiError where they cannot be known."""

    async def is_ready(self) -> bool:
        """Whether requests would be answered."""

    def opened(self, name: str) -> ServedModel | None:
        """The model, to read what it is; None where it must be loaded first."""

    def lease(self, name: str) -> ServedModel | None:
        """The model, held until `release`; None where it must be loaded first."""

    def release(self, name: str) -> None: ...

    async def load(self, name: str) -> None:
        """Make `lease` succeed. Raises ApiError where there is no such model, or no room for it."""

    def stats(self) -> Mapping[str, Mapping[str, int]]:
        """Of each engine that runs, as `Engine.stats`."""

    def close(self) -> None:
        """Running answers end with an error."""


@dataclass(frozen=True, kw_only=True)
class LocalModel:
    """A model in this process's memory."""

    name: str
    pipeline: AnswerPipeline
    params: SamplingParams
    """The defaults of a request."""
    num_bytes: int = 0
    """Of its weights and of its whole cache."""

    @property
    def context(self) -> int:
        return self.pipeline.engine.max_model_len

    @property
    def tokenizer(self) -> Tokenizer:
        return self.pipeline.model.tokenizer

    async def prepare_chat(self, chat: ChatRequest) -> PreparedRequest:
        return await prepare_chat(self.pipeline, chat, self.params)

    async def prepare_texts(self, texts: TextRequest) -> PreparedRequest:
        return await prepare_texts(self.pipeline, texts, self.params)

    def streams(self, prepared: PreparedRequest, *, caller: str, salt: str) -> list[AsyncGenerator[Reply, None]]:
        return prepared.streams(self.pipeline, caller=caller, salt=salt)


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model that can be opened."""

    name: str
    open: Callable[[], LocalModel]
    """Takes seconds to minutes."""
    num_bytes: int
    """An estimate of `LocalModel.num_bytes`."""


class LocalModels:
    """Models in this process's memory, or on its disk until they are needed."""

    def __init__(self, sources: Sequence[ModelSource], *, memory: int | None = None, gate: Gate | None = None) -> None:
        """`memory`: bytes that all open models may have; None: no limit."""
        self.gate, self._memory = gate, memory
        self._sources = {source.name: source for source in sources}
        self._opened: OrderedDict[str, LocalModel] = OrderedDict()
        """The one that was used last is the last."""
        self._leases: Counter[str] = Counter()
        self._pinned: set[str] = set()
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._lock = asyncio.Lock()
        """Held to load: two at a time could each see room for one."""

    @property
    def default(self) -> str:
        return next(iter(self._sources))

    async def names(self) -> Sequence[str]:
        return list(self._sources)

    async def is_ready(self) -> bool:
        return True

    def open_default(self) -> None:
        """Open the first model now, so that what is wrong with it is reported at once. Raises HerdError."""
        source = next(iter(self._sources.values()))
        if refused := self._refusal(source.name, source.num_bytes):
            raise HerdError(refused.message)
        model = source.open()
        if refused := self._refusal(source.name, model.num_bytes):
            model.pipeline.engine.close()
            raise HerdError(refused.message)
        self._opened[source.name] = model

    def pin_default(self) -> LocalModel:
        """The first model, which is open and is never closed from now on."""
        self._pinned.add(self.default)
        return self._opened[self.default]

    def opened(self, name: str) -> LocalModel | None:
        return self._opened.get(name)

    def lease(self, name: str) -> LocalModel | None:
        model = self._opened.get(name)
        if model is not None:
            self._leases[name] += 1
            self._opened.move_to_end(name)
        return model

    def release(self, name: str) -> None:
        self._leases[name] -= 1
        if name in self._opened:  # a server that ends closes all
            self._opened.move_to_end(name)

    async def load(self, name: str) -> None:
        if name not in self._sources:
            raise unknown_model(name, list(self._sources))
        if name in self._opened:
            return
        if name not in self._loading:
            task = self._loading[name] = asyncio.create_task(self._load(name))
            task.add_done_callback(lambda done: self._loaded(name, done))
        # It goes on where a client goes away: another may wait for it, and a thread cannot be stopped.
        await asyncio.shield(self._loading[name])

    def stats(self) -> Mapping[str, Mapping[str, int]]:
        return {name: model.pipeline.engine.stats() for name, model in list(self._opened.items())}

    def close(self) -> None:
        while self._opened:
            _, model = self._opened.popitem()
            model.pipeline.engine.close()

    def _loaded(self, name: str, task: "asyncio.Task[None]") -> None:
        del self._loading[name]
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, ApiError):
            log.error("the model %s cannot be opened", name, exc_info=error)

    async def _load(self, name: str) -> None:
        async with self._lock:
            source = self._sources[name]
            await self._make_room(name, source.num_bytes)
            try:
                model = await asyncio.to_thread(source.open)
            except HerdError as error:
                raise ApiError(
                    f"the model {name!r} cannot be opened: {error}", status=500, code="model_broken"
                ) from error
            try:
                await self._make_room(name, model.num_bytes)
            except ApiError:
                await asyncio.to_thread(model.pipeline.engine.close)
                raise
            self._opened[name] = model

    async def _make_room(self, name: str, needed: int) -> None:
        """Close what was not used for longest until `needed` bytes are free. Raises ApiError."""
        if refused := self._refusal(name, needed):
            raise refused
        while self._memory is not None and self._used + needed > self._memory:
            oldest = next(other for other in self._opened if not self._is_held(other))
            log.info("closing %s for %s", oldest, name)
            # No name may hold the model here, or its memory would not be free when the next one is opened.
            await asyncio.to_thread(self._opened.pop(oldest).pipeline.engine.close)
            await asyncio.to_thread(_free_memory)

    def _refusal(self, name: str, needed: int) -> ApiError | None:
        """Why there is no room, whatever is closed that may be."""
        if self._memory is None:
            return None
        what = f"the model {name!r} needs {amount(needed)}B of memory"
        pinned = sum(self._opened[other].num_bytes for other in self._pinned)
        if needed > self._memory - pinned:
            held = f", of which {amount(pinned)}B are held for channels" if pinned else ""
            message = f"{what}, more than the {amount(self._memory)}B of --memory{held}"
            return ApiError(message, status=507, code="insufficient_memory")
        busy = {other: self._leases[other] for other in self._opened if self._is_held(other)}
        room = self._memory - sum(self._opened[other].num_bytes for other in busy)
        if needed > room:
            who = ", ".join(f"{other!r} ({number} requests)" for other, number in busy.items())
            message = f"{what}, and {amount(room)}B are left while {who} answer: try again later"
            return ApiError(message, status=503, code="models_busy", headers={"Retry-After": str(RETRY_S)})
        return None

    def _is_held(self, name: str) -> bool:
        return bool(self._leases[name]) or name in self._pinned

    @property
    def _used(self) -> int:
        return sum(model.num_bytes for model in self._opened.values())


def one_model(pipeline: AnswerPipeline, *, name: str, params: SamplingParams | None = None) -> LocalModels:
    """A server's models where there is one, which is open."""
    model = LocalModel(name=name, pipeline=pipeline, params=params or SamplingParams())
    models = LocalModels([ModelSource(name=name, open=lambda: model, num_bytes=0)], gate=pipeline.gate)
    models.open_default()
    return models


def unknown_model(name: str, known: Sequence[str]) -> ApiError:
    """That there is no such model."""
    served = ", ".join(map(repr, known))
    message = f"the model {name!r} is not served here: use {served if len(known) < 2 else f'one of {served}'}"
    return ApiError(message, status=404, param="model", code="model_not_found")


def _free_memory() -> None:
    gc.collect()  # an engine and what it has made refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class EndLeases:
    """Gives back what a request has leased when its answer has ended, however it ends."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with ExitStack() as scope[LEASES]:
            await self.app(scope, receive, send)
