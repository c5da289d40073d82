"""Published runs of asynchronous reinforcement learning, predicted from the stage times of their synchronous controls.

Inputs are as published, each with its source; nothing is fitted to what is predicted. Of the asynchronous side only its
schedule and its split of the cards are used. Its trainer and its engine are those of the synchronous run on as many
cards, where one was published; else times grow as cards get fewer (of an engine step, what grows with its batch).
What was not published is varied over `UNKNOWN`: the middle of the predictions is compared, and their range shown.

Both runs of a pair learn, and their answers do not grow alike. How long they were was not published, but how long the
trainer took for them was. So there is a second prediction, with the asynchronous trainer's own time, and the engine's
work in the ratio of the trainers' work: it tests the schedule where the first one tests schedule and inputs together.

verl's speed-ups of 2.35 to 2.67 are of whole runs with their evaluations; here a step is compared with a step.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from statistics import median

from herd.bench.rl_model import Machine, Schedule, Workload
from herd.bench.rl_sim import calibrate, simulate

WITHIN = 0.15
"""Error that a prediction is meant to stay below."""
UNKNOWN: dict[str, tuple[float, ...]] = {
    "mean_share": (0.1, 0.3, 0.6),
    "token_sigma": (0.5, 1.0),
    "fixed_share": (0.25, 0.5, 0.75),
}
"""Mean length of an answer over its limit, spread of its logarithm, and the share of the time of drawing a synchronous
batch that its size does not change."""
VERSIONS, WARM_UP = 5, 2


@dataclass(frozen=True, kw_only=True)
class Published:
    """An asynchronous run."""

    name: str
    source: str
    schedule: Schedule
    group_size: int
    max_tokens: int
    draw_s: float
    """Of the synchronous run whose times are used, for the groups of one of its steps."""
    train_s: float
    own_train_s: float
    """Of the asynchronous run; for the second prediction alone."""
    sync_s: float
    """A step of the control."""
    published_s: float
    engine_cards: float = 1.0
    """Of the cards that `draw_s` was published for."""
    trainer_cards: float = 1.0
    """Of those that `train_s` was."""

    @property
    def groups(self) -> int:
        """Of a synchronous step, as many as of an asynchronous version."""
        return self.schedule.groups_per_step * self.schedule.publish_every

    def predictions(self, *, own: bool) -> Iterator[float]:
        """Seconds between two versions, for each choice of what is not known."""
        train_s, draw_s = self.train_s / self.trainer_cards, self.draw_s
        if own:
            train_s, draw_s = self.own_train_s, draw_s * self.own_train_s / train_s
        every = self.schedule.publish_every
        for mean_share, token_sigma, fixed_share in product(*UNKNOWN.values()):
            workload = Workload(
                group_size=self.group_size, mean_tokens=mean_share * self.max_tokens, token_sigma=token_sigma,
                max_tokens=self.max_tokens,
            )  # fmt: skip
            machine = calibrate(
                Machine(fixed_s=0.0, token_s=0.0, train_s=train_s / every), map(workload, range(self.groups)),
                draw_s=draw_s, fixed_share=fixed_share,
            )  # fmt: skip
            machine = replace(machine, token_s=machine.token_s / self.engine_cards)
            run = simulate(self.schedule, machine, workload, steps=VERSIONS * every, warm_up=WARM_UP * every)
            yield run.seconds_per_step * every


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The middle of what the model makes of a published run, and the range."""

    seconds: float
    least: float
    most: float

    def error(self, run: Published) -> float:
        """Over the published time; above 0 where the model is too slow."""
        return self.seconds / run.published_s - 1


def predict(run: Published, *, own: bool) -> Prediction:
    times = list(run.predictions(own=own))
    return Prediction(seconds=median(times), least=min(times), most=max(times))


VIME = "vllm-project/vime, issue 358 of 2026-07, setup 2: Qwen3-4B on Ascend A3, 2 cards each for trainer and engine"
VERL = "verl-project/verl, docs/advance/fully_async.md of 2026-02, Qwen2.5-Math-7B on H20"
VERL_30B = "verl-project/verl, docs/advance/fully_async.md of 2026-02, Qwen3-30B-A3B-Base on H20"
VERL_TOOLS = "verl-project/verl, docs/advance/fully_async.md of 2026-02, Qwen2.5-7B-Instruct with tools on H20"


