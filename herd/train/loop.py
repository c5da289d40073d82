"""The training loop, on one screen, and what it measures."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from herd.config import OptimizerConfig
from herd.core.lineage import Stage
from herd.core.tracker import Tracker
from herd.data.loader import B, Batches, ahead
from herd.model.transformer import Transformer
from herd.train import checkpoint
from herd.train.optimizer import Optimizer

LossFunction = Callable[[Transformer, B], tuple[Tensor, dict[str, object]]]


class TrainConfig(Protocol):
    """What the loop reads of a stage's configuration."""

    @property
    def checkpoint_s(self) -> float: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...


def train(model: Transformer, batches: Batches[B], loss_fn: LossFunction[B], config: TrainConfig, stage: Stage) -> None:
    """Train `model` in place to the end of `batches`; checkpoints, metrics and the clock live in the stage's folder.

    `loss_fn` gives what is minimised and what is recorded.
    """
    optimizer = Optimizer(model, config.optimizer, batches.num_steps)
    start = resume(stage.work, optimizer)
    tracker = Tracker(stage.work / "metrics.jsonl", start_step=start)
    model.train()
    saved = time.monotonic()
    with progress_bar() as bar:
        task = bar.add_task(stage.name, total=batches.num_steps, completed=start, note="")
        for step, batch in ahead(batches, start):
            began = time.monotonic()
            loss, metrics = loss_fn(model, batch)
            loss.backward()
            rate, norm = optimizer.schedule(step), optimizer.step(step)
            speed = round(batch.size / (time.monotonic() - began))
            metrics = {"loss": loss.item(), **metrics, "lr": rate, "grad_norm": norm, f"{batches.unit}_per_s": speed}
            tracker.log(step, **metrics, seconds=round(stage.seconds, 2))
            bar.update(task, advance=1, note=f"loss {metrics['loss']:.3f}, {speed:,} {batches.unit}/s")
            if time.monotonic() - saved > config.checkpoint_s:
                checkpoint.save(stage.work, step + 1, {"step": step + 1, **optimizer.state_dict()})
                stage.keep_time()
                saved = time.monotonic()
    tracker.close()
    model.eval()


def resume(work: Path, optimizer: Optimizer) -> int:
    """Load the newest checkpoint, if there is one; returns the steps that it has behind it."""
    found = checkpoint.newest(work)
    if found is None:
        return 0
    state = {"step": 0, **optimizer.state_dict()}
    checkpoint.load(found, state)
    optimizer.load_state_dict(state)
    return int(state["step"])


def progress_bar() -> Progress:
    """Rate and time left of a stage, on standard error."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )
