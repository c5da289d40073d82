"""Loss spikes: what is an outlier, what is not, and that a run forgets the ones it met."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from herd.bench.oracles import random_model, random_request
from herd.bench.parity import SCOUT_LIKE
from herd.config import CheckpointConfig, LossSpikesConfig, PretrainConfig
from herd.core.batch import Batch, Images
from herd.core.lineage import Stage
from herd.core.tracker import read_metrics
from herd.errors import HerdError
from herd.model.transformer import Transformer
from herd.train.loop import train
from herd.train.loss_spikes import FIRST, LossSpikes, expected
from herd.train.losses import language_loss
from herd.train.optimizer import Optimizer


def falling(step: int, rng: np.random.Generator) -> tuple[float, float]:
    """The loss and gradient norm of a healthy run."""
    loss = 2 + 7 / (1 + step / 20) ** 0.7
    return loss * (1 + 0.03 * rng.standard_normal()), math.exp(0.3 * rng.standard_normal())


@pytest.mark.parametrize("seed", range(5))
def test_a_falling_loss_has_no_outliers(seed: int) -> None:
    spikes, rng = LossSpikes(LossSpikesConfig()), np.random.default_rng(seed)
    assert [spikes.judge(*falling(step, rng)) for step in range(600)] == [None] * 600


def test_spikes_are_found_however_many_came_before_and_are_not_learnt_from() -> None:
    spikes, rng = LossSpikes(LossSpikesConfig()), np.random.default_rng(0)
    for step in range(400):
        loss, norm = falling(step, rng)
        if step >= FIRST and step % 10 == 7:
            assert spikes.judge(loss + 3, norm), step
            assert spikes.judge(loss, 100 * norm), step
        else:
            assert spikes.judge(loss, norm) is None, step
    assert spikes.num_skipped == 2 * len(range(17, 400, 10))


def test_strays_among_the_first_steps_do_not_hide_later_ones() -> None:
    values = [3 + 0.1 * math.sin(7 * i) for i in range(64)]
    clean = expected(values, "loss")
    strayed = expected([30.0 if i in (3, 9, 14) else value for i, value in enumerate(values)], "loss")
    assert strayed == pytest.approx(clean, rel=0.3)


def test_a_loss_that_levels_off_after_a_steep_fall_has_no_outliers() -> None:
    """The first steps of a run of the tiny recipe, whose pictures come in bursts."""
    losses = [10.835, 10.723, 10.507, 10.436, 10.112, 9.919, 9.313, 9.328, 8.995, 8.683, 8.429, 8.424, 7.879, 7.499]
    losses += [7.485, 7.432, 7.381, 6.539, 6.094, 6.412, 6.45, 6.901, 7.049, 6.377, 5.988, 6.317, 5.935, 6.244, 5.909]
    spikes = LossSpikes(LossSpikesConfig())
    assert [spikes.judge(loss, 1.0) for loss in losses] == [None] * len(losses)


def test_the_trend_of_a_line_is_where_it_leads() -> None:
    trend, sigma = expected([5 + 0.01 * i for i in range(128)], "loss")
    assert trend == pytest.approx(5 + 1.28) and sigma == pytest.approx(0.005 * trend)
    falls, _ = expected([5 - 0.01 * i for i in range(128)], "loss")
    assert falls == pytest.approx(5 - 1.255)  # the median of the last four
    assert expected([1.0] * (FIRST - 1), "loss")[1] == math.inf


@pytest.mark.parametrize("bad", [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
@pytest.mark.parametrize("skip", [("not_finite",), ("loss", "not_finite", "grad_norm")])
def test_what_is_not_a_number_is_an_outlier_from_the_first_step_on(bad: tuple[float, float], skip: Any) -> None:
    assert "is " in (LossSpikes(LossSpikesConfig(skip=skip)).judge(*bad) or "")


@pytest.mark.parametrize("kind", ["loss", "grad_norm", "not_finite"])
def test_a_kind_of_outlier_that_is_switched_off_skips_no_step_and_the_others_still_do(kind: str) -> None:
    skip: Any = tuple({"loss", "grad_norm", "not_finite"} - {kind})
    spikes, rng = LossSpikes(LossSpikesConfig(skip=skip)), np.random.default_rng(0)
    for step in range(64):
        assert spikes.judge(*falling(step, rng)) is None
    loss, norm = falling(64, rng)
    bad = {"loss": (loss + 3, norm), "grad_norm": (loss, 100 * norm), "not_finite": (math.nan, norm)}
    before = {name: list(values) for name, values in spikes.window.items()}
    for name, values in bad.items():
        assert (spikes.judge(*values) is None) == (name == kind)
    assert spikes.num_skipped == 2
    if kind == "not_finite":  # what is no number would make the window useless
        assert spikes.window == before


def test_the_window_comes_back_from_a_checkpoint() -> None:
    spikes, rng = LossSpikes(LossSpikesConfig(window=32)), np.random.default_rng(0)
    for step in range(40):
        spikes.judge(*falling(step, rng))
    spikes.judge(math.nan, 1.0)
    again = LossSpikes(LossSpikesConfig(window=32))
    again.load_state_dict(spikes.state_dict())
    assert (again.window, again.in_a_row, again.num_skipped) == (spikes.window, 1, 1)


class Pictures:
    """Small packs with a picture; in those of the steps `poisoned` one value of a pixel is not a number."""

    unit = "tokens"

    def __init__(self, poisoned: tuple[int, ...], num_steps: int) -> None:
        self.poisoned, self.num_steps = poisoned, num_steps

    def batch(self, step: int) -> Batch:
        request = random_request(SCOUT_LIKE, [9, 12], [(1, 1)], seed=step)
        tiles = request.tiles.clone()
        if step in self.poisoned:
            tiles[0, 1, 5, 5] = math.nan
        count = len(request.tokens_N)
        rows = torch.nonzero(request.tokens_N == SCOUT_LIKE.special.patch)[:, 0]
        return Batch(
            tokens_N=request.tokens_N,
            targets_N=request.tokens_N.roll(-1),
            weights_N=torch.ones(count),
            positions_N=torch.arange(count),
            starts_S=torch.tensor([0, count], dtype=torch.int32),
            images=Images(tiles=tiles, rows=rows),
            kinds_N=torch.zeros(count, dtype=torch.int8),
        )


def run(folder: Path, batches: Pictures, **settings: object) -> Transformer:
    model = random_model(SCOUT_LIKE, 0).requires_grad_(True)
    config = PretrainConfig(loss_spikes=LossSpikesConfig(**settings), checkpoint=CheckpointConfig(every_s=1e6))
    train(model, batches, language_loss(0.01), config, Stage("test", folder, config={}, parents={}))
    return model


def test_a_picture_with_a_pixel_that_is_not_a_number_changes_no_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Optimizer, "schedule", lambda *_: 1.0)  # it goes by the steps, of which one more is seen
    seen = run(tmp_path / "seen", Pictures((2,), 4))
    reported = "step 2 skipped: its loss is nan"
    assert reported in capsys.readouterr().err

    class Without(Pictures):
        def batch(self, step: int) -> Batch:
            return super().batch(step + (step >= 2))

    never = run(tmp_path / "never", Without((), 3))
    lines = read_metrics(tmp_path / "seen.partial" / "metrics.jsonl")
    assert [line.get("skipped") for line in lines] == [None, None, "loss is nan", None]
    assert lines[2]["loss"] is None
    for (name, one), other in zip(seen.named_parameters(), never.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_outliers_in_a_row_stop_the_run_and_the_same_command_resumes_after_them(tmp_path: Path) -> None:
    batches = Pictures((2, 3, 4), 7)
    reported = r"3 steps in a row were outliers, the last as its loss is nan: look .* the 5 steps of 7 before are saved"
    with pytest.raises(HerdError, match=reported):
        run(tmp_path / "out", batches, patience=3)
    run(tmp_path / "out", batches, patience=3)
    lines = read_metrics(tmp_path / "out.partial" / "metrics.jsonl")
    assert [line["step"] for line in lines if "skipped" in line] == [2, 3, 4]
    assert len(lines) == 7