def verl(of_version: int, staleness: float, engine_cards: int) -> Schedule:
    """Four fetches a version, finished groups in any order, 1 + `staleness` versions' worth of groups under way, of
    which 16 an engine of four cards run (`max_concurrent_samples`, and the runs' shell scripts)."""
    return Schedule(
        kind="inflight", groups_per_step=of_version // 4, lag=staleness, window=10**9, publish_every=4,
        max_groups=16 * engine_cards // 4,
    )  # fmt: skip


def verl_7b(cards: int, staleness: float, published_s: float, *, sync_s: float, **times: float) -> Published:
    return Published(
        name=f"verl 7B, {cards}:{cards}, staleness {staleness:g}", source=VERL, group_size=16, max_tokens=28 * 1024,
        schedule=verl(512, staleness, cards), sync_s=sync_s, published_s=published_s, **times,
    )  # fmt: skip


ON_64 = {"draw_s": 150.72, "train_s": 133.41, "sync_s": 356.30}
"""Stages of the synchronous run on 64 cards, for halves of 128; the step is that on 128."""
ON_32 = {"draw_s": 357.41, "train_s": 269.80}


def published_runs() -> list[Published]:
    """All that were found with the control's stage times; none that was tried is left out.

    verl: log-probabilities are the engine's there, so that the control's `old_log_prob` falls away. Its 30B has the
    reference's in both. vime: 32 groups under way and 32 finished ones are more than its backpressure lets wait
    (`fully_async_rollout.py`: 512 // 8 groups run, and no more start with as many finished), publishing is within the
    97.2 seconds that the control's trainer waits, and so within `draw_s`.
    """
    return [
        Published(
            name="vime 4B, 2:2", source=VIME, group_size=8, max_tokens=2048, draw_s=97.2, train_s=81.4,
            own_train_s=99.6, sync_s=178.3, published_s=104.0,
            schedule=Schedule(kind="inflight", groups_per_step=32, lag=4, window=10**9, max_groups=64),
        ),
        verl_7b(64, 0.5, 150.63, own_train_s=113.16, **ON_64),
        verl_7b(64, 0.3, 146.11, own_train_s=103.22, **ON_64),
        verl_7b(64, 0.1, 171.30, own_train_s=109.12, **ON_64),
        verl_7b(64, 0.0, 231.34, own_train_s=98.77, **ON_64),
        verl_7b(32, 0.5, 189.26, own_train_s=156.98, sync_s=365.28, **ON_32),
        verl_7b(
            16, 0.5, 294.77, own_train_s=313.81, sync_s=790.10, engine_cards=0.5, trainer_cards=0.5, **ON_32
        ),
        Published(
            name="verl 30B, 96:32, staleness 0.5", source=VERL_30B, group_size=16, max_tokens=8 * 1024,
            draw_s=348.05, train_s=86.27 + 20.86, own_train_s=206.63 + 50.05, sync_s=497.89, published_s=282.75,
            engine_cards=96 / 128, trainer_cards=32 / 128, schedule=verl(512, 0.5, 96),
        ),
        Published(
            name="verl 7B with tools, 16:16, staleness 1", source=VERL_TOOLS, group_size=16, max_tokens=16 * 1024,
            draw_s=228.03, train_s=111.84, own_train_s=179.58, sync_s=375.47, published_s=221.36,
            engine_cards=0.5, trainer_cards=0.5,
            schedule=verl(64, 1.0, 16),
        ),
    ]  # fmt: skip


def table(found: list[tuple[Published, Prediction, Prediction]]) -> list[str]:
    """Lines of markdown."""
    lines = [
        "| run | control, s | published, s | from the control's stages | range | error | with its own trainer's time | "
        "range | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run, *predictions in found:
        cells = [run.name, f"{run.sync_s:.1f}", f"{run.published_s:.1f}"]
        for one in predictions:
            error = one.error(run)
            percent = f"{100 * error:+.0f} %"
            cells += [f"{one.seconds:.1f}", f"{one.least:.0f} to {one.most:.0f}"]
            cells.append(f"**{percent}**" if abs(error) <= WITHIN else percent)
        lines.append(f"| {' | '.join(cells)} |")
    return lines
