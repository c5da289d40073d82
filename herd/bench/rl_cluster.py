"""Seconds of a step of reinforcement learning on a cluster: `herd plan`'s training, a roofline of decoding, rl_sim.

Synchronous runs have all cards train and then all cards draw; the others split them, in the shares of `SPLITS` at which
the slower of the two is fastest. Training is the planner's fastest layout, pipelines included; engines are the smallest
replicas that hold the model, all loaded alike. New weights go from trainers to engines at the network's speed.
"""

from dataclasses import dataclass
from math import inf

from herd.bench.rl_model import Machine, Schedule, Workload, inflight, pinned, strong
from herd.bench.rl_sim import simulate
from herd.config import ModelConfig, preset
from herd.errors import HerdError
from herd.plan.cluster import GPUS, LINK_SHARE, Layout, Run, best
from herd.plan.counts import weight_bytes
from herd.plan.decode import Decoder, decoder, smallest_replica
from herd.plan.work import work_of

CLUSTERS = (1024, 2048, 4096, 8192, 16_384, 32_768)
SPLITS = (0.25, 0.5, 0.75)
"""Of the cards, those that train."""
LAGS = (1, 2, 4, 8)
STEPS, WARM_UP = 8, 10


@dataclass(frozen=True, kw_only=True)
class RlRun:
    """What is assumed."""

    model: str = "behemoth"
    gpu: str = "h100"
    groups: int = 384
    group_size: int = 16
    prompt: int = 512
    tokens: int = 3584
    """Mean answer."""
    token_sigma: float = 1.0
    max_tokens: int = 16_384
    latency_s: float = 2.0
    """Median of the environment's, lognormal with sigma 1."""

    @property
    def length(self) -> int:
        """Mean of prompt and answer."""
        return self.prompt + self.tokens

    @property
    def rollouts(self) -> int:
        """Of a step."""
        return self.groups * self.group_size

    @property
    def workload(self) -> Workload:
        return Workload(
            group_size=self.group_size, mean_tokens=self.tokens, token_sigma=self.token_sigma,
            max_tokens=self.max_tokens, latency_s=self.latency_s,
        )  # fmt: skip

    @property
    def text(self) -> str:
        """The assumptions in words."""
        return (
            f"{self.model} on {self.gpu}: steps of {self.groups} prompts x {self.group_size} answers, {self.prompt} + "
            f"{self.tokens:,} tokens on average (lognormal, sigma {self.token_sigma:g}, at most {self.max_tokens:,}), "
            f"environments of {self.latency_s:g} s in the middle (sigma 1), trained in bf16, drawn in 8 bits"
        )


def train_seconds(run: RlRun, config: ModelConfig, gpus: int) -> float:
    """Of a step on so many cards; infinite where it does not fit."""
    plan = Run(
        work=work_of(config, run.length), gpu=GPUS[run.gpu], layout=Layout(data=gpus), length=run.length,
        batch_tokens=run.rollouts * run.length,
    )  # fmt: skip
    try:
        return best(plan, gpus, pipelined=True).step_s
    except HerdError:
        return inf


def machine(run: RlRun, config: ModelConfig, replica: Decoder, *, trainers: int, engines: int) -> Machine:
    """`engines` cards that draw, in whole replicas."""
    replicas = engines // replica.gpus
    gpu = GPUS[run.gpu]
    prompt_flops = 2 * work_of(config, run.prompt).flops / 6 * run.prompt
    return Machine(
        fixed_s=replica.fixed_s, token_s=replica.sequence_s / replicas, slots=replica.max_sequences * replicas,
        train_s=train_seconds(run, config, trainers),
        prefill_s=prompt_flops / (gpu.fp8 * gpu.product_share * engines),
        publish_s=weight_bytes(config, "int8") / replica.gpus / (gpu.network * LINK_SHARE),
    )  # fmt: skip


def draw_seconds(run: RlRun, one: Machine) -> float:
    """Of a step's answers, by an engine that is always as full as it may be with two steps under way."""
    running = min(one.slots, 2 * run.rollouts)
    return run.rollouts * run.tokens / running * (one.fixed_s + running * one.token_s)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds a step by schedule, the synchronous one first."""

    gpus: int
    trainers: int
    """Of the cards, where they are split."""
    train_s: float
    draw_s: float
    """Of a step's answers with a full engine; both on their part of the cards."""
    seconds: dict[str, float]


def estimate(run: RlRun, gpus: int) -> Estimate:
    """A cluster."""
    config, gpu = preset(run.model), GPUS[run.gpu]
    size = smallest_replica(config, gpu)
    replica = decoder(config, gpu, gpus=size, context=run.prompt + run.tokens // 2)
    together = machine(run, config, replica, trainers=gpus, engines=gpus)
    splits = [int(share * gpus) for share in SPLITS if share * gpus % 1 == 0 and (1 - share) * gpus >= size]
    machines = {cards: machine(run, config, replica, trainers=cards, engines=gpus - cards) for cards in splits}
    trainers = min(machines, key=lambda cards: max(machines[cards].train_s, draw_seconds(run, machines[cards])))
    split = machines[trainers]
    schedules: dict[str, tuple[Schedule, Machine]] = {"sync": (strong(run.groups), together)}
    if split.train_s < inf:
        schedules |= {f"pinned {lag}": (pinned(run.groups, lag), split) for lag in LAGS}
        schedules |= {f"in flight {lag}": (inflight(run.groups, lag), split) for lag in LAGS}
    seconds = {
        name: simulate(schedule, one, run.workload, steps=STEPS, warm_up=WARM_UP).seconds_per_step
        for name, (schedule, one) in schedules.items()
    }
    return Estimate(
        gpus=gpus, trainers=trainers, train_s=split.train_s, draw_s=draw_seconds(run, split), seconds=seconds
    )


def table(found: list[Estimate]) -> list[str]:
    """Lines of markdown."""
    names = list(found[-1].seconds)
    lines = [f"| GPUs | train : draw | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for one in found:
        cells = [f"{one.seconds[name]:.0f}" if name in one.seconds else "–" for name in names]
        lines.append(f"| {one.gpus:,} | {one.trainers:,} : {one.gpus - one.trainers:,} | {' | '.join(cells)} |")
    return lines
