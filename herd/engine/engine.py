"""Generation for many requests at once: schedule, run, sample.

One thread owns the model. In each step it asks the scheduler (herd.engine.scheduler) what to compute, has the runner
(herd.engine.runner) compute it as one packed forward, samples the next token of every request whose prompt is computed
(herd.engine.answer), and hands the new pieces to their requests (herd.engine.request). Between two steps it runs what
other threads call: new weights, a flush. docs/engine.md describes the life of a request.
"""

import atexit
import contextlib
import queue
import secrets
import threading
from asyncio import AbstractEventLoop
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from herd.config import EngineConfig, ModelConfig
from herd.config.engine import DEFAULT_MAX_MODEL_LEN
from herd.core.device import naming_out_of_memory
from herd.engine.answer import Answer, Piece, advance, error_piece
from herd.engine.model import LoadedModel, Prompt
from herd.engine.pages import PageManager
from herd.engine.request import EngineRequest, Generation, wake
from herd.engine.runner import Runner, content_of
from herd.engine.sampler import SamplingParams, choice_seeds
from herd.engine.scheduler import Scheduler
from herd.engine.score import mean_pooled
from herd.engine.speculative import Drafter, DraftModel, NGrams, draft_tokens, num_drafts
from herd.engine.weights import replace_weights, weights_digest
from herd.errors import HerdError
from herd.model.cache import KVCache
from herd.model.moe import UNKNOWN
from herd.plan.counts import page_bytes

T = TypeVar("T")


@dataclass(frozen=True)
class PendingCall:
    """A call that the engine's thread makes between two steps."""

    function: Callable[[], Any]
    done: "Future[Any]"


