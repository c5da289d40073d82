"""`herd dpo` from files to a folder: what it learns, what it holds out, how it ends and resumes."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from herd.bench.select_world import new_model
from herd.config import DataConfig, DpoConfig, OptimizerConfig, PreferenceSource
from herd.core.files import write_json
from herd.core.lineage import read_lineage
from herd.core.tracker import read_metrics
from herd.engine.load import load
from herd.errors import HerdError, Stopped
from herd.stages import dpo as stage
from herd.stages.data import build_data
from herd.stages.dpo import dpo, read_pairs
from herd.train import reference as reference_module

RATES = OptimizerConfig(lr_scale=0.1, weight_decay=0.0, warmup_ratio=0.1, decay=0.5)
CONFIG = DpoConfig(
    batch_pairs=4, max_steps=10, context=128, max_kl=100.0, max_end_drop=100.0, optimizer=RATES, dtype="float32",
)  # fmt: skip


def write_pairs(path: Path, count: int) -> Path:
    """Answers of one word, in TRL's forms by turns."""
    words = ("cat", "mat", "Hund", "ねこ")
    rows: list[dict[str, Any]] = []
    for number in range(count):
        prompt, right, wrong = f"say {words[number % 4]} {number}", f"the {words[number % 4]}", "der Hund sat on"
        if number % 2:
            rows.append({"prompt": prompt, "chosen": right, "rejected": wrong})
        else:
            turns = [{"role": "user", "content": prompt}]
            sides = {k: [{"role": "assistant", "content": v}] for k, v in (("chosen", right), ("rejected", wrong))}
            rows.append({"prompt": turns, **sides})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", 60)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model at random weights."""
    folder = new_model(tmp_path_factory.mktemp("models") / "small", 0)
    write_json(folder / "herd.json", {"stage": "random"})
    return folder


def weights(folder: Path) -> list[torch.Tensor]:
    return list(load(folder).transformer.parameters())


def test_chosen_answers_win_on_prompts_that_were_not_trained_on(
    pairs: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = dpo(replace(CONFIG, pairs=str(pairs)), base, tmp_path / "out")
    lineage, lines = read_lineage(out), read_metrics(out / "metrics.jsonl")
    assert lineage["pairs"] + lineage["heldout_pairs"] == 60 and lineage["heldout_pairs"] > 0
    assert lineage["heldout"]["accuracy"] == 1.0 and lineage["heldout"]["margin"] > 0.1
    assert abs(lines[0]["margin"]) < 1e-4 and lines[-1]["margin"] > 0.1
    assert set(lineage["parents"]) == {"model", "pairs"} and lineage["ended"] == ""
    reported = capsys.readouterr().out
    assert "pairs to train on and" in reported and "dpo: held out, pair_loss" in reported
    assert not {"state", "reference"} & {path.name for path in out.iterdir()}


def test_pairs_of_a_prompt_are_held_out_together(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {number // 5}", "chosen": f"yes {number}", "rejected": "no"} for number in range(200)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_pairs(DpoConfig(pairs=str(path), heldout=0.3))
    sides: dict[str, set[bool]] = {}
    for pair in found:
        sides.setdefault(pair.prompt[0]["content"], set()).add(pair.heldout)
    assert len(found) == 200 and all(len(side) == 1 for side in sides.values())
    assert 4 < sum(side == {True} for side in sides.values()) < 22  # of 40


def test_a_data_folders_preferences_are_trained_on_in_its_split(pairs: Path, base: Path, tmp_path: Path) -> None:
    source = PreferenceSource(path=str(pairs), name="own")
    data = build_data(DataConfig(preferences=(source,), tokenizer=str(base), heldout=0.2), tmp_path / "data")
    config = replace(CONFIG, data=str(data), max_steps=1)
    found = read_pairs(config)
    assert len(found) == 60 and 0 < sum(pair.heldout for pair in found) < 30
    assert found[0].chosen[0]["role"] == "assistant"
    out = dpo(config, base, tmp_path / "out")
    assert set(read_lineage(out)["parents"]) == {"model", "data"}
    assert read_lineage(out)["heldout_pairs"] == sum(pair.heldout for pair in found)


def test_a_run_ends_by_itself_and_says_why(
    pairs: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    out = dpo(replace(CONFIG, pairs=str(pairs), max_kl=1e-5), base, tmp_path / "out")
    assert len(read_metrics(out / "metrics.jsonl")) == 4
    reason = "the KL divergence from the reference is about"
    assert reason in read_lineage(out)["ended"]
    assert f"dpo: ends after step 4 of 10: {reason}" in capsys.readouterr().err
    assert load(out)


def test_a_run_that_was_stopped_ends_with_the_same_weights_and_reads_the_reference_once(
    pairs: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, pairs=str(pairs))
    whole = dpo(config, base, tmp_path / "whole")
    batch, read, calls = stage.PairBatches.batch, reference_module._read, []

    def stopping(self: Any, step: int) -> Any:
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(self, step)

    monkeypatch.setattr(stage.PairBatches, "batch", stopping)
    monkeypatch.setattr(reference_module, "_read", lambda *args: calls.append(args) or read(*args))
    with pytest.raises(Stopped, match="re-run the same command to resume"):
        dpo(config, base, tmp_path / "stopped")
    monkeypatch.setattr(stage.PairBatches, "batch", batch)
    stopped = dpo(config, base, tmp_path / "stopped")
    assert len(calls) == 1
    assert all(torch.equal(one, other) for one, other in zip(weights(whole), weights(stopped), strict=True))
    assert read_lineage(stopped)["heldout"] == read_lineage(whole)["heldout"]


def test_what_cannot_be_trained_on_is_refused_with_what_to_give(base: Path, tmp_path: Path) -> None:
    with pytest.raises(
        HerdError, match="herd dpo needs pairs of answers: give --pairs FILE, --run FOLDER, or a data folder"
    ):
        dpo(CONFIG, base, tmp_path / "out")
    path = write_pairs(tmp_path / "pairs.jsonl", 3)
    with pytest.raises(HerdError, match="no pair is left to train on of"):
        dpo(replace(CONFIG, pairs=str(path), context=16), base, tmp_path / "out")
    with pytest.raises(HerdError, match="heldout_every=5 reads the held-out text of a data folder: give --data"):
        dpo(replace(CONFIG, pairs=str(path), heldout_every=5), base, tmp_path / "out")
