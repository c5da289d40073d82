"""Keys and values of running requests, in pages.

A page holds `config.page_tokens` tokens of one request. There are two pools: a global page holds the same tokens
in all global layers, a local page in all local layers, so that the bookkeeping (herd.engine.pages) knows nothing of
layers. A request's tokens fill its pages in order. Local layers see the current chunk alone: there a table holds the
chunk's pages only, and begins anew at the edge.

`attend_pages` reads them: a running maximum over blocks of keys, always cut at the same places of the span, so that a
token's sums do not depend on what is computed beside it or on how the prompt was cut. Where tokens go is planned on
the host, once a forward for all layers. Source of paging: Kwon et al., "Efficient Memory Management for Large Language
Model Serving with PagedAttention" (2023).
"""

# N tokens, S sequences of this forward, B pages of a sequence, H query heads, C head width; of the stored keys and
# values: P pages, K key heads, L tokens of a page. G sequences computed together, Q queries of each

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from herd import native
from herd.config import ModelConfig
from herd.core.device import send
from herd.model.pack import Pack
from herd.model.page_store import PageFile, WrittenPages, store_int8
from herd.model.precision import FEWEST_ROWS

BLOCK_KEYS = 256
"""Keys whose scores exist at one time, rounded to whole pages."""
BLOCK_QUERIES = 256
"""Queries of one sequence whose scores exist at one time."""


class KVCache:
    """Two pools of pages: `num_global` for the global layers, `num_local` for the local ones."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_global: int,
        num_local: int,
        dtype: torch.dtype,
        device: torch.device,
        int8: bool = False,
        folder: Path | None = None,
        routes: bool = False,
        page_tokens: int | None = None,
    ) -> None:
        """Global pages in 8 bits with `int8`, in a file in `folder` if one is given; see herd.model.page_store. With
        `routes` the experts of each token are kept beside them. `page_tokens`, a divisor of the config's, replaces
        it."""
        self.config, self.int8 = config, int8
        self.page_tokens = page_tokens or config.page_tokens
        heads, size, width = config.num_kv_heads, self.page_tokens, config.head_dim
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.scales: list[tuple[Tensor, Tensor] | None] = []
        """Of each layer's keys [P, K, C] and values [P, K, L], where they are in 8 bits."""
        self._file = PageFile(folder)
        for layer in range(config.num_layers):
            is_global = config.is_global(layer)
            store, pages = (self._file, num_global) if is_global else (PageFile(None), num_local)
            kind = torch.int8 if int8 and is_global else dtype
            # Zeros: what is masked must still be finite.
            self.keys.append(store.zeros(pages, (heads, size, width), kind, device))
            self.values.append(store.zeros(pages, (heads, size, width), kind, device))
            self.scales.append(
                (
                    store.zeros(pages, (heads, width), torch.bfloat16, device),
                    store.zeros(pages, (heads, size), torch.bfloat16, device),
                )
                if kind == torch.int8
                else None
            )

        experts = sum(map(config.is_moe, range(config.num_layers))) * config.moe.top_k
        self.routes: Tensor | None = None
        """uint8 [P, L, mixture layers * top_k], on the host. In global pages, as all tokens of a request have those;
        so routes are shared, copied and dropped with the keys and values of their tokens."""
        if routes:
            self.routes = torch.zeros(num_global, size, experts, dtype=torch.uint8)

    @property
    def num_bytes(self) -> int:
        return sum(sum(tensor.nbytes for tensor in self._tensors(layer)) for layer in range(self.config.num_layers))

    def grow(self, num_global: int) -> None:
        """Room for the first `num_global` global pages, where they are in a file; OSError when the disk is full."""
        self._file.grow(num_global)

    def copy_page(self, source: int, target: int, *, is_global: bool) -> None:
        """Copy a page of one pool in all its layers."""
        for layer in range(self.config.num_layers):
            if self.config.is_global(layer) == is_global:
                for tensor in self._tensors(layer):
                    tensor[target] = tensor[source]
        if is_global and self.routes is not None:
            self.routes[target] = self.routes[source]

    def _tensors(self, layer: int) -> list[Tensor]:
        return [self.keys[layer], self.values[layer], *(self.scales[layer] or ())]

    def view(
        self,
        pack: Pack,
        global_pages: Sequence[Sequence[int] | np.ndarray],
        local_pages: Sequence[Sequence[int] | np.ndarray],
    ) -> "CacheView":
        """The view for one forward: sequence s of the pack has the pages `global_pages[s]`, all from position 0 on, and
        `local_pages[s]`, from its current chunk's beginning on; what the forward adds has its room in them.

        Within a forward each sequence must stay inside one chunk; `chunk_pieces` cuts a prompt so.
        """

        def map_slots(tables: Sequence[Sequence[int] | np.ndarray], span_N: Tensor) -> SlotMapping:
            table = np.zeros((len(tables), max(1, *map(len, tables)) if tables else 1), dtype=np.int32)
            for row, pages in zip(table, tables, strict=True):
                row[: len(pages)] = pages
            return SlotMapping(
                table_SB=torch.from_numpy(table),
                seen_S=span_N[pack.starts_S[:-1]],
                span_N=span_N,
                starts_S=pack.starts_S,
                page_tokens=self.page_tokens,
                device=self.keys[0].device,
            )

        return CacheView(
            cache=self,
            starts_S=pack.starts_S,
            global_pages=map_slots(global_pages, pack.positions_N),
            local_pages=map_slots(local_pages, pack.positions_N % self.config.chunk_size),
        )


