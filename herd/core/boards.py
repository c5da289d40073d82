"""Metrics shown elsewhere too, as they come: TensorBoard's files, trackio's local store. Both are extras.

`HERD_TRACK=tensorboard,trackio` asks for them, as `--track` does for one command. It is no part of a stage's config:
where a run is watched changes nothing about it. Numbers go there, lists (the experts' load) stay in metrics.jsonl.
"""

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from herd.errors import HerdError, unknown

VARIABLE = "HERD_TRACK"


class Board(Protocol):
    """Takes the numbers of each step."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in `RUN/tensorboard/STAGE`, for `tensorboard --logdir RUN/tensorboard`."""

    def __init__(self, run: Path, stage: str, start_step: int) -> None:
        writer = import_extra("torch.utils.tensorboard", "tensorboard").SummaryWriter
        # What an earlier attempt logged of steps that are repeated is hidden.
        self._writer = writer(str(run / "tensorboard" / stage), purge_step=start_step)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Trackio:
    """trackio's store on this machine (`$TRACKIO_DIR`), for `trackio show`: the project is the run's folder.

    Steps that are repeated after a kill appear twice: it has no way to remove a line.
    """

    def __init__(self, run: Path, stage: str, start_step: int) -> None:
        trackio = import_extra("trackio", "trackio")
        quiet = {"embed": False, "auto_log_cpu": False, "auto_log_gpu": False}
        self._run = trackio.init(project=run.name or "herd", name=stage, resume="allow", **quiet)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


BOARDS: dict[str, Callable[[Path, str, int], Board]] = {"tensorboard": TensorBoard, "trackio": Trackio}


def import_extra(module: str, package: str) -> Any:
    """An extra, or what to install."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise HerdError(f"--track {package} needs the package {package}: pip install {package}") from None


def requested_boards() -> list[str]:
    """The boards that `$HERD_TRACK` names."""
    names = [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    for name in names:
        if name not in BOARDS:
            raise unknown(f"board in {VARIABLE},", name, BOARDS)
    return names


def boards(metrics: Path, start_step: int) -> list[Board]:
    """Those asked for, for the stage that writes `metrics` in its folder."""
    work = metrics.resolve().parent
    return [BOARDS[name](work.parent, work.name.removesuffix(".partial"), start_step) for name in requested_boards()]
