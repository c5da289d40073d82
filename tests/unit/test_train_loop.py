"""The loop: a run that is killed and goes on ends with the same bits as one that is not."""

import errno
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import CheckpointException

from herd.config import OptimizerConfig, PretrainConfig, SpecialIds, preset
from herd.core.batch import Batch
from herd.core.errors import HerdError
from herd.core.lineage import Stage
from herd.core.tracker import read_metrics
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.train import checkpoint
from herd.train.loop import train
from herd.train.losses import language_loss
from herd.train.optimizer import Optimizer, orthogonalise

SPECIAL = SpecialIds(bos=1, end_of_text=2, eom=3, eot=4, pad=5, image_start=6, image_end=7, patch=8)
CONFIG = replace(PretrainConfig(), checkpoint_s=0.0)


class Killed(Exception):
    """Stands for SIGKILL."""


class RandomBatches:
    """Batches of random tokens, a function of the step; `kill_at` raises instead."""

    unit = "tokens"

    def __init__(self, num_steps: int, kill_at: int | None = None) -> None:
        self.num_steps, self.kill_at = num_steps, kill_at

    def batch(self, step: int) -> Batch:
        if step == self.kill_at:
            raise Killed
        tokens = torch.randint(10, 64, (64,), generator=torch.Generator().manual_seed(step))
        return Batch(
            tokens_N=tokens,
            targets_N=tokens.roll(-1),
            weights_N=torch.full((64,), 1 / 64),
            positions_N=torch.arange(64) % 32,
            starts_S=torch.tensor([0, 32, 64], dtype=torch.int32),
            images=None,
            kinds_N=torch.zeros(64, dtype=torch.int8),
        )


def fresh_model() -> Transformer:
    model = Transformer(preset("tiny", vocab_size=64, special=SPECIAL)).to(torch.bfloat16)
    initialise(model, torch.Generator().manual_seed(0))
    return model


def run(folder: Path, batches: RandomBatches) -> Transformer:
    model = fresh_model()
    stage = Stage("test", folder, config={}, parents={})
    train(model, batches, language_loss(0.01), CONFIG, stage, balance_rate=0.05)
    return model


def test_a_killed_run_ends_with_the_bits_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", RandomBatches(6))
    with pytest.raises(Killed):
        run(tmp_path / "torn", RandomBatches(6, kill_at=4))
    resumed = run(tmp_path / "torn", RandomBatches(6))
    for (name, one), other in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other), name
    steps = [line["step"] for line in read_metrics(tmp_path / "torn.partial" / "metrics.jsonl")]
    assert steps == list(range(6))


def test_training_lowers_the_loss_on_what_repeats(tmp_path: Path) -> None:
    class Same(RandomBatches):
        def batch(self, step: int) -> Batch:
            return super().batch(0)

    run(tmp_path / "same", Same(30))
    losses = [line["loss"] for line in read_metrics(tmp_path / "same.partial" / "metrics.jsonl")]
    assert losses[-1] < losses[0] / 2


def test_a_torn_checkpoint_is_never_chosen(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 3, {"step": 3, "x": {"a": torch.ones(2)}})
    (tmp_path / "state" / "step-9.writing").mkdir()
    assert checkpoint.newest(tmp_path) == tmp_path / "state" / "step-3"
    state = {"step": 0, "x": {"a": torch.zeros(2)}}
    checkpoint.load(tmp_path / "state" / "step-3", state)
    assert state["step"] == 3 and torch.equal(state["x"]["a"], torch.ones(2))


def test_a_checkpoint_that_the_disk_has_no_room_for_is_named_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(state: dict[str, object], *, checkpoint_id: Path, no_dist: bool) -> None:
        checkpoint_id.mkdir(parents=True)
        cause = RuntimeError("unexpected pos 704")  # as torch tells it
        cause.__context__ = OSError(errno.ENOSPC, "No space left on device")
        raise CheckpointException("", {0: (cause, None)})

    monkeypatch.setattr(checkpoint.dcp, "save", full)
    with pytest.raises(OSError, match="No space left") as error:
        checkpoint.save(tmp_path, 3, {"step": 3})
    assert error.value.filename == str(tmp_path / "state" / "step-3")
    assert list((tmp_path / "state").iterdir()) == []


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 3, {"step": 3})
    for file in (tmp_path / "state" / "step-3").iterdir():
        file.write_bytes(b"")
    with pytest.raises(HerdError, match="step-3 cannot be read"):
        checkpoint.load(tmp_path / "state" / "step-3", {"step": 0})


def test_orthogonalised_updates_have_singular_values_near_one() -> None:
    matrices = torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices).float())
    assert values.min() > 0.5 and values.max() < 1.5


def test_the_schedule_rises_stays_and_falls_to_nothing() -> None:
    optimizer = Optimizer(fresh_model(), OptimizerConfig(warmup=0.1, decay=0.5), 100)
    factors = [optimizer.schedule(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9:51] == [1.0] * 42
    assert factors[99] == pytest.approx(0.02) and factors[50:] == sorted(factors[50:], reverse=True)