@dataclass(frozen=True, kw_only=True)
class SlotMapping:
    """Where the tokens of one forward are stored in one pool; a span is the request, or in local layers its current
    chunk. The fields are on the host, the properties on `device`.
    """

    table_SB: Tensor
    """int32, each sequence's pages in the order of the span."""
    seen_S: Tensor
    """int64, keys of the span before this forward."""
    span_N: Tensor
    """int64, the place of each new token in its span."""
    starts_S: Tensor
    page_tokens: int
    device: torch.device

    @cached_property
    def _page_N(self) -> Tensor:
        """int64 (the native forward finds them itself)."""
        lengths = torch.diff(self.starts_S).long()
        sequence_N = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        return self.table_SB[sequence_N, self.span_N // self.page_tokens].long()

    @cached_property
    def page_N(self) -> Tensor:
        """int64, the page that each new token goes to, …"""
        return send(self._page_N, self.device)

    @cached_property
    def slot_N(self) -> Tensor:
        """… and its place there."""
        return send(self.span_N % self.page_tokens, self.device)

    @cached_property
    def written(self) -> WrittenPages:
        """The pages that new tokens go to."""
        return WrittenPages.of(self._page_N, self.span_N % self.page_tokens, self.page_tokens, self.device)

    @cached_property
    def queries(self) -> "list[Queries]":
        """The rows of the forward, in the parts in which their attention is computed."""
        return plan_queries(self.table_SB, self.seen_S, self.starts_S, self.device)


@dataclass(frozen=True, kw_only=True)
class CacheView:
    """The cache for one forward: which pages each sequence reads and writes."""

    cache: KVCache
    starts_S: Tensor
    global_pages: SlotMapping
    local_pages: SlotMapping
    attend_instead: Callable[[int, Tensor], Tensor] | None = None
    """What a global layer does for one new token in place of `attend_pages`: (layer, q_HC) to out_HC."""

    def attend(self, layer: int, q_NHC: Tensor, k_NKC: Tensor, v_NKC: Tensor) -> Tensor:
        """Store the new keys and values, then attend to everything that the layer may see."""
        slots = self.store(layer, k_NKC, v_NKC)
        if self.attend_instead is not None and len(q_NHC) == 1 and self.cache.config.is_global(layer):
            return self.attend_instead(layer, q_NHC[0])[None].to(q_NHC.dtype)
        keys_PKLC, values_PKLC = self.cache.keys[layer], self.cache.values[layer]
        asked, scales = (q_NHC, keys_PKLC, values_PKLC), self.cache.scales[layer]
        if scales is not None or native.why_not(q_NHC, native.PAGES):
            return attend_pages(*asked, slots.queries, scales=scales)
        return native.attend_pages(*asked, slots.table_SB, slots.seen_S, self.starts_S)

    def store(self, layer: int, k_NKC: Tensor, v_NKC: Tensor) -> SlotMapping:
        """Store the new keys and values; returns where the layer finds them and the older ones."""
        slots = self.global_pages if self.cache.config.is_global(layer) else self.local_pages
        keys_PKLC, values_PKLC = self.cache.keys[layer], self.cache.values[layer]
        if (scales := self.cache.scales[layer]) is not None:
            store_int8(keys_PKLC, values_PKLC, *scales, slots.written, k_NKC, v_NKC)
        else:
            keys_PKLC[slots.page_N, :, slots.slot_N] = k_NKC
            values_PKLC[slots.page_N, :, slots.slot_N] = v_NKC
        return slots


@dataclass(frozen=True, kw_only=True)
class Queries:
    """Rows whose attention is computed together: one each of several sequences, or several of one."""

    rows_GQ: Tensor
    """Their places in the pack."""
    table_GB: Tensor
    last_GQ: Tensor
    """Query i of sequence g sees the positions 0 … last_GQ[g, i] of the span in the pages of table_GB[g]."""
    greatest: int
    """Of `last_GQ`, on the host."""


def plan_queries(table_SB: Tensor, seen_S: Tensor, starts_S: Tensor, device: torch.device) -> list[Queries]:
    """Row n of sequence s sees the positions 0 … seen_S[s] + (n - starts_S[s]) of the span in the pages of table_SB[s].

    What is given is on the host.
    """

    def part(sequences: list[int], rows_GQ: Tensor) -> Queries:
        last_GQ = rows_GQ + (seen_S - starts_S[:-1])[sequences][:, None]
        return Queries(
            rows_GQ=send(rows_GQ, device),
            table_GB=send(table_SB[sequences], device),
            last_GQ=send(last_GQ, device),
            greatest=int(last_GQ.max()),
        )

    starts = starts_S.tolist()
    single = [s for s in range(len(seen_S)) if starts[s + 1] - starts[s] == 1]
    found = [part(single, starts_S[single].long()[:, None])] if single else []
    for s in set(range(len(seen_S))).difference(single):
        for begin in range(starts[s], starts[s + 1], BLOCK_QUERIES):
            found.append(part([s], torch.arange(begin, min(begin + BLOCK_QUERIES, starts[s + 1]))[None]))
    return found


def attend_pages(
    q_NHC: Tensor,
    keys_PKLC: Tensor,
    values_PKLC: Tensor,
    queries: Sequence[Queries],
    *,
    scales: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attention of rows to the pages that they see. The keys and values of these rows are in their pages already, with
    `scales` in 8 bits. Sums in fp32."""
    out_NHC = torch.empty_like(q_NHC)
    for part in queries:
        out_NHC[part.rows_GQ] = _attend(q_NHC[part.rows_GQ], keys_PKLC, values_PKLC, part, scales)
    return out_NHC


def _attend(
    q_GQHC: Tensor,
    keys_PKLC: Tensor,
    values_PKLC: Tensor,
    part: Queries,
    scales: tuple[Tensor, Tensor] | None,
) -> Tensor:
    (groups, queries, heads, width), (kv_heads, size) = q_GQHC.shape, keys_PKLC.shape[1:3]
    ratio, step = heads // kv_heads, max(1, BLOCK_KEYS // size)
    table_GB, last_GQ = part.table_GB, part.last_GQ
    # Whole blocks, and as many rows as `batch_invariant` asks for: a row's sums are the same whatever is beside it.
    table_GB = F.pad(table_GB, (0, -table_GB.shape[1] % step))
    if lacking := max(0, FEWEST_ROWS - queries):
        q_GQHC, last_GQ = F.pad(q_GQHC, (0, 0, 0, 0, 0, lacking)), F.pad(last_GQ, (0, lacking))
        queries += lacking
    # The query heads that share a key head are adjacent, as rows of one product.
    q = (q_GQHC.float() * width**-0.5).view(groups, queries, kv_heads, ratio, width).permute(0, 2, 3, 1, 4)
    q = q.reshape(groups, kv_heads, ratio * queries, width)
    last = last_GQ.repeat(1, ratio)[:, None, :, None]
    top = q.new_full((*q.shape[:3], 1), float("-inf"))
    total, out = torch.zeros_like(top), torch.zeros_like(q)
    for begin in range(0, part.greatest // size + 1, step):
        pages = table_GB[:, begin : begin + step]
        k, v = keys_PKLC[pages].float(), values_PKLC[pages].float()
        if scales is not None:
            k, v = k * scales[0][pages].unsqueeze(-2), v * scales[1][pages].unsqueeze(-1)
        k, v = (x.transpose(1, 2).flatten(2, 3) for x in (k, v))
        position = begin * size + torch.arange(k.shape[2], device=q.device)
        score = (q @ k.mT).masked_fill_(position > last, float("-inf"))
        higher = torch.maximum(top, score.amax(-1, keepdim=True))
        weight, fade = torch.exp(score - higher), torch.exp(top - higher)
        total, out, top = total * fade + weight.sum(-1, keepdim=True), out * fade + weight @ v, higher
    out = (out / total).view(groups, kv_heads, ratio, queries, width).permute(0, 3, 1, 2, 4)
    return out[:, : queries - lacking].flatten(2, 3).to(q_GQHC.dtype)


class Slots:
    """Pages of a fixed number of requests of at most `capacity` tokens, for callers without a scheduler: scoring,
    benches."""

    def __init__(
        self, config: ModelConfig, *, num_slots: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        wide, narrow = (-(-min(capacity, limit) // config.page_tokens) for limit in (capacity, config.chunk_size))
        self.cache = KVCache(
            config, num_global=num_slots * wide, num_local=num_slots * narrow, dtype=dtype, device=device
        )
        self._global = np.arange(num_slots * wide).reshape(num_slots, wide)
        self._local = np.arange(num_slots * narrow).reshape(num_slots, narrow)

    def view(self, pack: Pack, slots: Sequence[int]) -> CacheView:
        """As `KVCache.view`, by slots."""
        return self.cache.view(pack, [self._global[slot] for slot in slots], [self._local[slot] for slot in slots])

    def copy_slot(self, source: int) -> None:
        """Give every slot the past of slot `source`."""
        for is_global, tables in ((True, self._global), (False, self._local)):
            for table in tables:
                for page, target in zip(tables[source].tolist(), table.tolist(), strict=True):
                    self.cache.copy_page(page, target, is_global=is_global)


def chunk_pieces(begin: int, end: int, chunk_size: int, longest: int) -> list[tuple[int, int]]:
    """Cut positions [begin, end) into pieces of at most `longest` that no chunk edge divides."""
    pieces = []
    while begin < end:
        stop = min(end, begin + longest, (begin // chunk_size + 1) * chunk_size)
        pieces.append((begin, stop))
        begin = stop
    return pieces
