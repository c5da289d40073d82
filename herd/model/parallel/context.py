"""Attention over documents that are split over several ranks: a ring that passes keys and values, merged by
log-sum-exp.

The token axis is cut into pieces (see pieces). Only the first run of a piece can begin in an earlier one, its
"head", and only the last run can go on in a later one, its "tail". So a head attends causally to itself and, without
any mask, to the tails of its run before it; all other runs are whole on their rank and computed as ever. Tails go
round the ring, forward and, with their gradients, backward (Ring Attention, arXiv 2310.01889). Where no local layer's
chunk is cut, local layers pass nothing. Positions are each token's own, so rotations and temperatures are right.
"""

# N tokens of this rank, T rows of a tail, Q rows of a head, H query heads, K key heads, C head width

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from herd.core.device import send
from herd.model.attention import Attention, AttentionPlan, Spans, attend
from herd.model.cache import CacheView
from herd.model.parallel.mesh import Mesh
from herd.model.parallel.pieces import chunk_begins, context_cuts, own_pieces
from herd.model.transformer import Transformer

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Ring:
    """Who needs what in layers whose runs are cut."""

    tails: tuple[tuple[int, int], ...]
    """Rows of every rank's two tails, 0 for none."""
    tail_rows_T: Tensor
    """This rank's tails on its own token axis."""
    heads: tuple[int, ...]
    """Rows of this rank's heads."""
    head_rows_Q: Tensor
    needs: tuple[tuple[tuple[int, int], ...], ...]
    """Of each head: the tails before it, as (rank, which of its two)."""
    rest_rows: Tensor
    rest: Spans
    """All other rows, and their runs."""

    def visible_tails(self, owner: int) -> list[tuple[int, int]]:
        """Which of this rank's heads see which of that rank's tails."""
        return [(head, which) for head, tails in enumerate(self.needs) for rank, which in tails if rank == owner]


def plan_ring(begins: Sequence[int], cuts: Sequence[int], rank: int, ranks: int, device: torch.device) -> Ring | None:
    """The ring for runs that begin at `begins` (the last entry the end), on `device`; None where no cut goes through a
    run."""

    def run_of(row: int) -> int:
        return bisect_right(begins, row) - 1

    known, pieces = set(begins), list(pairwise(cuts))
    tail_of = {
        piece: (max(begin, begins[run_of(end - 1)]), end)
        for piece, (begin, end) in enumerate(pieces)
        if begin < end and end not in known
    }
    if not tail_of:
        return None
    tail_rows: list[int] = []
    head_rows: list[int] = []
    rest_rows: list[int] = []
    heads, needs, rest_begins = [], [], []
    base = 0
    for piece in own_pieces(rank, ranks):
        begin, end = pieces[piece]
        first = begin
        if begin < end and begin not in known:
            first = min(end, begins[run_of(begin) + 1])
            heads.append(first - begin)
            before = [j for j in range(piece) if j in tail_of and run_of(tail_of[j][0]) == run_of(begin)]
            needs.append(tuple((j, 0) if j < ranks else (2 * ranks - 1 - j, 1) for j in before))
        head_rows += range(base, base + first - begin)
        if piece in tail_of:
            tail_rows += range(base + tail_of[piece][0] - begin, base + end - begin)
        inside = begins[bisect_left(begins, first) : bisect_left(begins, end)]
        rest_begins += [len(rest_rows) + at - first for at in inside]
        rest_rows += range(base + first - begin, base + end - begin)
        base += end - begin

    def length(piece: int) -> int:
        return tail_of[piece][1] - tail_of[piece][0] if piece in tail_of else 0

    def tensor(rows: list[int]) -> Tensor:
        return send(torch.tensor(rows, dtype=torch.int64), device)

    one, other = zip(*(own_pieces(r, ranks) for r in range(ranks)), strict=True)
    return Ring(
        tails=tuple((length(i), length(j)) for i, j in zip(one, other, strict=True)),
        tail_rows_T=tensor(tail_rows),
        heads=tuple(heads),
        head_rows_Q=tensor(head_rows),
        needs=tuple(needs),
        rest_rows=tensor(rest_rows),
        rest=Spans(begins_S=torch.tensor([*rest_begins, len(rest_rows)]), device=device),
    )


