"""The loop: a run that is killed and goes on ends with the same bits as one that is not."""

import errno
import os
import re
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor

from herd.config import CheckpointConfig, MoEConfig, OptimizerConfig, PretrainConfig, SpecialIds, preset
from herd.core.batch import Batch
from herd.core.lineage import Stage
from herd.core.tracker import read_metrics
from herd.errors import HerdError, Interrupted, Stopped
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.train.balance import Balancer
from herd.train.checkpoint import newest
from herd.train.loop import LossFunction, train
from herd.train.losses import language_loss
from herd.train.optimizer import Optimizer
from herd.train.rules import orthogonalise

SPECIAL = SpecialIds(bos=1, end_of_text=2, eom=3, eot=4, pad=5, image_start=6, image_end=7, patch=8)
CONFIG = PretrainConfig(checkpoint=CheckpointConfig(every_s=0.0))


class Killed(Exception):
    """Stands for SIGKILL."""


class RandomBatches:
    """Batches of random tokens, a function of the step."""

    unit = "tokens"

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps

    def batch(self, step: int) -> Batch:
        tokens = torch.randint(10, 64, (64,), generator=torch.Generator().manual_seed(step))
        return Batch(
            tokens_N=tokens,
            targets_N=tokens.roll(-1),
            weights_N=torch.ones(64),
            positions_N=torch.arange(64) % 32,
            starts_S=torch.tensor([0, 32, 64], dtype=torch.int32),
            images=None,
            kinds_N=torch.zeros(64, dtype=torch.int8),
        )


def fresh_model() -> Transformer:
    shape = replace(preset("tiny", vocab_size=64, special=SPECIAL), dim=64, head_dim=16, dense_ffn_dim=128, vision=None)
    model = Transformer(replace(shape, moe=MoEConfig(num_experts=4, ffn_dim=64))).to(torch.bfloat16)
    initialise(model, torch.Generator().manual_seed(0))
    return model


def run(folder: Path, batches: RandomBatches, loss_fn: LossFunction[Batch] | None = None) -> Transformer:
    model = fresh_model()
    stage = Stage("test", folder, config={}, parents={})
    minimised = loss_fn or language_loss(0.01)
    train(model, batches, minimised, CONFIG, stage, hooks=[Balancer(model, 0.05, batches, minimised)])
    return model


def lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run, without what the clock says."""
    kept = read_metrics(folder.with_name(folder.name + ".partial") / "metrics.jsonl")
    return [
        {key: value for key, value in line.items() if key not in {"seconds", "tokens_per_s", "data_wait_s"}}
        for line in kept
    ]


def same_weights(one: Transformer, other: Transformer) -> bool:
    return all(map(torch.equal, one.parameters(), other.parameters()))


def test_a_killed_run_ends_with_the_bits_of_an_uninterrupted_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def deadly(model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, object]]:
        if torch.equal(batch.tokens_N, RandomBatches(6).batch(4).tokens_N):
            raise Killed
        return language_loss(0.01)(model, batch)

    whole = run(tmp_path / "whole", RandomBatches(6))
    with pytest.raises(Killed):
        run(tmp_path / "torn", RandomBatches(6), deadly)
    assert 1 <= len(lines(tmp_path / "torn")) <= 4
    assert "resumes" not in capsys.readouterr().err
    assert same_weights(run(tmp_path / "torn", RandomBatches(6)), whole)
    assert re.search(r"\w+: resumes after step [1-4] of 6\n", capsys.readouterr().err)
    assert lines(tmp_path / "torn") == lines(tmp_path / "whole")


def test_the_bar_ends_with_the_median_rate_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def slow_at_the_end(model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, object]]:
        if torch.equal(batch.tokens_N, RandomBatches(5).batch(4).tokens_N):
            time.sleep(0.5)
        return language_loss(0.01)(model, batch)

    monkeypatch.setenv("COLUMNS", "200")
    run(tmp_path / "whole", RandomBatches(5), slow_at_the_end)
    speeds = [line["tokens_per_s"] for line in read_metrics(tmp_path / "whole.partial" / "metrics.jsonl")]
    assert speeds[-1] == min(speeds)
    assert f" {median(speeds):,.0f} tokens/s" in capsys.readouterr().err


def test_the_rate_counts_the_time_that_a_batch_was_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "slow.partial" / "metrics.jsonl"

    class Slow(RandomBatches):
        def batch(self, step: int) -> Batch:
            if step == 3:
                while len(read_metrics(record)) < 3:
                    time.sleep(0.01)
                time.sleep(0.3)  # the loop has done step 2 and waits
            return super().batch(step)

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("herd.train.loop.STARVED", 0.0)  # on a busy machine the wait is a small part
    run(tmp_path / "slow", Slow(5))
    assert "% waiting for data" in capsys.readouterr().err
    before, line = read_metrics(record)[2:4]
    assert line["data_wait_s"] > 0.25 > before["data_wait_s"]
    whole_s = line["seconds"] - before["seconds"]
    assert whole_s > 0.25 and 64 / line["tokens_per_s"] == pytest.approx(whole_s, abs=0.1, rel=0.1)


class Waiting(RandomBatches):
    """Batch `at` waits for an event, for ever if no one sets it."""

    def __init__(self, num_steps: int, at: int) -> None:
        super().__init__(num_steps)
        self.at, self.event, self.asked = at, threading.Event(), threading.Event()

    def batch(self, step: int) -> Batch:
        if step == self.at:
            self.asked.set()
            self.event.wait()
        return super().batch(step)


class Cancelled(Waiting):
    """The same, and it stops waiting when it is cancelled."""

    def cancel(self) -> None:
        self.event.set()


def workers() -> int:
    return sum(thread.name == "batches" for thread in threading.enumerate())


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("batches", [Waiting, Cancelled])
def test_a_run_that_waits_for_a_batch_leaves_when_asked_to(
    batches: type[Waiting], kind: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("herd.data.loading.batches.GRACE_S", 0.2)
    made, before = batches(5, at=3), workers()

    def ask() -> None:
        made.asked.wait()
        time.sleep(0.3)  # the loop waits now
        os.kill(os.getpid(), kind)

    threading.Thread(target=ask).start()
    began = time.monotonic()
    with pytest.raises((Stopped, Interrupted), match=r"the 3 steps of 5 before are saved"):
        run(tmp_path / "torn", made)
    assert time.monotonic() - began < 20
    # One that cannot be cancelled is left behind, and does not hold up the end of Python.
    left = [thread for thread in threading.enumerate() if thread.name == "batches"]
    assert len(left) - before == (batches is Waiting) and all(thread.daemon for thread in left)
    made.event.set()
    assert same_weights(run(tmp_path / "torn", RandomBatches(5)), run(tmp_path / "whole", RandomBatches(5)))


def test_an_error_in_a_step_cancels_the_batch_in_the_making(tmp_path: Path) -> None:
    made, before = Cancelled(5, at=2), workers()

    def failing(model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, object]]:
        if torch.equal(batch.tokens_N, RandomBatches(5).batch(1).tokens_N):
            made.asked.wait()
            raise Killed
        return language_loss(0.01)(model, batch)

    with pytest.raises(Killed):
        run(tmp_path / "torn", made, failing)
    assert made.event.is_set() and workers() == before


def test_what_a_loss_draws_is_the_same_after_a_resume(tmp_path: Path) -> None:
    def noisy(model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, object]]:
        loss, metrics = language_loss(0.01)(model, batch)
        return loss * (1 + torch.rand(())), metrics

    whole = run(tmp_path / "whole", RandomBatches(4), noisy)
    with pytest.raises(HerdError):
        run(tmp_path / "torn", Vanishing(4, at=2), noisy)
    assert same_weights(run(tmp_path / "torn", RandomBatches(4), noisy), whole)


class Vanishing(RandomBatches):
    """Step `at` cannot be read."""

    def __init__(self, num_steps: int, at: int) -> None:
        super().__init__(num_steps)
        self.at = at

    def batch(self, step: int) -> Batch:
        if step == self.at:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", "shards/7.parquet")
        return super().batch(step)


def test_a_vanished_shard_is_named_and_nothing_before_it_is_lost(tmp_path: Path) -> None:
    message = (
        r"step 3 cannot read shards/7.parquet \(No such file or directory\): restore it, then re-run the same command"
    )
    with pytest.raises(HerdError, match=message):
        run(tmp_path / "torn", Vanishing(5, at=3))
    assert newest(tmp_path / "torn.partial" / "state") == tmp_path / "torn.partial" / "state" / "step-3"
    assert same_weights(run(tmp_path / "torn", RandomBatches(5)), run(tmp_path / "whole", RandomBatches(5)))
    assert lines(tmp_path / "torn") == lines(tmp_path / "whole")


def test_sigterm_finishes_the_step_saves_and_stops(tmp_path: Path) -> None:
    def asked(model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, object]]:
        if torch.equal(batch.tokens_N, RandomBatches(5).batch(2).tokens_N):
            os.kill(os.getpid(), signal.SIGTERM)
        return language_loss(0.01)(model, batch)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(
        Stopped, match=r"the 3 steps of 5 before are saved: re-run the same command to resume"
    ) as stopped:
        run(tmp_path / "torn", RandomBatches(5), asked)
    assert stopped.value.exit_code == 75
    assert signal.getsignal(signal.SIGTERM) == before
    assert newest(tmp_path / "torn.partial" / "state") == tmp_path / "torn.partial" / "state" / "step-3"
    assert same_weights(run(tmp_path / "torn", RandomBatches(5)), run(tmp_path / "whole", RandomBatches(5)))


def test_training_lowers_the_loss_on_what_repeats(tmp_path: Path) -> None:
    class Same(RandomBatches):
        def batch(self, step: int) -> Batch:
            return super().batch(0)

    run(tmp_path / "same", Same(30))
    losses = [line["loss"] for line in read_metrics(tmp_path / "same.partial" / "metrics.jsonl")]
    assert losses[-1] < losses[0] / 2


def test_orthogonalised_updates_have_singular_values_near_one() -> None:
    matrices = torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices).float())
    assert values.min() > 0.5 and values.max() < 1.5


def test_the_schedule_rises_stays_and_falls_to_nothing() -> None:
    optimizer = Optimizer(fresh_model(), OptimizerConfig(warmup_ratio=0.1, decay=0.5), 100)
    factors = [optimizer.schedule(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9:51] == [1.0] * 42
    assert factors[99] == pytest.approx(0.02) and factors[50:] == sorted(factors[50:], reverse=True)
    halved = Optimizer(fresh_model(), OptimizerConfig(warmup_ratio=0.1, decay=0.5, lr_scale=0.5), 100)
    assert [2 * halved.schedule(step) for step in range(100)] == factors


def test_one_factor_scales_every_learning_rate() -> None:
    rates = ("matrix_lr", "adamw_lr", "embedding_lr", "other_lr", "unembedding_lr")
    base = OptimizerConfig()
    by_hand = replace(base, **{name: 0.5 * getattr(base, name) for name in rates})
    ends = []
    for config in (replace(base, lr_scale=0.5), by_hand):
        model = fresh_model()
        optimizer = Optimizer(model, config, 4)
        for step in range(3):
            for number, parameter in enumerate(model.parameters()):
                parameter.grad = torch.full_like(parameter, 0.01 * (number + 1))
            optimizer.step(step, 1.0)
        ends.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
    first = fresh_model()
    for name, before in first.named_parameters():
        assert torch.equal(ends[0][name], ends[1][name]), name
        assert not torch.equal(ends[0][name], before.detach()), name
