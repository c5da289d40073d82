"""iRoPE attention over flat packed tokens.

Three layers of four are local: rotary positions, weightless QK norm after them, and a view of the token's own block of
`chunk_size` positions. Every fourth is global: no positions, the whole past, queries scaled by a temperature that grows
with the token's position in its own document. Source: Meta's llama-models 0.3.0; see docs/model.md.

There is no batch dimension and no padding outside this file: documents are runs of tokens. `plan_spans` finds once per
forward which runs attend within themselves (documents for global layers, their chunks for local ones), so no mask over
the whole pack ever exists. It is planned on the host, where positions and starts are, and only indices are sent to the
device: a forward waits for nothing. The C++ kernel takes runs as they are; PyTorch's operators take those of similar
length together, as padded groups.

Inference on a CPU has a second implementation: herd/native/forward.cpp, called by fused.py. A change here must be made
there too; agreement.py compares the two whenever an engine is started on a model.
"""

# N tokens, D width, H query heads, K key heads, C head width, G runs in a group, L length of a group

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from herd import native
from herd.config import ModelConfig
from herd.core.device import has_fp64, send
from herd.model.cache import CacheView
from herd.model.gather import Gather, Restore
from herd.model.pack import CPU
from herd.model.precision import Linear
from herd.model.prefixes import Prefixes, attend_prefixes

GROUP_LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Runs are padded to the next of these; longer ones to a multiple of the last."""


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Runs padded to a few lengths, those of one length computed together."""

    shapes: tuple[tuple[int, int], ...]
    """Per group: how many runs, and their padded length."""
    row_of_slot: Tensor
    """The token in each slot when all groups are laid end to end; slots past a run's end repeat token 0."""
    slot_N: Tensor
    """The slot of each token."""


@dataclass(frozen=True, kw_only=True)
class Spans:
    """Runs of tokens that attend causally within themselves."""

    begins_S: Tensor
    """int64, on the host; the last entry N."""
    device: torch.device
    """That of the tokens."""

    @cached_property
    def groups(self) -> Groups:
        return group_runs(self.begins_S, self.device)


def plan_spans(positions_N: Tensor, starts_S: Tensor, chunk_size: int | None, device: torch.device) -> Spans:
    """The documents that begin at `starts_S`, or with `chunk_size` their chunks."""
    num_tokens = len(positions_N)
    edge_N = torch.zeros(num_tokens, dtype=torch.bool)
    edge_N[starts_S[:-1].long()] = True
    if chunk_size is not None:
        edge_N |= positions_N % chunk_size == 0
    begins = torch.nonzero(edge_N)[:, 0]
    return Spans(begins_S=torch.cat([begins, begins.new_tensor([num_tokens])]), device=device)


