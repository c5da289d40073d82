"""The training loop, on one screen, and what it measures."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from herd.config import CheckpointConfig, GuardConfig, OptimizerConfig
from herd.core.errors import HerdError, Interrupted, Stopped
from herd.core.lineage import Stage
from herd.core.metrics import Mean
from herd.core.signals import Request, asked_to_stop
from herd.core.streams import seed_of
from herd.core.tracker import Tracker
from herd.data.loader import B, Batches, ahead
from herd.model.parallel import ALONE, Parallel
from herd.model.transformer import Transformer
from herd.train.checkpoint import Checkpoints, Stateful
from herd.train.guard import Guard
from herd.train.optimizer import Optimizer

LossFunction = Callable[[Transformer, B], tuple[Tensor, Mapping[str, float | Mean]]]


class TrainConfig(Protocol):
    """What the loop reads of a stage's configuration."""

    @property
    def seed(self) -> int: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...
    @property
    def checkpoint(self) -> CheckpointConfig: ...
    @property
    def guard(self) -> GuardConfig: ...


class Hook(Stateful, Protocol):
    """Follows a run step by step. What it keeps is saved with the run, under the name of its class."""

    def after_step(self, step: int, optimizer: Optimizer, *, updated: bool) -> dict[str, object]:
        """Told after each step, and whether its update was made; returns what is recorded of it. It may change weights
        by way of the optimizer, which keeps the masters."""
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
    """Train `model` in place to the end of `batches`; checkpoints, metrics and the clock live in the stage's folder.

    `loss_fn` gives what is minimised and what is recorded. What it draws from torch's own generator is a function of
    the seed and the step. Raises Stopped after SIGTERM or Ctrl-C, and HerdError when a batch cannot be had or outliers
    come in a row; all steps before are then saved. All ranks of `parallel` run this, on their parts of model and
    batches; what is recorded is summed over them, and the first one writes it. `split` tells the parts of a batch that
    are computed one after the other before the one update.
    """
    optimizer, guard = Optimizer(model, config.optimizer, batches.num_steps, parallel), Guard(config.guard)
    record = stage.work / "metrics.jsonl" if parallel.first else None
    parts: dict[str, Stateful] = {"optimizer": optimizer, "guard": guard}
    parts |= {type(hook).__name__: hook for hook in hooks}
    model.train()
    with (
        Checkpoints(stage, config.checkpoint, parts) as checkpoints,
        Tracker(record, start_step=(start := checkpoints.resume())) as tracker,
        asked_to_stop() as request,
        progress_bar(quiet=not parallel.first) as bar,
    ):
        if start > batches.num_steps:
            raise HerdError(f"{start} steps are saved, more than the {batches.num_steps} asked for: set more tokens")
        if parallel.first:
            stage.resumed(start)
        speeds: list[int] = []
        task = bar.add_task(stage.name, total=batches.num_steps, completed=start, note="")
        for step, coming in ahead(batches, start):
            if checkpoints.turn(step, leave=bool(request or guard.trouble or coming.exception())):
                missing = coming.exception()
                raise why_left(step, batches.num_steps, request, guard, missing) from missing
            batch = coming.result()
            torch.manual_seed(seed_of(config.seed, "step", step))
            began = time.monotonic()
            loss, counted = accumulate(model, split(batch), loss_fn)
            parallel.sum_gradients(optimizer.parameters)
            objective, size, told = parallel.total(loss, batch.size, counted)
            rate, norm = optimizer.schedule(step), optimizer.grad_norm()
            metrics: dict[str, object] = {"loss": objective, **told, "lr_factor": rate, "grad_norm": norm}
            outlier = guard.judge(objective, norm)
            if outlier is None:
                optimizer.step(step, norm)
            else:
                metrics["skipped"] = outlier
                bar.console.print(f"step {step} is left out: its {outlier}")
            optimizer.clear()
            for hook in hooks:
                metrics |= hook.after_step(step, optimizer, updated=outlier is None)
            speeds.append(round(size / (time.monotonic() - began)))
            tracker.log(step, **metrics, **{f"{batches.unit}_per_s": speeds[-1]}, seconds=round(stage.seconds, 2))
            # The median, as single steps vary: the last one's rate is what the bar would be remembered by.
            note = f"loss {metrics['loss']:.3f}, {median(speeds):,.0f} {batches.unit}/s"
            bar.update(task, advance=1, note=note)
    if guard.num_skipped and parallel.first:
        print(f"{stage.name}: {guard.num_skipped} of {batches.num_steps} steps were left out as outliers")
    model.eval()


def accumulate(
    model: Transformer, parts: Sequence[B], loss_fn: LossFunction[B]
) -> tuple[float, dict[str, float | Mean]]:
    """Add up the gradients of the parts of a batch, and what is told of them."""
    total, told = 0.0, dict[str, float | Mean]()
    for part in parts:
        loss, counted = loss_fn(model, part)
        loss.backward()
        total += loss.item()
        for name, value in counted.items():
            told[name] = told[name] + value if name in told else value  # type: ignore[operator]
    return total, told


def why_left(step: int, num_steps: int, request: Request, guard: Guard, missing: BaseException | None) -> BaseException:
    """The error that ends a run before its end, all `step` steps before being saved."""
    saved = f"the {step} steps of {num_steps} before are saved"
    if isinstance(missing, OSError):
        place = f"{missing.filename} ({missing.strerror})" if missing.filename else str(missing)
        return HerdError(f"step {step} cannot read {place}: bring it back, then say the same again; {saved}")
    if isinstance(missing, HerdError):
        return HerdError(f"{missing}; {saved}")
    if missing is not None:
        return missing
    if guard.trouble:
        return HerdError(
            f"{guard.trouble}: look at the data there and at the learning rates; {saved}, and the same command goes on"
        )
    kind = Interrupted if request.by_ctrl_c else Stopped
    return kind(f"stopped as asked, {saved}: the same command goes on from there")


def progress_bar(*, quiet: bool) -> Progress:
    """Rate and time left of a stage, on standard error."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True, quiet=quiet),
    )
