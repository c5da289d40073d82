"""`herd bench rl`: seconds of a trained group, over the latency of the environment and the kind of schedule.

`simulated` is the model of rl_sim.py with measured service times; `published` holds the model against public runs
(rl_published.py); `cluster` estimates large ones (rl_cluster.py); `real` runs the schedules (rl_dial.py); `learning`
says what RL is worth (rl_learning.py); `ladder` and `router` compare corrections, and routing replay (rl_ladder.py).
The gain over the synchronous control is at most lag + 1 where groups are trained in their order, and a window may add
to it; so each line names ages beside seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from herd.bench import rl_cluster, rl_published
from herd.bench.rl_dial import real_rows
from herd.bench.rl_ladder import ladder_rows
from herd.bench.rl_learning import learning_rows
from herd.bench.rl_model import Machine, Schedule, Workload, inflight, naive, pinned, strong
from herd.bench.rl_sim import Result, calibrate, simulate
from herd.bench.table import Row, show
from herd.errors import HerdError

LATENCIES = (0.0, 0.1, 0.3, 1.0, 3.0)
LAGS = (1, 2, 4, 8)
CONTROL, NAIVE = "strong synchronous", "naive"


@dataclass(frozen=True, kw_only=True)
class Service:
    """Measured times of one core, for steps of `groups` x `group_size` answers."""

    draw_s: float = 0.73
    """Of all answers of a step, in a full engine."""
    train_s: float = 0.80
    cores: int = 2
    scaling: float = 0.85
    """Efficiency of all cores together."""
    groups: int = 24
    group_size: int = 16
    tokens: float = 11.0
    token_sigma: float = 0.02
    group_sigma: float = 0.47
    """Of the lengths' logarithm between prompts; within a group they hardly differ on short tasks (measured)."""
    fixed_share: float = 0.15
    """Of the time to draw a step's answers all at once, what is spent on steps, however full they are."""
    slots: int = 64
    publish_s: float = 0.0
    keep: float = 1.0
    """Share of the groups that have signal."""

    def __post_init__(self) -> None:
        if not (self.draw_s > 0 and self.train_s > 0 and 0 < self.keep <= 1):
            raise HerdError(
                f"draw_s={self.draw_s}, train_s={self.train_s} and keep={self.keep} must be more than 0, keep at most 1"
            )

    def workload(self, latency_s: float) -> Workload:
        return Workload(
            group_size=self.group_size, mean_tokens=self.tokens, token_sigma=self.token_sigma,
            group_sigma=self.group_sigma, latency_s=latency_s, keep=self.keep,
        )  # fmt: skip

    def machine(self, *, shared: bool) -> Machine:
        """`shared`: phases that own all cores; else engine and trainer have one each."""
        one = Machine(
            fixed_s=0.0, token_s=0.0, train_s=self.train_s, publish_s=self.publish_s, slots=self.slots,
            alone=self.cores * self.scaling if shared else 1.0,
        )  # fmt: skip
        groups = map(self.workload(0.0), range(self.groups))
        return calibrate(one, groups, draw_s=self.draw_s, fixed_share=self.fixed_share)

    def schedules(self, lags: Sequence[int] = LAGS) -> dict[str, tuple[Schedule, Machine]]:
        """Those of the dial, the controls first. What is synchronous has all cores in turn."""
        shared, split, of_step = self.machine(shared=True), self.machine(shared=False), self.groups
        return {
            NAIVE: (naive(of_step, keep=self.keep), shared),
            CONTROL: (strong(of_step, keep=self.keep), shared),
            "pinned, lag 0 on halved cores": (pinned(of_step, 0, keep=self.keep), split),
            **{f"pinned, lag {lag}": (pinned(of_step, lag, keep=self.keep), split) for lag in lags},
            **{f"in flight, lag {lag}": (inflight(of_step, lag), split) for lag in lags},
        }


