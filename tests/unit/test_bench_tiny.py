"""`herd bench tiny`: a finished run beside its targets, from what the run's folder has."""

import json
from pathlib import Path
from typing import Any

import evaluate_world as world
import pytest

from herd.cli import main
from herd.core.files import write_json
from herd.evaluate.harness import evaluate


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose model knows half of the new subjects' names and all drawings in a new style."""
    folder = tmp_path / "tiny"
    (folder / "sft").mkdir(parents=True)
    world.write_data(folder / "data")
    write_json(folder / "sft" / "herd.json", world.lineage("sft"))
    monkeypatch.setattr(
        "herd.evaluate.evaluation.load", lambda folder, **_: world.Model([*range(20, 30), *range(40, 60)])
    )
    monkeypatch.setattr("herd.engine.score.log_likelihoods", world.log_likelihoods)
    monkeypatch.setattr("herd.engine.score.token_losses", world.token_losses)
    monkeypatch.setattr("herd.evaluate.chat_loss.render_messages", world.render_messages)
    evaluate(world.CONFIG, folder / "sft", folder / "data", folder / "evaluate")
    return folder


def rows_of(run: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["bench", "tiny", str(run), "--json"]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["rows"]
    assert all(row.keys() == {"case", "unit", "ours", "peer", "peer_name", "ratio"} for row in rows)
    return rows


def starting(rows: list[dict[str, Any]], start: str) -> dict[str, Any]:
    [row] = [row for row in rows if row["case"].startswith(start)]
    return row


def test_each_target_has_a_row_whose_ratio_says_whether_it_is_met(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(run, capsys)
    assert len(rows) == 11
    assert starting(rows, "names of held-out pictures, styles, open (36 of 36)")["ratio"] == pytest.approx(3.6)
    language = starting(rows, "answers in the language asked")
    assert language["ratio"] == pytest.approx(language["ours"] / 0.9) and language["ratio"] < 1


def test_text_counts_in_the_language_where_the_model_is_worst(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "evaluate" / "results.json"
    results = json.loads(path.read_text())
    de, en = results["bits_per_byte"]["rows"]
    de |= {"model": 1.0, "xz": 2.0, "byte_5gram": 1.5}
    en |= {"model": 3.0, "xz": 2.0, "byte_5gram": 3.3}
    path.write_text(json.dumps(results))
    rows = {row["peer_name"]: row for row in rows_of(run, capsys)}
    xz, grams = rows["xz -9"], rows["the byte 5-gram"]
    assert (xz["ours"], xz["peer"]) == (3, 2) and "worst language (en; better in 1 of 2)" in xz["case"]
    assert grams["ratio"] == pytest.approx(1.1) and "(en; better in 2 of 2)" in grams["case"]


def test_time_and_memory_are_those_of_all_stages(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert starting(rows_of(run, capsys), "the whole recipe")["ratio"] > 1
    write_json(run / "sft" / "herd.json", world.lineage("sft", time_s=700.0, peak_memory_bytes=7 * 2**30))
    rows = rows_of(run, capsys)
    assert starting(rows, "the whole recipe")["ours"] > 712 and starting(rows, "the whole recipe")["ratio"] < 1
    memory = starting(rows, "peak memory (sft)")
    assert (memory["ours"], memory["peer"]) == (7, 6) and memory["ratio"] < 1


def test_the_table_ends_with_the_targets_met_and_missed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    met = sum(row["ratio"] >= 1 for row in rows_of(run, capsys))
    assert main(["bench", "tiny", str(run)]) == 0
    reported = capsys.readouterr().out
    assert 0 < met < 11 and f"targets met: {met} of 11" in reported
    assert reported.count("missed: ") == 11 - met and "missed: answers in the language asked" in reported


def test_a_run_without_an_evaluation_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "evaluate").rename(run / "evaluate.1")
    assert main(["bench", "tiny", str(run)]) == 1
    assert "has no finished evaluation: run `herd run tiny" in capsys.readouterr().err
