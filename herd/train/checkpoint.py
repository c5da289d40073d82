"""Checkpoints of a running stage with torch.distributed.checkpoint: written aside, put in place by a rename.

A checkpoint is the folder `state/step-N` of the stage's work folder. One that a kill tore keeps the name `….writing`
and is never read. The newest whole one is kept.
"""

import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException

from herd.core.errors import HerdError
from herd.core.files import naming_full_disk


def save(work: Path, step: int, state: dict[str, Any]) -> None:
    """Write `state` (nested dicts of tensors and numbers) as the checkpoint after `step` steps."""
    root = work / "state"
    writing, done = root / f"step-{step}.writing", root / f"step-{step}"
    shutil.rmtree(writing, ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)
    try:
        with naming_full_disk(done), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that there is one process, which is so
            _write(state, writing)
    except Exception:
        shutil.rmtree(writing, ignore_errors=True)  # what it takes is wanted by the next attempt
        raise
    if done.exists():
        shutil.rmtree(done)
    writing.rename(done)
    for old in root.iterdir():
        if old != done:
            shutil.rmtree(old)


def _write(state: dict[str, Any], folder: Path) -> None:
    cause = None
    try:
        dcp.save(state, checkpoint_id=folder, no_dist=True)
    except CheckpointException as error:  # no Exception; it holds what went wrong
        [(cause, _)] = error.failures.values()
    if cause is not None:  # raised out here, or it would lose what it came from
        raise cause


def newest(work: Path) -> Path | None:
    """The newest whole checkpoint of a work folder."""
    found = [path for path in (work / "state").glob("step-*") if path.suffix != ".writing"]
    return max(found, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def load(path: Path, state: dict[str, Any]) -> None:
    """Fill the tensors of `state` in place from a checkpoint."""
    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.load(state, checkpoint_id=path, no_dist=True)
    except (Exception, CheckpointException) as error:  # the latter is no Exception
        raise HerdError(f"the checkpoint {path} cannot be read ({error}): remove it to start the stage anew") from error