def bench_rl(
    *,
    cases: Sequence[str],
    latencies: Sequence[float],
    lags: Sequence[int],
    service: Service,
    steps: int,
    seeds: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Run what was asked for, and print."""
    rows: list[Row] = []
    trained = [case for case in cases if case in ("real", "learning", "ladder", "router")]
    if trained and out is None:
        raise HerdError(f"the case {trained[0]} trains models: give --out, the folder for them")
    if "simulated" in cases:
        rows += simulated(service, latencies, lags, steps=steps, quiet=as_json)
    if "published" in cases:
        rows += published(quiet=as_json)
    if "cluster" in cases:
        rows += clusters(quiet=as_json)
    if out is not None and "real" in cases:
        rows += real_rows(out, latencies, lags, steps, quiet=as_json)
    if out is not None and "learning" in cases:
        rows += learning_rows(out, seeds, quiet=as_json)
    for case in ("ladder", "router"):
        if out is not None and case in cases:
            rows += ladder_rows(out, seeds, case, quiet=as_json)
    show(rows, as_json=as_json)


def simulated(
    service: Service, latencies: Sequence[float], lags: Sequence[int], *, steps: int, quiet: bool
) -> list[Row]:
    """The dial by the model."""
    rows = []
    for latency_s in latencies:
        found = {
            name: simulate(schedule, machine, service.workload(latency_s), steps=steps, warm_up=20)
            for name, (schedule, machine) in service.schedules(lags).items()
        }
        if not quiet:
            print("\n".join(dial(latency_s, found)))
        rows += dial_rows(f"simulated, latency {latency_s:g} s", found)
    return rows


def dial(latency_s: float, found: dict[str, Result]) -> list[str]:
    """One latency as a table of markdown."""
    lines = [
        f"latency {latency_s:g} s in the middle, lognormal with sigma 1",
        "| schedule | s a step | ms a trained group | of naive | of strong | trainer waits | engine idles | age, mean "
        "and most | groups under way | drawn per trained |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        gains = [found[control].seconds_per_group / one.seconds_per_group for control in (NAIVE, CONTROL)]
        lines.append(
            f"| {name} | {one.seconds_per_step:.2f} | {1e3 * one.seconds_per_group:.1f} | {gains[0]:.2f}x | "
            f"{gains[1]:.2f}x | {one.trainer_wait:.0%} | {one.engine_idle:.0%} | {one.mean_age:.1f}, {one.max_age} | "
            f"{one.concurrency:.2f} | {one.drawn_per_trained:.2f} |"
        )
    return [*lines, ""]


def dial_rows(case: str, found: dict[str, Result]) -> list[Row]:
    """Each schedule beside both controls."""
    return [
        Row(
            case=f"{case}: {name}", unit="ms a trained group", ours=1e3 * one.seconds_per_group,
            peer=1e3 * found[control].seconds_per_group, peer_name=control,
        )
        for control in (NAIVE, CONTROL) for name, one in found.items() if name not in (NAIVE, control)
    ]  # fmt: skip


def published(*, quiet: bool) -> list[Row]:
    """Public runs beside what the model makes of them; the ratio is the speed predicted over that published."""
    found = [
        (run, rl_published.predict(run, own=False), rl_published.predict(run, own=True))
        for run in rl_published.published_runs()
    ]
    if not quiet:
        print("\n".join([*rl_published.table(found), ""]))
    inputs = ("from the control's stages", "with its own trainer's time")
    return [
        Row(
            case=f"{run.name}, {said}", unit="s a version", ours=one.seconds, peer=run.published_s,
            peer_name=run.source,
        )
        for run, *predictions in found for said, one in zip(inputs, predictions, strict=True)
    ]  # fmt: skip


def clusters(*, quiet: bool) -> list[Row]:
    """A large model on many cards."""
    run = rl_cluster.RlRun()
    found = [rl_cluster.estimate(run, gpus) for gpus in rl_cluster.CLUSTERS]
    if not quiet:
        print("\n".join([run.text, *rl_cluster.table(found), ""]))
    return [
        Row(
            case=f"{run.model}, {one.gpus:,} GPUs: {name}", unit="s a step", ours=seconds, peer=one.seconds["sync"],
            peer_name=CONTROL,
        )
        for one in found for name, seconds in one.seconds.items() if name != "sync"
    ]  # fmt: skip
