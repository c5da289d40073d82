"""The training loop, on one screen, and what it measures."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from statistics import median
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from herd.config import CheckpointConfig, LossSpikesConfig, OptimizerConfig
from herd.core.batch import to_device
from herd.core.device import naming_out_of_memory, sum_dtype
from herd.core.lineage import Stage
from herd.core.metrics import Mean, Number
from herd.core.progress import ProgressBar, progress_bar
from herd.core.signals import StopRequest, stop_on_signals
from herd.core.streams import seed_of
from herd.core.tracker import Tracker
from herd.data.loading.batches import B, Batches, prefetch
from herd.errors import HerdError, Interrupted, Stopped
from herd.model.parallel import ALONE, Parallel
from herd.model.transformer import Transformer
from herd.train.checkpoint import Checkpoints, Stateful
from herd.train.heldout import METRIC as HELDOUT
from herd.train.loss_spikes import LossSpikes
from herd.train.optimizer import Optimizer

RESUME = "re-run the same command to resume"
ENDED = "ended"
"""A hook that returns this, with the reason, ends the training behind the step: it is then done as after its last."""
STARVED = 0.1
"""Share of the time spent waiting for batches from which on the bar shows it."""
S = TypeVar("S")
LossFunction = Callable[[Transformer, B], tuple[Tensor, Mapping[str, Number | Mean]]]


class TrainConfig(Protocol):
    """What the loop reads of a stage's configuration."""

    @property
    def seed(self) -> int: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...
    @property
    def checkpoint(self) -> CheckpointConfig: ...
    @property
    def loss_spikes(self) -> LossSpikesConfig: ...


class Hook(Stateful, Protocol):
    """Follows a run step by step. What it keeps is saved with the run, under the name of its class."""

    def after_step(self, step: int, optimizer: Optimizer, *, updated: bool) -> dict[str, object]:
        """Called after each step with whether its update was made; returns what is recorded of the step. It may change
        weights by way of the optimizer, which keeps the masters."""
        ...


def train(
    model: Transformer,
    batches: Batches[B],
    loss_fn: LossFunction[B],
    config: TrainConfig,
    stage: Stage,
    *,
    hooks: Sequence[Hook] = (),
    parallel: Parallel = ALONE,
    split: Callable[[B], Sequence[B]] = lambda batch: [batch],
) -> None:
    """Train `model` in place to the end of `batches`, or until a hook ends it; checkpoints, metrics and the clock live
    in the stage's folder.

    `loss_fn` gives what is minimised and what is recorded, of a part of the step's batch, which the loop has moved to
    the model's device; what is recorded may be tensors there, which the loop reads together. Over micro-batches and
    ranks both are summed, so it divides by what is the whole step's, such as `Batch.total_weight`. What it draws from
    torch's own generator is a function of the seed and the step. Raises Stopped after SIGTERM or Ctrl-C, and HerdError
    when a batch cannot be had or outliers come in a row; all steps before are then saved, and a batch in the making is
    cancelled. All ranks of `parallel` run this, on their parts of model and batches, and the first one writes what is
    recorded. `split` gives the micro-batches that are computed one after the other before the one update.
    """
    optimizer, spikes = Optimizer(model, config.optimizer, batches.num_steps, parallel), LossSpikes(config.loss_spikes)
    record = stage.work / "metrics.jsonl" if parallel.first else None
    parts: dict[str, Stateful] = {"optimizer": optimizer, "loss_spikes": spikes}
    parts |= {type(hook).__name__: hook for hook in hooks}
    model.train()
    with (
        Checkpoints(stage, config.checkpoint, parts) as checkpoints,
        Tracker(record, start_step=(start := checkpoints.resume())) as tracker,
        stop_on_signals() as request,
        progress_bar(stage.name, batches.num_steps, done=start, quiet=not parallel.first) as bar,
        closing(prefetch(batches, start, request.__bool__)) as steps,
        naming_out_of_memory("raise micro_batches, set recompute, or lower batch_tokens"),
    ):
        if start > batches.num_steps:
            raise HerdError(f"{start} steps are saved, more than the {batches.num_steps} asked for: set more tokens")
        if parallel.first:
            stage.record_resume(start)
            if start:
                bar.print(f"{stage.name}: resumes after step {start} of {batches.num_steps}")
        meter = Meter(bar, batches.unit)
        for step, coming in meter.waiting(steps):
            failed = coming.exception() if coming.done() else None
            if checkpoints.save_if_due(step, leave=bool(request or spikes.trouble or failed)):
                raise why_left(step, batches.num_steps, request, spikes, failed) from failed
            batch = coming.result()
            torch.manual_seed(seed_of(config.seed, "step", step))
            loss, counted = accumulate(model, split(batch), loss_fn)
            parallel.sum_gradients(optimizer.parameters)
            objective, size, figures, [norm] = parallel.total(loss, batch.size, counted, [optimizer.grad_norm()])
            rate = optimizer.schedule(step)
            metrics: dict[str, object] = {"loss": objective, **figures, "lr_factor": rate, "grad_norm": norm}
            outlier = spikes.judge(objective, norm)
            if outlier is None:
                optimizer.step(step, norm)
            else:
                metrics["skipped"] = outlier
                bar.print(f"step {step} skipped: its {outlier}")
            optimizer.clear()
            for hook in hooks:
                metrics |= hook.after_step(step, optimizer, updated=outlier is None)
            metrics |= meter.advance(size, metrics)
            tracker.log(step, **metrics, seconds=round(stage.seconds, 2))
            if reason := metrics.get(ENDED):
                bar.print(f"{stage.name}: ends after step {step + 1} of {batches.num_steps}: {reason}")
                break
    if spikes.num_skipped and parallel.first:
        print(f"{stage.name}: {spikes.num_skipped} of {batches.num_steps} steps skipped as outliers")
    model.eval()