class Engine:
    """Answers prompts; safe to call from any thread or event loop."""

    def __init__(
        self,
        model: LoadedModel,
        config: EngineConfig,
        *,
        draft_model: LoadedModel | None = None,
        record_routes: bool = False,
    ) -> None:
        """`record_routes`: outputs have the experts of each token (`CompletionOutput.routes`)."""
        if record_routes and model.config.moe.num_experts > UNKNOWN:
            raise HerdError(f"routes of {model.config.moe.num_experts} experts are not recorded: at most {UNKNOWN}")
        if draft_model is not None and not config.num_speculative_tokens:
            raise HerdError("num_speculative_tokens=0 with a draft model: set how many tokens it drafts at most")
        self.model, self.version = model, 0
        self.max_model_len = config.max_model_len or min(model.config.max_positions, DEFAULT_MAX_MODEL_LEN)
        weight, int8 = model.transformer.embedding.weight, config.kv_cache_dtype == "int8"
        self._page_bytes = page_bytes(model.config, number_bytes=weight.itemsize, int8=int8)
        num_global, num_local = num_pages(model.config, config, self.max_model_len, self._page_bytes)
        with naming_out_of_memory("lower kv_cache_memory_bytes, max_num_seqs or max_model_len"):
            cache = KVCache(
                model.config,
                num_global=num_global,
                num_local=num_local,
                dtype=weight.dtype,
                device=weight.device,
                int8=int8,
                folder=config.kv_cache_folder,
                routes=record_routes,
            )
        self.cache_bytes = cache.num_bytes
        self._runner, self._records_routes = Runner(model, cache), record_routes
        self._pages = PageManager(
            page_tokens=model.config.page_tokens,
            chunk_size=model.config.chunk_size,
            num_global=num_global,
            num_local=num_local,
            grow=cache.grow,
        )
        self._scheduler: Scheduler[Generation] = Scheduler(
            self._pages,
            max_num_seqs=config.max_num_seqs,
            max_prefill_tokens=config.max_prefill_tokens,
            max_mixed_prefill_tokens=config.max_mixed_prefill_tokens,
        )
        self._num_speculative_tokens = config.num_speculative_tokens
        self._drafter: Drafter = (
            DraftModel(draft_model, model, max_num_seqs=config.max_num_seqs, max_model_len=self.max_model_len)
            if draft_model
            else NGrams()
        )
        self._num_drafted = self._num_accepted = self._num_prefilled = 0
        self._to_wake: dict[AbstractEventLoop, list[EngineRequest]] = {}
        self._inbox: queue.SimpleQueue[list[Generation] | PendingCall | None] = queue.SimpleQueue()
        self._most_used_bytes = 0
        self._closed = False
        self._lock = threading.Lock()
        """Held to put something in the inbox: nothing comes after the engine has closed."""
        self._thread = threading.Thread(target=self._run, name="herd-engine", daemon=True)
        self._thread.start()
        # A thread that is still in C++ code when the interpreter ends would abort the process.
        atexit.register(self.close)

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        seed: int | None = None,
        n: int = 1,
        caller: str = "",
        salt: str = "",
        priority: int = 0,
    ) -> EngineRequest:
        """Ask for `n` answers to one prompt, which is read once. Raises HerdError where the prompt does not fit.

        `seed` replaces that of `params`; answers after the first have seeds derived from it (`EngineRequest.seeds`).
        Without either the system's entropy gives one. Callers share the engine fairly; only requests of the same salt
        share what they begin with; a step of priority is worth herd.engine.scheduler.HEAD_START tokens.
        """
        if not isinstance(prompt, Prompt):
            raise HerdError(f"the prompt is a {type(prompt).__name__}, not what Model.render makes of messages")
        if n < 1:
            raise HerdError(f"n={n} must be at least 1")
        length = len(prompt.token_ids)
        limit = self._max_length(prompt, params)
        patch_rows = self.model.patch_rows(prompt)
        content = content_of(prompt, self.model, patch_rows)
        if seed is None:
            seed = secrets.randbits(63) if params.seed is None else params.seed
        request = EngineRequest(num_prompt=length, seeds=choice_seeds(seed, n))
        for index, one in enumerate(request.seeds):
            scored = params.prompt_logprobs and index == 0  # the others share the pages of the first
            ids = list(prompt.token_ids)
            generation = Generation(
                content=ids if content is prompt.token_ids else list(content),
                num_prompt=length,
                limit=limit,
                caller=caller,
                salt=salt,
                priority=priority,
                reuse=not scored,
                tiles=tiles_of(patch_rows, prompt),
                prompt=prompt,
                ids=ids,
                patch_rows=patch_rows,
                scored=scored,
                num_top=params.logprobs or 0,
                request=request,
                index=index,
                answer=Answer(
                    params,
                    prompt=prompt.token_ids,
                    tokenizer=self.model.tokenizer,
                    end_tokens=self.model.config.special.stop,
                    room=self.max_model_len - length,
                    seed=one,
                    grammar=self.model.structures.start(params.structure) if params.structure else None,
                ),
            )
            request.generations.append(generation)
        self._put(request.generations)
        return request

    async def generate(
        self, prompt: Prompt, params: SamplingParams, *, caller: str = "", salt: str = "", priority: int = 0
    ) -> AsyncGenerator[Piece, None]:
        """Pieces of one answer as they come; closing the iterator cancels the request. Options as for `submit`."""
        request = self.submit(prompt, params, caller=caller, salt=salt, priority=priority)
        async with aclosing(aiter(request)) as pieces:
            async for piece in pieces:
                yield piece

    def stream(
        self, prompt: Prompt, params: SamplingParams, *, caller: str = "", salt: str = "", priority: int = 0
    ) -> Generator[Piece, None, None]:
        """As `generate`, for code without an event loop."""
        yield from self.submit(prompt, params, caller=caller, salt=salt, priority=priority)

    def generate_batch(self, prompts: Sequence[Prompt], params: SamplingParams, *, caller: str = "") -> list[str]:
        """Whole answers, in the order of the prompts."""
        if isinstance(prompts, Prompt | str):
            raise HerdError(f"generate_batch takes a list of prompts, not one {type(prompts).__name__}: put it in [ ]")
        requests: list[EngineRequest] = []
        try:
            for prompt in prompts:
                requests.append(self.submit(prompt, params, caller=caller))
            return [request.result()[0].text for request in requests]
        finally:  # one that is refused or fails ends the others too
            for request in requests:
                request.cancel()

    def update_weights(self, version: int, tensors: Mapping[str, Tensor]) -> str:
        """Replace all weights, by their names in the transformer's state dict, between two steps. Returns the digest
        (herd.engine.weights) of what is then loaded; raises HerdError, and changes nothing, where not all of them fit.

        Running answers go on with the keys and values that they have, tokens from then on by the new weights; a request
        whose prompt is not read to its end begins again. Nothing that older weights computed is shared with requests
        that come later.
        """

        def update() -> str:
            replace_weights(self.model.transformer, tensors)
            self.version = version
            self._scheduler.reset_prefix_cache()
            self._scheduler.restart_prompts()
            return weights_digest(self.model.transformer.state_dict())

        return self._run_between_steps(update)

    def embed(self, prompts: Sequence[Prompt]) -> list[list[float]]:
        """Unit vectors [D] of texts (herd.engine.score.mean_pooled), each computed between two steps."""
        for prompt in prompts:
            if not 0 < len(prompt.token_ids) <= self.max_model_len:
                raise HerdError(
                    f"a text has {len(prompt.token_ids)} tokens: it must have 1 to {self.max_model_len}, the context"
                )
        return [self._run_between_steps(partial(mean_pooled, self.model, prompt)) for prompt in prompts]

    def flush(self) -> None:
        """Empty the prefix cache between two steps: later requests compute their whole prompts. Running requests keep
        their pages."""
        self._run_between_steps(self._scheduler.reset_prefix_cache)

    def stats(self) -> dict[str, int]:
        """Requests, pages and tokens counted, for a display or a log; the engine does not stop for it."""
        global_bytes, local_bytes = self._page_bytes
        shared_bytes = self._pages.global_pages.num_evictable * global_bytes
        return {
            "running": len(self._scheduler.running),
            "waiting": sum(map(len, list(self._scheduler.waiting.values()))),
            "preempted": self._scheduler.num_preempted,
            "prefilled": self._num_prefilled,
            "cache_bytes": self.cache_bytes,
            "used_bytes": self._used_bytes(),
            "most_used_bytes": self._most_used_bytes,
            "shared_bytes": shared_bytes + self._pages.local_pages.num_evictable * local_bytes,
            "version": self.version,
            "drafted": self._num_drafted,
            "accepted": self._num_accepted,
        }

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Stop the engine's thread; running requests end with an error."""
        with self._lock:
            self._closed = True
            self._inbox.put(None)
        self._thread.join()
        atexit.unregister(self.close)

    def _put(self, news: list[Generation] | PendingCall) -> None:
        with self._lock:
            if self._closed:
                raise HerdError("the engine is closed")
            self._inbox.put(news)

    def _run_between_steps(self, function: Callable[[], T]) -> T:
        """Call a function on the engine's thread, between two steps."""
        done: Future[T] = Future()
        self._put(PendingCall(function, done))
        return done.result()

    def _max_length(self, prompt: Prompt, params: SamplingParams) -> int:
        """Tokens that prompt and answer may have together. Raises HerdError where they do not fit."""
        length, vocab_size = len(prompt.token_ids), self.model.config.vocab_size
        if not length:
            raise HerdError("the prompt has no tokens")
        if min(prompt.token_ids) < 0 or max(prompt.token_ids) >= vocab_size:
            wrong = next(token for token in prompt.token_ids if not 0 <= token < vocab_size)
            raise HerdError(f"the prompt has the token {wrong}: the model's are 0 to {vocab_size - 1}")
        if length >= self.max_model_len:
            raise HerdError(f"the prompt has {length} tokens, the context holds {self.max_model_len}: shorten it")
        limit = min(length + params.max_tokens, self.max_model_len)
        if not self._scheduler.fits(limit):
            raise HerdError(
                f"the prompt has {length} tokens and the answer may have {limit - length}: their keys and values are "
                f"{self._bytes_of_length(limit):,} bytes, the cache has {self.cache_bytes:,}: lower max_tokens or "
                "raise kv_cache_memory_bytes"
            )
        return limit

    def _used_bytes(self) -> int:
        """Bytes of the pages that running requests hold."""
        pools = zip((self._pages.global_pages, self._pages.local_pages), self._page_bytes, strict=True)
        return sum((pool.size - pool.num_free - pool.num_evictable) * size for pool, size in pools)

    def _bytes_of_length(self, length: int) -> int:
        return sum(number * size for number, size in zip(self._pages.num_pages(length), self._page_bytes, strict=True))

    def _run(self) -> None:
        with torch.inference_mode():
            while not self._closed:
                self._process_inbox()
                try:
                    if not self._scheduler.idle:
                        with naming_out_of_memory("lower max_prefill_tokens, max_num_seqs or kv_cache_memory_bytes"):
                            self._step()
                    self._wake_loops()
                except Exception as error:  # a fault must reach the callers, not die with the thread
                    self._fail_all(f"generation failed: {type(error).__name__}: {error}", "fault")
        self._process_inbox()
        self._fail_all("the engine was closed", "error")

    def _process_inbox(self) -> None:
        """Process the inbox; wait for something when no request runs."""
        while True:
            try:
                news = self._inbox.get(block=self._scheduler.idle and not self._closed)
            except queue.Empty:
                return
            if isinstance(news, PendingCall):
                try:
                    news.done.set_result(news.function())
                except Exception as error:
                    news.done.set_exception(error)
            elif news is not None:
                for generation in news:
                    self._scheduler.add(generation)

    def _step(self) -> None:
        """Schedule, run, sample."""
        if self._num_speculative_tokens:
            self._draft()
        step = self._scheduler.schedule()
        for request in step.cancelled:
            self._emit(request, Piece(text="", token_ids=[], finish_reason="abort"))
        for request, reason in step.refused:
            self._emit(request, Piece(text=reason, token_ids=[], finish_reason="error"))
        for request, error in self._runner.encode(step).items():
            step.scheduled.pop(request, None)
            self._scheduler.finish(request, computed=False)
            self._emit(request, error_piece(error))
        if not step.scheduled:
            return
        self._most_used_bytes = max(self._most_used_bytes, self._used_bytes())
        results = self._runner.run(step)
        sampling: list[tuple[Generation, Tensor]] = []
        for one, result in zip(step.scheduled.values(), results, strict=True):
            # At their place: what was preempted is read again.
            one.request.prompt_logprobs[one.begin :] = result.prompt_logprobs
            one.request.prompt_top[one.begin :] = result.prompt_top
            self._num_prefilled += max(0, min(one.end, one.request.num_prompt) - one.begin)
            if one.num_logits:
                sampling.append((one.request, result.logits_RV))
            else:
                self._scheduler.cache_pages(one.request)
        if sampling:
            self._sample([request for request, _ in sampling], [logits_RV for _, logits_RV in sampling])

    def _draft(self) -> None:
        """Draft what may follow in each running answer."""
        requests = [request for request in self._scheduler.running if request.answer.tokens]
        answers = [request.answer for request in requests]
        chunk = self.model.config.chunk_size
        counts = [num_drafts(answer, self._num_speculative_tokens, chunk_size=chunk) for answer in answers]
        for request, draft in zip(requests, draft_tokens(self._drafter, answers, counts), strict=True):
            request.draft = draft

    def _sample(self, requests: Sequence[Generation], logits: Sequence[Tensor]) -> None:
        """Sample the next tokens of each request, and emit the pieces."""
        pieces = advance(
            [request.answer for request in requests],
            torch.cat(list(logits)),
            [request.draft[: len(logits_RV) - 1] for request, logits_RV in zip(requests, logits, strict=True)],
        )
        for request, piece in zip(requests, pieces, strict=True):
            if request.prompt_logprobs:
                piece = replace(
                    piece, prompt_logprobs=tuple(request.prompt_logprobs), prompt_top=tuple(request.prompt_top)
                )
                request.scored = False  # they are given once
            # What was computed after a rejected draft is dropped; the last token is not computed yet.
            known = len(request.ids)
            for token in request.answer.tokens[known - request.num_prompt :]:
                request.append(token)
            if self._records_routes and piece.finish_reason in ("stop", "length"):
                num_computed = len(request.ids) - (piece.end_token is None)
                piece = replace(piece, routes=self._runner.routes(request, num_computed))
            self._scheduler.truncate(request, len(request.ids) - 1)
            request.draft, request.prompt_logprobs, request.prompt_top = [], [], []
            if piece.finish_reason is None:
                self._scheduler.cache_pages(request)
            else:
                self._scheduler.finish(request)
                self._num_drafted += request.answer.num_drafted
                self._num_accepted += request.answer.num_accepted
            self._emit(request, piece)

    def _emit(self, generation: Generation, piece: Piece) -> None:
        if self.version or generation.index:
            piece = replace(piece, version=self.version, index=generation.index)
        request = generation.request
        request.put(piece)
        if request.loop is not None:
            self._to_wake.setdefault(request.loop, []).append(request)

    def _wake_loops(self) -> None:
        """Wake each event loop once a step: waking it for each piece costs more than sampling the token."""
        for loop, requests in self._to_wake.items():
            # The loop may have gone: that is its own end, not the engine's.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(wake, requests)
        self._to_wake = {}

    def _fail_all(self, message: str, reason: Literal["error", "fault"]) -> None:
        """End every running request, of a closed engine the waiting ones too."""
        for request in [*self._scheduler.running, *(self._scheduler.all_waiting() if self._closed else ())]:
            self._emit(request, Piece(text=message, token_ids=[], finish_reason=reason))
            self._scheduler.finish(request, computed=False)
        self._wake_loops()


