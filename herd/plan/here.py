"""How long a step of training takes on a CPU, and how much memory: from a shape, a batch and three measured rates.

A step is the sum of parts, each a floor (FLOPs over the machine's product rate, bytes over its bandwidth) times how
many times longer our kernels take: `LONGER`, fitted to the runs of `herd bench plan --calibrate`, held against others.
Memory is what the process holds before, weights, gradients and optimizer state by the byte, and what the backward keeps
of each token, likewise fitted (`KEPT`). bf16 with the C++ kernels, documents of one length, no pictures.
"""

from dataclasses import dataclass

from herd.config import ModelConfig, OptimizerConfig
from herd.plan.work import work_of


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What was measured of it."""

    product_flops: float
    """FLOP/s of a large bf16 product."""
    bandwidth: float
    """Bytes/s read and written by a pass over memory."""
    base_bytes: float
    """Resident before a model is made."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step of a plan."""

    seconds: float
    peak_bytes: float
    tokens_per_s: float
    share_of_peak: float
    """Useful FLOPs a second over the machine's product rate."""


LONGER = {
    "products": 1.01,
    "attention": 1.24,
    "passes": 3.08,
    "logits": 3.36,
    "weights": 0.24,
    "muon": 1.15,
    "calls": 9.72,
}
"""How many times its floor each part takes."""
KEPT = {"state": 0.99, "tokens": 1.52, "logits": 2.07}
"""Bytes held at the peak, of those estimated: not all is there at one time, and some of it twice."""


def lower_bounds(
    config: ModelConfig, optimizer: OptimizerConfig, batch_tokens: int, length: int, machine: Machine
) -> dict[str, float]:
    """Seconds of each part at the machine's measured rates."""
    work, rate, bandwidth = work_of(config, length), machine.product_flops, machine.bandwidth
    with_muon = optimizer.matrix == "muon"
    return {
        "products": 6 * batch_tokens * (work.matrix_parameters + work.head_parameters) / rate,
        "attention": 3.5 * batch_tokens * work.attention_flops / rate,
        "passes": 3 * 2 * batch_tokens * work.traffic_elements / bandwidth,
        "logits": 8 * batch_tokens * config.vocab_size / bandwidth,
        # Packed for the forward and the backward, and read and written by the optimizer.
        "weights": work.total_parameters * (12 + 20) / bandwidth,
        "muon": muon_flops(config) / rate if with_muon else 0.0,
        "calls": 1e-3 * config.num_layers,
    }


def muon_flops(config: ModelConfig) -> float:
    """Of five Newton-Schulz iterations on every matrix of the layers: 4 m^2 n + 2 m^3 each, m the shorter side."""
    heads = config.num_heads * config.head_dim
    kv = 2 * config.num_kv_heads * config.head_dim
    total = 0.0
    for layer in range(config.num_layers):
        shapes = [(heads + kv, config.dim, 1), (heads, config.dim, 1)]
        hidden = config.moe.ffn_dim if config.is_moe(layer) else config.dense_ffn_dim
        number = config.moe.num_experts + 1 if config.is_moe(layer) else 1
        shapes += [(2 * hidden, config.dim, number), (hidden, config.dim, number)]
        for rows, columns, count in shapes:
            m, n = min(rows, columns), max(rows, columns)
            total += count * 5 * (4 * m * m * n + 2 * m**3)
    return total


def memory_by_part(config: ModelConfig, optimizer: OptimizerConfig, batch_tokens: int, length: int) -> dict[str, float]:
    """Bytes by part, at the peak of a step."""
    work = work_of(config, length)
    return {
        "state": work.total_parameters * state_bytes(optimizer),
        "tokens": 2 * batch_tokens * (work.kept_elements + 3 * work.dim),
        "logits": 2 * 512 * config.vocab_size + 4 * work.head_parameters,
    }


def state_bytes(optimizer: OptimizerConfig) -> float:
    """Of a parameter: weight and gradient in bf16, the rest of its fp32 master, one or two moments."""
    return 2 + 2 + 2 + (4 if optimizer.matrix == "muon" else 2 * (1 if optimizer.moments == "8bit" else 4))


def step_here(
    config: ModelConfig, optimizer: OptimizerConfig, batch_tokens: int, length: int, machine: Machine
) -> Step:
    """The prediction."""
    work = work_of(config, length)
    parts = lower_bounds(config, optimizer, batch_tokens, length, machine)
    seconds = sum(LONGER[name] * floor for name, floor in parts.items())
    kept = memory_by_part(config, optimizer, batch_tokens, length)
    peak = machine.base_bytes + sum(KEPT[name] * size for name, size in kept.items())
    speed = batch_tokens / seconds
    return Step(
        seconds=seconds,
        peak_bytes=peak,
        tokens_per_s=speed,
        share_of_peak=speed * work.flops / machine.product_flops,
    )
