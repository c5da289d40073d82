"""Attention of documents that begin alike, where the beginning is computed once.

A query of a document's own tokens sees all of the beginning and its own past, in one softmax over both. The scores of
the beginning are one product for all documents that have it: with long beginnings and short ends that is a fraction of
what each document by itself costs. Sums are in another order than there. Plain operators, for any device.
"""

# M tokens, H query heads, K key heads, C head width, G documents of a part, L length of their own tokens, P of what
# they begin with, R query heads of a key head

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from herd.model.gather import Gather, Restore


@dataclass(frozen=True, kw_only=True)
class Part:
    """Documents of like lengths with one beginning; without one of their own if `length` is 0."""

    begin: int
    """Where it is among the M tokens."""
    length: int
    shape: tuple[int, int]
    """How many documents, and the length to which their own tokens are padded."""


@dataclass(frozen=True, kw_only=True)
class Prefixes:
    """Who attends to what among the M tokens."""

    parts: tuple[Part, ...]
    row_of_slot: Tensor
    """The token in each slot when the documents' own tokens of all parts are laid end to end, padded."""
    slot_M: Tensor
    """The slot of each token."""


def plan_prefixes(documents: Sequence[tuple[int, int, int, int]], device: torch.device) -> Prefixes:
    """Of each document: where its beginning is and how long, where its own tokens are and how many; the own tokens of
    all are the M, each once."""
    found: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
    for begin, length, own, count in documents:
        found.setdefault((begin if length else 0, length, count + -count % 16), []).append((own, count))
    rows, offset, parts = [], 0, []
    slot_M = torch.empty(sum(count for *_, count in documents), dtype=torch.int64)
    for (begin, length, padded), members in found.items():
        for own, count in members:
            rows.append(torch.arange(own, own + padded).clamp(max=own + count - 1))
            slot_M[own : own + count] = torch.arange(offset, offset + count)
            offset += padded
        parts.append(Part(begin=begin, length=length, shape=(len(members), padded)))
    return Prefixes(parts=tuple(parts), row_of_slot=torch.cat(rows).to(device), slot_M=slot_M.to(device))


def attend_prefixes(q_MHC: Tensor, k_MKC: Tensor, v_MKC: Tensor, prefixes: Prefixes) -> Tensor:
    """Attention of every token over its document's earlier tokens; returns the shape of `q_MHC`."""
    heads, kv_heads = q_MHC.shape[1], k_MKC.shape[1]
    packed = torch.cat([q_MHC, k_MKC, v_MKC], dim=1)
    slots = Gather.apply(packed.flatten(1), prefixes.row_of_slot, prefixes.slot_M).unflatten(1, packed.shape[1:])
    outs = []
    sizes = [part.shape[0] * part.shape[1] for part in prefixes.parts]
    for part, own in zip(prefixes.parts, slots.split(sizes), strict=True):
        q, k, v = own.unflatten(0, part.shape).split([heads, kv_heads, kv_heads], dim=2)
        there = slice(part.begin, part.begin + part.length)
        outs.append(_attend(q, k, v, k_MKC[there], v_MKC[there]).flatten(0, 1))
    out: Tensor = Restore.apply(torch.cat(outs), prefixes.slot_M)
    return out


def _attend(q_GLHC: Tensor, k_GLKC: Tensor, v_GLKC: Tensor, k_PKC: Tensor, v_PKC: Tensor) -> Tensor:
    runs, length, heads, width = q_GLHC.shape
    kv_heads, before = k_GLKC.shape[2], len(k_PKC)
    ratio = heads // kv_heads
    q_KGRLC = (q_GLHC * width**-0.5).view(runs, length, kv_heads, ratio, width).permute(2, 0, 3, 1, 4)
    q = q_KGRLC.reshape(kv_heads * runs, ratio * length, width)
    k = k_GLKC.permute(2, 0, 3, 1).reshape(kv_heads * runs, width, length)
    v = v_GLKC.permute(2, 0, 1, 3).reshape(kv_heads * runs, length, width)
    mask_LL = torch.full((length, length), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    own = torch.baddbmm(mask_LL.repeat(ratio, 1), q, k)
    if not before:
        out = torch.softmax(own, dim=-1) @ v
    else:
        of_prefix = torch.bmm(q.view(kv_heads, -1, width), k_PKC.permute(1, 2, 0))
        scores = torch.cat([of_prefix.view(*own.shape[:2], before), own], dim=-1)
        share = torch.softmax(scores, dim=-1)
        seen = torch.bmm(share[..., :before].reshape(kv_heads, -1, before), v_PKC.transpose(0, 1))
        out = seen.view(q.shape) + share[..., before:] @ v
    return out.view(kv_heads, runs, ratio, length, width).permute(1, 3, 0, 2, 4).reshape(q_GLHC.shape)
