"""One very long text, read once and asked many times.

The cache is the engine's (herd.model.cache), with the pages of a single request. Several whole chunks are read in one
forward: local layers do not attend across chunks, and the last layer, which is global, only stores their keys and
values (`Transformer.fill_cache`). Where no other layer is global, a token therefore costs the same however much was
read before it, and a part of the text can be replaced by reading its chunks again, as nothing else in the cache depends
on it. An answer is decoded greedily by the ordinary forward, with exact attention over all that was read.
"""

# N tokens, V vocabulary

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from herd.core.device import send
from herd.engine.model import LoadedModel
from herd.errors import HerdError
from herd.model.cache import CacheView, KVCache, chunk_pieces
from herd.model.certified import ArrangedKeys, Certificate, attend
from herd.model.pack import Pack, pack_sequences
from herd.plan.counts import amount, cache_bytes

CHUNKS_AT_ONCE = 4
"""Whole chunks that a forward reads."""


class Reader:
    """Reads up to `context` tokens with `model`; the question and its answer count too."""

    def __init__(
        self, model: LoadedModel, *, context: int, budget_bytes: int | None = None, dtype: torch.dtype | None = None
    ) -> None:
        config = model.config
        self.model, self.context = model, context
        needed = cache_bytes(config, context)
        if budget_bytes is not None and needed > budget_bytes:
            raise HerdError(
                f"{context:,} tokens need {amount(needed)}B of cache, {amount(budget_bytes)}B are given: "
                "shorten the text or give more"
            )
        weight = model.transformer.embedding.weight
        self.chunk, size = config.chunk_size, config.page_tokens
        self._pages_a_chunk = self.chunk // size
        self.cache = KVCache(
            config,
            num_global=-(-context // size),
            num_local=(CHUNKS_AT_ONCE + 1) * self._pages_a_chunk,
            dtype=dtype or weight.dtype,
            device=weight.device,
        )
        self.device = weight.device
        self._pages = np.arange(-(-context // size), dtype=np.int32)
        self.length = 0
        """Tokens in the cache, from position 0 on."""
        self.certificates: list[Certificate] = []
        """Of each token that was decoded with an `epsilon`, in each global layer."""
        self._arranged: dict[int, ArrangedKeys] = {}

    @property
    def is_linear(self) -> bool:
        """Whether only the last layer is global, so that text can be replaced in place."""
        config = self.model.config
        return [layer for layer in range(config.num_layers) if config.is_global(layer)] == [config.num_layers - 1]

    def read(
        self, tokens: Tensor, *, begin: int | None = None, on_progress: Callable[[int], bool] | None = None
    ) -> None:
        """Read `tokens` from position `begin` on, a chunk's edge; from where reading stopped if not given.

        `on_progress` gets the number of tokens since its last call, and stops the reading by returning False.
        """
        begin = self.length if begin is None else begin
        if begin % self.chunk:
            raise HerdError(f"begin={begin} is not a multiple of the chunk, {self.chunk}")
        if begin + len(tokens) > self.context:
            raise HerdError(f"{begin + len(tokens):,} tokens do not fit in the context of {self.context:,}")
        whole = len(tokens) // self.chunk * self.chunk
        step = CHUNKS_AT_ONCE * self.chunk
        for at in range(0, whole, step):
            part = tokens[at : min(at + step, whole)]
            self._read_chunks(part, begin + at)
            self.length = max(self.length, begin + at + len(part))
            if on_progress is not None and not on_progress(len(part)):
                return
        if whole < len(tokens):
            self._read_piece(tokens[whole:], begin + whole)
        self.length = max(self.length, begin + len(tokens))

    def arrange(self) -> None:
        """Copy the global layers' keys and values, like beside like, so that answers may leave some unread. It holds
        until text is read in their place."""
        for layer in range(self.model.config.num_layers):
            if self.model.config.is_global(layer):
                self._arranged[layer] = ArrangedKeys(self.cache.keys[layer], self.cache.values[layer], self.length)

    def _invalidate(self, begin: int) -> None:
        if any(begin < arranged.length for arranged in self._arranged.values()):
            self._arranged.clear()

    def _pages_up_to(self, length: int) -> np.ndarray:
        """The pages of the first `length` positions."""
        return self._pages[: -(-length // self.model.config.page_tokens)]

    def _local_pages(self, place: int) -> range:
        """The local pages of one chunk; the first are those of the piece at the end of the text."""
        return range(place * self._pages_a_chunk, (place + 1) * self._pages_a_chunk)

    @torch.inference_mode()
    def _read_chunks(self, tokens: Tensor, begin: int) -> None:
        """Whole chunks, each a sequence of its own."""
        count = len(tokens) // self.chunk
        self._invalidate(begin)
        pack = pack_sequences(
            tokens.split(self.chunk),
            num_cached=range(begin, begin + len(tokens), self.chunk),
            device=self.device,
        )
        local = [self._local_pages(i + 1) for i in range(count)]
        view = self.cache.view(pack, [self._pages_up_to(begin + len(tokens))] * count, local)
        self.model.transformer.fill_cache(pack, cache=view)

    @torch.inference_mode()
    def _read_piece(self, tokens: Tensor, begin: int) -> None:
        """A piece of one chunk, whose past is in the first local pages."""
        pack, view = self._piece(tokens, begin)
        self.model.transformer.fill_cache(pack, cache=view)

    def _piece(self, tokens: Sequence[int] | Tensor, begin: int) -> tuple[Pack, CacheView]:
        """Tokens of one chunk from position `begin` on, behind what is in the first local pages."""
        self._invalidate(begin)
        pack = pack_sequences([tokens], num_cached=[begin], device=self.device)
        return pack, self.cache.view(pack, [self._pages_up_to(begin + len(tokens))], [self._local_pages(0)])

    @torch.inference_mode()
    def answer(
        self,
        question: Sequence[int],
        *,
        at: int,
        max_tokens: int,
        stop: Sequence[int] = (),
        epsilon: float | None = None,
    ) -> list[int]:
        """Greedy continuation of the text before position `at`, a chunk's edge, and of `question` after it.

        The question overwrites the text after `at`: `preserve_pages` restores it. With an `epsilon`, global layers skip
        pages that provably have no more than this share of a head's attention (herd.model.certified); call `arrange`
        once before.
        """
        assert at % self.chunk == 0 and at <= self.length
        tokens, length = torch.tensor(question), at
        for begin, end in chunk_pieces(at, at + len(question) - 1, self.chunk, self.chunk):
            self._read_piece(tokens[begin - at : end - at], begin)
            length = end
        given: list[int] = []
        token = int(tokens[-1])
        while len(given) < max_tokens:
            token = int(self._logits(token, length, epsilon).argmax())
            length += 1
            given.append(token)
            if token in stop:
                break
        return given

    @torch.inference_mode()
    def likeliest_tokens(self, question: Sequence[int], answer: Sequence[int], *, at: int) -> list[int]:
        """The likeliest token at each place of `answer`, given what of it comes before: all are those of `answer`
        just where `answer` is the greedy continuation. One pass over the cache attend_instead of one for each token."""
        likeliest: list[int] = self._answer_logits(question, answer, at).argmax(-1).tolist()
        return likeliest

    @torch.inference_mode()
    def losses(self, question: Sequence[int], answer: Sequence[int], *, at: int) -> list[float]:
        """Loss of each token of `answer` after what comes before it, in nats."""
        logits_NV = self._answer_logits(question, answer, at).float()
        answer_N = send(torch.tensor(answer), self.device)
        losses: list[float] = F.cross_entropy(logits_NV, answer_N, reduction="none").tolist()
        return losses

    def _answer_logits(self, question: Sequence[int], answer: Sequence[int], at: int) -> Tensor:
        """Logits [N, V] of the tokens of `answer`, behind position `at`, a chunk's edge, and `question`."""
        assert at % self.chunk == 0 and at <= self.length
        assert len(question) + len(answer) <= self.chunk
        tokens, asked = torch.tensor([*question, *answer]), len(question) - 1
        if asked:
            self._read_piece(tokens[:asked], at)
        pack, view = self._piece(tokens[asked:-1], at + asked)
        return self.model.transformer.unembed(self.model.transformer.forward_packed(pack, cache=view))

    def _logits(self, token: int, position: int, epsilon: float | None = None) -> Tensor:
        """Logits after one more token."""
        if position >= self.context:
            raise HerdError(f"the context of {self.context:,} tokens is full")
        pack, view = self._piece([token], position)
        if epsilon is not None:
            if not self._arranged:
                raise HerdError("the text was not arranged, or has changed since: call `arrange` before an epsilon")

            def some(layer: int, q_HC: Tensor) -> Tensor:
                out_HC, certificate = attend(q_HC, self._arranged[layer], position + 1, epsilon)
                self.certificates.append(certificate)
                return out_HC

            view = replace(view, attend_instead=some)
        hidden_ND = self.model.transformer.forward_packed(pack, cache=view)
        return self.model.transformer.unembed(hidden_ND)[0].float()

    @contextmanager
    def preserve_pages(self, chunks: Iterable[int]) -> Iterator[None]:
        """Restore the global pages of these chunks on leaving."""
        config, chunks = self.model.config, sorted(set(chunks))
        rows: list[int] = []
        for chunk in chunks:
            rows += range(chunk * self._pages_a_chunk, min((chunk + 1) * self._pages_a_chunk, len(self._pages)))
        index, length = send(torch.tensor(rows, dtype=torch.int64), self.device), self.length
        pools = [
            pool
            for layer in range(config.num_layers)
            if config.is_global(layer)
            for pool in (self.cache.keys[layer], self.cache.values[layer])
        ]
        before = [pool[index] for pool in pools]
        try:
            yield
        finally:
            for pool, pages in zip(pools, before, strict=True):
                pool[index] = pages
            self.length = length
            self._invalidate(chunks[0] * self.chunk if chunks else length)