def accumulate(
    model: Transformer, parts: Sequence[B], loss_fn: LossFunction[B]
) -> tuple[Tensor, dict[str, Number | Mean]]:
    """Add up the gradients of the parts of a batch, and their metrics."""
    device = model.embedding.weight.device
    total, figures = torch.zeros((), dtype=sum_dtype(device), device=device), dict[str, Number | Mean]()
    for part in parts:
        loss, counted = loss_fn(model, to_device(part, device))
        loss.backward()
        total += loss.detach()
        for name, value in counted.items():
            figures[name] = figures[name] + value if name in figures else value  # type: ignore[operator]
    return total, figures


def why_left(
    step: int, num_steps: int, request: StopRequest, spikes: LossSpikes, missing: BaseException | None
) -> BaseException:
    """The error that ends a run before its end, all `step` steps before being saved."""
    saved = f"the {step} steps of {num_steps} before are saved"
    if isinstance(missing, OSError):
        place = f"{missing.filename} ({missing.strerror})" if missing.filename else str(missing)
        return HerdError(f"step {step} cannot read {place}: restore it, then {RESUME}; {saved}")
    if isinstance(missing, HerdError):
        return HerdError(f"{missing}; {saved}")
    if missing is not None:
        return missing
    if spikes.trouble:
        return HerdError(f"{spikes.trouble}: look at the data there and at the learning rates; {saved}, {RESUME}")
    kind = Interrupted if request.by_ctrl_c else Stopped
    return kind(f"stopped as asked, {saved}: {RESUME}")


class Meter:
    """The rate of a training, in the metrics and on the bar, with the losses."""

    def __init__(self, bar: ProgressBar, unit: str) -> None:
        self.bar, self.unit = bar, unit
        self._rates: list[int] = []
        self._heldout = ""
        self._begin = self._last = time.monotonic()
        self._wait_s = self._waited_s = 0.0

    def waiting(self, steps: Iterable[S]) -> Iterator[S]:
        """The steps, while the time until each has its batch is counted."""
        coming = iter(steps)
        while True:
            begin = time.monotonic()
            step = next(coming, None)
            self._wait_s = time.monotonic() - begin
            self._waited_s += self._wait_s
            if step is None:
                return
            yield step

    def advance(self, size: float, metrics: Mapping[str, object]) -> dict[str, object]:
        """After a step over `size` of the unit; gives its rate, by the time since the last step's end: waiting for data
        and for checkpoints is in it. Waiting for data is given too, and shown where it takes a tenth of the time."""
        now = time.monotonic()
        self._rates.append(round(size / (now - self._last)))
        self._last = now
        if HELDOUT in metrics:
            self._heldout = f", held out {metrics[HELDOUT]:.3f} bits/byte"
        # The median, as single steps vary: the last one's rate is what the bar would be remembered by.
        rate = f"{median(self._rates):,.0f} {self.unit}/s"
        starved = self._waited_s / (now - self._begin)
        waits = f", {starved:.0%} waiting for data" if starved > STARVED else ""
        self.bar.advance(rate=rate, note=f"loss {metrics['loss']:.3f}{self._heldout}{waits}")
        return {f"{self.unit}_per_s": self._rates[-1], "data_wait_s": round(self._wait_s, 3)}