def group_runs(begins_S: Tensor, device: torch.device) -> Groups:
    """Group the runs by length; what is computed with is on `device`."""
    begins, num_tokens, lengths = begins_S[:-1], int(begins_S[-1]), torch.diff(begins_S)
    bounds = lengths.new_tensor(GROUP_LENGTHS)
    last = GROUP_LENGTHS[-1]
    next_bound = bounds[torch.bucketize(lengths, bounds).clamp(max=len(bounds) - 1)]
    padded = torch.where(lengths > last, (lengths + last - 1) // last * last, next_bound)
    slot_N = torch.empty(num_tokens, dtype=torch.int64)
    groups, offset = [], 0
    for length in torch.unique(padded).tolist() or GROUP_LENGTHS[:1]:  # one group at least, if without runs
        chosen = torch.nonzero(padded == length)[:, 0]
        step_L = torch.arange(length)
        rows_GL = begins[chosen, None] + step_L
        real_GL = step_L < lengths[chosen, None]
        slots_GL = offset + torch.arange(rows_GL.numel()).view_as(rows_GL)
        slot_N[rows_GL[real_GL]] = slots_GL[real_GL]
        groups.append(torch.where(real_GL, rows_GL, 0))
        offset += rows_GL.numel()
    return Groups(
        shapes=tuple((len(rows_GL), rows_GL.shape[1]) for rows_GL in groups),
        row_of_slot=send(torch.cat([rows_GL.flatten() for rows_GL in groups]), device),
        slot_N=send(slot_N, device),
    )


def attend_causal(q_GLHC: Tensor, k_GLKC: Tensor, v_GLKC: Tensor) -> Tensor:
    """Causal attention within each run of a group; query heads share key heads in equal parts."""
    num_runs, length, num_heads, width = q_GLHC.shape
    num_kv = k_GLKC.shape[2]
    if torch.is_grad_enabled() and length <= GROUP_LENGTHS[-1] and q_GLHC.device.type == "cpu":
        # Plain products beat the fused CPU kernel, forward and backward, as long as the scores are small (docs/LOG.md).
        ratio = num_heads // num_kv
        q = q_GLHC.view(num_runs, length, num_kv, ratio, width).permute(0, 2, 3, 1, 4)
        q = (q * width**-0.5).reshape(num_runs * num_kv, ratio * length, width)
        k = k_GLKC.permute(0, 2, 3, 1).reshape(num_runs * num_kv, width, length)
        v = v_GLKC.transpose(1, 2).reshape(num_runs * num_kv, length, width)
        mask_LL = torch.full((length, length), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
        scores = torch.baddbmm(mask_LL.repeat(ratio, 1), q, k)
        out = torch.softmax(scores, dim=-1) @ v
        return out.view(num_runs, num_kv, ratio, length, width).permute(0, 3, 1, 2, 4).reshape(q_GLHC.shape)
    q, k, v = (x.transpose(1, 2) for x in (q_GLHC, k_GLKC, v_GLKC))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=num_heads != num_kv)
    return out.transpose(1, 2)


def attend(q_NHC: Tensor, k_NKC: Tensor, v_NKC: Tensor, spans: Groups) -> Tensor:
    """Attention of every token over its run's earlier tokens; returns the shape of `q_NHC`."""
    packed = torch.cat([q_NHC, k_NKC, v_NKC], dim=1).flatten(1)
    slots = Gather.apply(packed, spans.row_of_slot, spans.slot_N)
    slots = slots.unflatten(1, (packed.shape[1] // q_NHC.shape[-1], q_NHC.shape[-1]))
    sizes = [runs * length for runs, length in spans.shapes]
    parts = []
    for group, shape in zip(slots.split(sizes), spans.shapes, strict=True):
        q, k, v = group.unflatten(0, shape).split([q_NHC.shape[1], k_NKC.shape[1], v_NKC.shape[1]], dim=2)
        parts.append(attend_causal(q, k, v).flatten(0, 1))
    return Restore.apply(torch.cat(parts), spans.slot_N)


def rope_frequencies(config: ModelConfig, *, scaled: bool = True) -> Float[Tensor, "c2"]:
    """Radians a position by which each pair of channels rotates, fp32; `scaled` False leaves `rope_scaling` out."""
    index = torch.arange(0, config.head_dim, 2, dtype=torch.float32)
    frequency = 1.0 / config.rope_theta ** (index / config.head_dim)
    scaling = config.rope_scaling
    if scaling is not None and scaled:
        wavelength = 2 * torch.pi / frequency
        rotations = scaling.original_max_positions / wavelength
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        # Scout has low == high: the blend between the two is then empty, and must not divide by zero.
        blend = ((rotations - low) / (high - low)).clamp(0, 1) if high > low else (rotations >= high).float()
        frequency = frequency * blend + frequency / scaling.factor * (1 - blend)
    return frequency


TURN_BITS = 40
"""Bits of an angle in fixed point: 2^40 is a whole turn, and ten million positions stay within int64."""


@lru_cache(maxsize=16)
def frequencies_on(config: ModelConfig, device: torch.device) -> Tensor:
    """`rope_frequencies` on a device, sent there once: fp64, or where there is none, turns in fixed point
    (TURN_BITS)."""
    with torch.inference_mode(False):
        frequency_C = rope_frequencies(config).double()
        if not has_fp64(device):
            frequency_C = (frequency_C / (2 * math.pi) * 2**TURN_BITS).round().long()
        return frequency_C.to(device)


def rope_angles(positions_N: Int[Tensor, "n"], config: ModelConfig) -> Tensor:
    """Rotations of the local layers as complex numbers, [N, C / 2], fp32.

    Whole turns are subtracted in fp64 or in integers: after ten million positions an angle in fp32 is off by a quarter
    of a radian.
    """
    frequency_C = frequencies_on(config, positions_N.device)
    if frequency_C.dtype == torch.int64:
        angle_NC = (positions_N[:, None] * frequency_C % 2**TURN_BITS).float() * (2 * math.pi / 2**TURN_BITS)
    else:
        angle_NC = torch.remainder(positions_N[:, None].double() * frequency_C, 2 * math.pi).float()
    return torch.polar(torch.ones_like(angle_NC), angle_NC)


def rotate(x_NHC: Float[Tensor, "n h c"], rotation_NC: Tensor) -> Float[Tensor, "n h c"]:
    """Rotate neighbouring pairs of channels (the interleaved layout of released checkpoints). fp32 inside and out."""
    pairs = torch.view_as_complex(x_NHC.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation_NC[:, None]).flatten(-2)


def query_temperature(positions_N: Int[Tensor, "n"], config: ModelConfig) -> Float[Tensor, "n"]:
    """1 + scale * ln(floor((pos + 1) / floor) + 1), by the token's position in its own document. fp32."""
    blocks = torch.floor((positions_N.float() + 1) / config.temperature_floor)
    return 1 + config.temperature_scale * torch.log1p(blocks)


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """Documents that begin alike, whose common beginning is computed once: M tokens stand for the N of the pack. What
    is computed token by token sees the M; attention alone sees all N, with the beginnings repeated."""

    expand_N: Tensor
    """Which of the M tokens each token of the pack is."""
    pick_M: Tensor
    """A place in the pack of each of the M."""
    prefixes: Prefixes | None = None
    """Given, attention computes the beginnings once, too, in layers that see whole documents."""


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """What all layers of one forward share: who attends to whom, rotations and temperatures."""

    local: Spans | None
    whole: Spans | None
    """None for both while a cache is used: the cache then determines what is visible."""
    rotation_NC: Tensor
    """Of the tokens that attention sees: the M of a sharing with prefixes, else the N of the pack."""
    temperature_N: Tensor | None
    sharing: Sharing | None = None


def plan_attention(
    positions_N: Tensor,
    starts_S: Tensor,
    config: ModelConfig,
    *,
    cached: bool,
    device: torch.device = CPU,
    sharing: Sharing | None = None,
) -> AttentionPlan:
    """Prepare a forward on `device` over documents (or requests) that begin at `starts_S` in the pack."""
    assert positions_N.device.type == starts_S.device.type == "cpu", "a forward is planned on the host"
    there_N = send(positions_N, device)
    if sharing is not None and sharing.prefixes is not None:
        if config.chunk_size is None or int(positions_N.max()) < config.chunk_size:
            there_N = there_N.index_select(0, sharing.pick_M)
        else:
            sharing = replace(sharing, prefixes=None)
    return AttentionPlan(
        local=None if cached else plan_spans(positions_N, starts_S, config.chunk_size, device),
        whole=None if cached else plan_spans(positions_N, starts_S, None, device),
        rotation_NC=rope_angles(there_N, config),
        temperature_N=query_temperature(there_N, config) if config.temperature_tuning else None,
        sharing=sharing,
    )


class Attention(nn.Module):
    """One layer's attention, local or global by its index."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.is_global = config.is_global(layer)
        self.rotates = not self.is_global
        """Whether positions rotate queries and keys; `herd bench ablation` lets global layers do so too."""
        heads, kv_heads, width = config.num_heads, config.num_kv_heads, config.head_dim
        self.qkv = Linear(config.dim, (heads + 2 * kv_heads) * width)
        self.out = Linear(heads * width, config.dim)

    def forward(self, x_ND: Tensor, shared: AttentionPlan, cache: CacheView | None) -> Tensor:
        qkv_NHC = self.qkv(x_ND).unflatten(-1, (-1, self.config.head_dim))
        if shared.sharing is None:
            return self.out(self._attend(qkv_NHC, shared, cache).flatten(1))
        if shared.sharing.prefixes is not None:
            return self.out(attend_prefixes(*self.prepare_qkv(qkv_NHC, shared), shared.sharing.prefixes).flatten(1))
        out_NHC = self._attend(qkv_NHC.index_select(0, shared.sharing.expand_N), shared, cache)
        return self.out(out_NHC.index_select(0, shared.sharing.pick_M).flatten(1))

    def _attend(self, qkv_NHC: Tensor, shared: AttentionPlan, cache: CacheView | None) -> Tensor:
        config = self.config
        spans = shared.whole if self.is_global else shared.local
        if spans is not None and native.why_not(qkv_NHC, native.ATTENTION) is None:
            return native.attention(
                qkv_NHC,
                spans.begins_S,
                num_kv_heads=config.num_kv_heads,
                rotation_NC=shared.rotation_NC if self.rotates else None,
                temperature_N=shared.temperature_N if self.is_global else None,
                norm_eps=config.norm_eps if config.qk_norm else None,
            )
        q_NHC, k_NKC, v_NKC = self.prepare_qkv(qkv_NHC, shared)
        if cache is not None:
            return cache.attend(self.layer, q_NHC, k_NKC, v_NKC)
        assert spans is not None
        return attend(q_NHC, k_NKC, v_NKC, spans.groups)

    def fill_cache(self, x_ND: Tensor, shared: AttentionPlan, cache: CacheView) -> None:
        """Store the keys and values of tokens, without attending."""
        _, k_NKC, v_NKC = self.prepare_qkv(self.qkv(x_ND).unflatten(-1, (-1, self.config.head_dim)), shared)
        cache.store(self.layer, k_NKC, v_NKC)

    def prepare_qkv(self, qkv_NHC: Tensor, shared: AttentionPlan) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values for attention: rotated and normed, or scaled by the temperature."""
        config, dtype = self.config, qkv_NHC.dtype
        heads, kv_heads = config.num_heads, config.num_kv_heads
        qk_NHC, v_NKC = qkv_NHC.split([heads + kv_heads, kv_heads], dim=1)
        if self.rotates:
            qk_NHC = rotate(qk_NHC, shared.rotation_NC).to(dtype)
            if config.qk_norm:
                qk_NHC = F.rms_norm(qk_NHC.float(), (config.head_dim,), eps=config.norm_eps).to(dtype)
        q_NHC, k_NKC = qk_NHC.split([heads, kv_heads], dim=1)
        if self.is_global and shared.temperature_N is not None:
            q_NHC = (q_NHC * shared.temperature_N[:, None, None]).to(dtype)
        return q_NHC, k_NKC, v_NKC