def tiles_of(patch_rows: Tensor, prompt: Prompt) -> list[tuple[int, int]]:
    """Of each tile of the prompt, the place of its first token and the one after its last."""
    num_tiles = sum(len(part.pixels) for part in prompt.tiles)
    if not num_tiles:
        return []
    rows = patch_rows.view(num_tiles, -1)
    return [(int(first), int(last) + 1) for first, last in zip(rows[:, 0], rows[:, -1], strict=True)]


def num_pages(
    model: ModelConfig, config: EngineConfig, max_model_len: int, page_bytes: tuple[int, int]
) -> tuple[int, int]:
    """Global and local pages of an engine. Without a budget: for `max_num_seqs` requests of the usual length, and for
    one of `max_model_len` at least."""
    size = model.page_tokens
    longest, chunk = -(-max_model_len // size), -(-min(max_model_len, model.chunk_size) // size)
    usual = -(-min(max_model_len, DEFAULT_MAX_MODEL_LEN) // size)
    num_global, num_local = max(config.max_num_seqs * usual, longest), config.max_num_seqs * chunk
    if config.kv_cache_memory_bytes is None:
        return num_global, num_local
    global_bytes, local_bytes = page_bytes
    budget = config.kv_cache_memory_bytes
    # Local pages are few and every request needs them; they get half of the budget at most, but one chunk in any case.
    if local_bytes:
        num_local = max(chunk, min(num_local, budget // 2 // local_bytes))
    rest = budget - num_local * local_bytes
    num_global = config.max_num_seqs * longest
    if global_bytes:
        num_global = min(num_global, rest // global_bytes)
    if rest < 0 or num_global < 1:
        least = chunk * local_bytes + global_bytes
        raise HerdError(f"kv_cache_memory_bytes={budget} is less than {least}, what one request needs: raise it")
    return num_global, num_local
