"""`herd plan MODEL --gpus N`: the fastest layout of a training run that fits, its time and memory, in bf16 and fp8."""

from dataclasses import dataclass

from herd.config import ModelConfig
from herd.errors import HerdError, unknown
from herd.plan.cluster import GPUS, Layout, Outcome, Run, as_json, best
from herd.plan.counts import amount
from herd.plan.work import work_of


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What is to be trained, and on what."""

    gpus: int
    gpu: str = "h100"
    """A name of `herd.plan.cluster.GPUS`."""
    length: int = 8192
    """Tokens of a document."""
    batch_tokens: int = 2**24
    """Tokens of an optimizer step, over all GPUs."""
    tokens: int = 30 * 10**12
    """Tokens of the whole run."""
    pipelined: bool = False
    """Whether stages of a pipeline are tried too; Herd's trainer has none."""

    def __post_init__(self) -> None:
        if self.gpu not in GPUS:
            raise unknown("GPU", self.gpu, GPUS)
        for name in ("gpus", "length", "batch_tokens", "tokens"):
            if getattr(self, name) <= 0:
                raise HerdError(f"{name}={getattr(self, name)} must be more than 0")


def outcomes(config: ModelConfig, wanted: TrainingPlan) -> dict[str, Outcome]:
    """The best layout's step in bf16, and in fp8 where the card has it."""
    card = GPUS[wanted.gpu]
    run = Run(
        work=work_of(config, wanted.length),
        gpu=card,
        layout=Layout(data=wanted.gpus),
        length=wanted.length,
        batch_tokens=wanted.batch_tokens,
    )
    estimate = {"bf16": best(run, wanted.gpus, pipelined=wanted.pipelined)}
    if card.fp8 > card.bf16:
        eight = Run(**{**vars(run), "fp8": True})
        estimate["fp8"] = best(eight, wanted.gpus, pipelined=wanted.pipelined)
    return estimate


def days(estimate: Outcome, wanted: TrainingPlan) -> float:
    """Of the whole run, without a failure."""
    return wanted.tokens / (estimate.tokens_per_s_gpu * wanted.gpus) / 86400


def training_json(config: ModelConfig, wanted: TrainingPlan) -> dict[str, object]:
    """All figures, for scripts."""
    found = outcomes(config, wanted)
    return {
        **vars(wanted),
        "flops_per_token": work_of(config, wanted.length).flops,
        "precisions": {name: as_json(estimate) | {"days": days(estimate, wanted)} for name, estimate in found.items()},
    }


def training_lines(config: ModelConfig, wanted: TrainingPlan) -> list[str]:
    """The plan in words."""
    work = work_of(config, wanted.length)
    lines = [
        f"training on {wanted.tokens:.3g} tokens in documents of {wanted.length:,}, {wanted.batch_tokens:,} a step: "
        f"{amount(int(work.flops))}FLOP a token"
    ]
    for precision, found in outcomes(config, wanted).items():
        layout, mesh = found.layout, ("data", "tensor", "context", "pipeline")
        axes = " x ".join(
            f"{axis} {getattr(layout, axis)}" for axis in mesh if axis == "data" or getattr(layout, axis) > 1
        )
        kept = "forward again in the backward" if layout.recompute else "all activations kept"
        whole = "weights sharded" if layout.sharded else "weights gathered once a step"
        shares = {name: value / found.step_s for name, value in found.seconds.items() if value / found.step_s >= 0.005}
        parts = ", ".join(f"{name} {amount(int(size))}B" for name, size in found.memory.items() if size)
        lines += [
            f"{precision} on {wanted.gpus:,} {wanted.gpu}: {axes}; experts over {layout.expert}, {whole}, {kept}, "
            f"micro-batches of {layout.sequences} x {wanted.length:,}",
            f"  {found.step_s:.2f} s a step, {found.tokens_per_s_gpu:,.0f} tokens/s and {found.tflops_gpu:.0f} useful "
            f"TFLOP/s a GPU, {days(found, wanted):,.1f} days",
            "  time:   " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()),
            f"  memory: {amount(int(found.memory_bytes))}B a GPU: {parts}",
        ]
    return lines