class Context:
    """The pieces of the forward under way, which its layers look up."""

    def __init__(self, mesh: Mesh, chunk_size: int) -> None:
        self.mesh, self.chunk_size = mesh, chunk_size
        self.whole: Ring | None = None
        self.local: Ring | None = None

    def plan(self, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Before a forward: plan the rings from all context ranks' starts, and give the model this rank's own."""
        starts_S, device = kwargs["starts_S"], args[0].device
        starts, rank, ranks = starts_S.tolist(), self.mesh.place["context"], self.mesh.sizes["context"]
        cuts = context_cuts(starts, self.chunk_size, ranks)
        self.whole = plan_ring(starts, cuts, rank, ranks, device)
        self.local = plan_ring(chunk_begins(starts, self.chunk_size), cuts, rank, ranks, device)
        own, base = [], 0
        for piece in own_pieces(rank, ranks):
            begin, end = cuts[piece], cuts[piece + 1]
            own += [base + start - begin for start in {begin, *starts} if begin <= start < end]
            base += end - begin
        return args, kwargs | {"starts_S": starts_S.new_tensor([*sorted(own), base])}


class RingAttention(Attention):
    """Attention whose runs may be split over the ranks along `context`."""

    context: Context

    def forward(self, x_ND: Tensor, shared: AttentionPlan, cache: CacheView | None) -> Tensor:
        ring = self.context.whole if self.is_global else self.context.local
        if ring is None:
            return super().forward(x_ND, shared, cache)
        q_NHC, k_NKC, v_NKC = self.prepare_qkv(self.qkv(x_ND).unflatten(-1, (-1, self.config.head_dim)), shared)
        rest = [x.index_select(0, ring.rest_rows) for x in (q_NHC, k_NKC, v_NKC)]
        parts = [attend(rest[0], rest[1], rest[2], ring.rest.groups)]
        parts.append(_Heads.apply(q_NHC, k_NKC, v_NKC, ring, self.context.mesh))
        rows = torch.cat([ring.rest_rows, ring.head_rows_Q])
        out_NHC = torch.empty_like(q_NHC).index_copy(0, rows, torch.cat(parts))
        return self.out(out_NHC.flatten(1))


def make_ring(model: Transformer, mesh: Mesh) -> None:
    """Have the model's attention reach over the ranks along `context`."""
    context = Context(mesh, model.config.chunk_size)
    model.register_forward_pre_hook(context.plan, with_kwargs=True)
    for module in model.layers.modules():
        if isinstance(module, Attention):
            module.__class__ = RingAttention
            module.context = context  # type: ignore[assignment]


class _Heads(torch.autograd.Function):
    """The attention of a rank's heads, [Q, H, C]."""

    @staticmethod
    def forward(ctx, q_NHC, k_NKC, v_NKC, ring, mesh):  # type: ignore[no-untyped-def]
        heads = list(zip(*(x[ring.head_rows_Q].split(ring.heads) for x in (q_NHC, k_NKC, v_NKC)), strict=True))
        outs, sums = [], []
        for q, k, v in heads:
            out, lse = attention(q, k, v, causal=True)
            outs.append(out.float())
            sums.append(lse)
        own_T = tail_T = torch.cat([k_NKC, v_NKC], 1)[ring.tail_rows_T]
        for owner in owners(mesh):
            if owner != mesh.place["context"]:
                [tail_T] = mesh.pass_on([tail_T], sum(ring.tails[owner]), "context")
            for head, which in ring.visible_tails(owner):
                k, v = tail_T.split(ring.tails[owner])[which].chunk(2, 1)
                out, lse = attention(heads[head][0], k, v, causal=False)
                joint = torch.logaddexp(sums[head], lse)
                old, new = (sums[head] - joint).exp()[..., None], (lse - joint).exp()[..., None]
                outs[head], sums[head] = outs[head] * old + out.float() * new, joint
        outs = [out.to(q_NHC.dtype) for out in outs]
        ctx.save_for_backward(own_T, *outs, *sums, *(x for head in heads for x in head))
        ctx.plan, ctx.shapes = (ring, mesh), (q_NHC.shape, k_NKC.shape)
        return torch.cat(outs) if outs else q_NHC[:0]

    @staticmethod
    def backward(ctx, grad_QHC):  # type: ignore[no-untyped-def]
        ring, mesh = ctx.plan
        tail_T, *saved = ctx.saved_tensors
        count = len(ring.heads)
        outs, sums, rows = saved[:count], saved[count : 2 * count], saved[2 * count :]
        heads = [rows[3 * i : 3 * i + 3] for i in range(count)]
        grads = grad_QHC.split(ring.heads) if count else ()
        grad_q, grad_kv = [], []
        for (q, k, v), out, lse, grad in zip(heads, outs, sums, grads, strict=True):
            dq, dk, dv = attention_backward(grad, q, k, v, out, lse, causal=True)
            grad_q.append(dq.float())
            grad_kv.append(torch.cat([dk, dv], 1).float())
        grad_T = torch.zeros_like(tail_T, dtype=torch.float32)
        for owner in owners(mesh):
            if owner != mesh.place["context"]:
                tail_T, grad_T = mesh.pass_on([tail_T, grad_T], sum(ring.tails[owner]), "context")
            for head, which in ring.visible_tails(owner):
                k, v = tail_T.split(ring.tails[owner])[which].chunk(2, 1)
                dq, dk, dv = attention_backward(grads[head], heads[head][0], k, v, outs[head], sums[head], causal=False)
                grad_q[head] += dq
                grad_T.split(ring.tails[owner])[which].add_(torch.cat([dk, dv], 1))
        [grad_T] = mesh.pass_on([grad_T], len(ring.tail_rows_T), "context")  # the last step brings it home
        shape_q, shape_k = ctx.shapes
        out_q = grad_QHC.new_zeros(shape_q)
        out_kv = grad_QHC.new_zeros(shape_k[0], 2 * shape_k[1], shape_k[2], dtype=torch.float32)
        if count:
            out_q.index_copy_(0, ring.head_rows_Q, torch.cat(grad_q).to(out_q.dtype))
            out_kv.index_copy_(0, ring.head_rows_Q, torch.cat(grad_kv))
        out_kv.index_add_(0, ring.tail_rows_T, grad_T)
        return out_q, *out_kv.to(out_q.dtype).chunk(2, 1), None, None


def owners(mesh: Mesh) -> list[int]:
    """Whose tails a rank holds, step by step."""
    ranks = mesh.sizes["context"]
    return [(mesh.place["context"] - step) % ranks for step in range(ranks)]


# The one place that chooses an operator by device. Both take [1, heads, rows, C] and give the log-sum-exp of each row.
# CUDA: PyTorch's flash attention, bf16; written by its signature, untested on hardware.


def attention(q_QHC: Tensor, k_TKC: Tensor, v_TKC: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
    """Attention of rows to rows, and its log-sum-exp [Q, H]."""
    q, k, v = to_sdpa(q_QHC, k_TKC, causal), expand_keys(k_TKC, q_QHC, causal), expand_keys(v_TKC, q_QHC, causal)
    if q.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
    else:
        out, lse = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)[:2]
    return from_sdpa(out, q_QHC), from_sdpa(lse[..., None], q_QHC)[..., 0]


def attention_backward(
    grad_QHC: Tensor, q_QHC: Tensor, k_TKC: Tensor, v_TKC: Tensor, out_QHC: Tensor, lse_QH: Tensor, *, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of one part, given the output and the log-sum-exp over all parts."""
    grad, q, out = (to_sdpa(x, k_TKC, causal) for x in (grad_QHC, q_QHC, out_QHC))
    k, v, lse = (
        expand_keys(k_TKC, q_QHC, causal),
        expand_keys(v_TKC, q_QHC, causal),
        to_sdpa(lse_QH[..., None], k_TKC, causal),
    )
    inputs = grad, q, k, v, out, lse[..., 0]
    if q.device.type == "cpu":
        dq, dk, dv = aten._scaled_dot_product_flash_attention_for_cpu_backward(*inputs, 0.0, causal)
    else:
        state = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of the dropout, which there is none of
        dq, dk, dv = aten._scaled_dot_product_flash_attention_backward(
            *inputs, None, None, q.shape[2], k.shape[2], 0.0, causal, state, state[:0]
        )
    shape = (len(k_TKC), k_TKC.shape[1], -1, k_TKC.shape[2])
    return from_sdpa(dq, q_QHC), *(x[0].transpose(0, 1).reshape(shape).sum(2) for x in (dk, dv))


def to_sdpa(x_QHC: Tensor, k_TKC: Tensor, causal: bool) -> Tensor:
    """[1, H, Q, C]; without a mask [1, K, Q * H / K, C]: heads that share a key head are adjacent."""
    x = x_QHC.transpose(0, 1)[None]
    return x.contiguous() if causal else x.reshape(1, k_TKC.shape[1], -1, x.shape[-1])


def from_sdpa(x: Tensor, q_QHC: Tensor) -> Tensor:
    """[Q, H, C] of either form."""
    return x.reshape(q_QHC.shape[1], len(q_QHC), -1).transpose(0, 1)


def expand_keys(x_TKC: Tensor, q_QHC: Tensor, causal: bool) -> Tensor:
    """[1, K, T, C], or with a mask [1, H, T, C]."""
    x = x_TKC.transpose(0, 1)[None]
    return x.repeat_interleave(q_QHC.shape[1] // x_TKC.shape[1], 1) if causal else x.contiguous()
