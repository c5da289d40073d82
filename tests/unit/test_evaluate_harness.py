"""The whole evaluation of a made-up model whose right figures are known."""

import json
from pathlib import Path
from typing import Any

import evaluate_world as world
import numpy as np
import pytest

from herd.config import EvaluateConfig
from herd.core.errors import HerdError
from herd.core.files import read_json, write_json
from herd.data.chats import Chat
from herd.evaluate.bits import cap_documents
from herd.evaluate.compress import xz_bytes, xz_bytes_after
from herd.evaluate.harness import evaluate
from herd.evaluate.tasks import frequent_answers

KNOWN = [*range(20, 30), *range(40, 60)]  # half of the subjects, all styles


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    model = world.Model(KNOWN)
    monkeypatch.setattr("herd.evaluate.sections.load", lambda folder: model)
    monkeypatch.setattr("herd.engine.score.log_likelihoods", world.log_likelihoods)
    monkeypatch.setattr("herd.engine.score.token_losses", world.token_losses)
    (tmp_path / "sft").mkdir()
    write_json(tmp_path / "sft" / "herd.json", world.lineage("sft"))
    data = world.write_data(tmp_path / "data")
    return {"model": model, "sft": tmp_path / "sft", "data": data, "out": tmp_path / "evaluate"}


def run(folders: dict[str, Any], cfg: EvaluateConfig = world.CONFIG) -> dict[str, Any]:
    evaluate(cfg, folders["sft"], folders["data"], folders["out"])
    results: dict[str, Any] = read_json(folders["out"] / "results.json")
    return results


def test_a_model_that_takes_one_bit_a_byte_scores_one(folders: dict[str, Any]) -> None:
    bits = run(folders)["bits_per_byte"]
    assert [row["language"] for row in bits["rows"]] == ["de", "en"]
    assert bits["all"]["model"] == pytest.approx(1)
    assert all(row["bytes"] == 300 for row in bits["rows"])
    # The held-out texts repeat the training texts but for the number: what has seen them is far better.
    assert bits["all"]["xz_primed"] < bits["all"]["xz"]
    assert bits["all"]["token_5gram"] == pytest.approx(bits["all"]["byte_5gram"], rel=0.05)  # its tokens are bytes


def test_naming_counts_what_the_model_knows(folders: dict[str, Any]) -> None:
    splits = run(folders)["naming"]["splits"]
    for way in ("open", "closed"):
        styles = splits["styles"][way]["all"]
        assert (styles["hits"], styles["count"], styles["control"]) == (36, 36, 0)
        assert styles["ratio"] == 36
        assert styles["reachable"]["count"] == 36
        subjects = splits["subjects"][way]
        assert subjects["all"]["reachable"]["count"] == 0
        asked = [int(p["id"][1:]) for p in world.picture_rows() if p["split"] == "subjects"]
        assert 0 < subjects["all"]["hits"] < 36 and subjects["all"]["hits"] % 3 == 0
        assert len(asked) >= 12
    assert splits["styles"]["closed"]["rows"][0]["candidates"] == 16


def test_answers_in_english_to_other_languages_are_counted_as_wrong(folders: dict[str, Any]) -> None:
    results = run(folders)
    rows = {row["language"]: row for row in results["naming"]["language"]["rows"]}
    subjects = results["naming"]["splits"]["subjects"]["open"]["rows"]
    unknown = 12 - subjects[0]["hits"]
    assert rows["en"]["share"] == 1
    assert rows["de"]["hits"] == rows["ru"]["hits"] == 24 - unknown
    assert rows["en"]["overlap"] == 0


def test_tasks_keep_the_sign_and_stand_beside_the_most_frequent_answer(folders: dict[str, Any]) -> None:
    rows = {row["kind"]: row for row in run(folders)["tasks"]["rows"]}
    assert set(rows) == {"capital", "arithmetic"}
    assert rows["arithmetic"]["hits"] == 0  # "1" is not "-1"
    capital = rows["capital"]
    assert capital["count"] == 9 and capital["hits"] > 0
    assert capital["baseline"]["hits"] <= capital["hits"]  # only English has training answers


def test_the_most_frequent_answer_is_counted_in_training_only() -> None:
    def chat(number: int, split: str, answer: str) -> Chat:
        return Chat(id=str(number), split=split, kind="capital", language="en", messages=[], answer=answer)

    chats = [chat(0, "train", "Rome"), chat(1, "train", "Oslo"), chat(2, "train", "oslo."), chat(3, "heldout", "Rome")]
    chats += [chat(number, "heldout", "Rome") for number in range(4, 9)]
    assert frequent_answers(chats) == {("capital", "en"): "oslo"}


def test_samples_are_there_for_every_language(folders: dict[str, Any]) -> None:
    results = run(folders)
    assert [one["language"] for one in results["samples"]["continuations"]] == ["de", "en"]
    assert len(results["samples"]["chats"]) == 3
    pictures = results["naming"]["samples"]
    assert len(pictures) == 12 and all(one["image"].startswith("data:image/") for one in pictures)
    assert {len(one["answers"]) for one in pictures} == {3}


def test_every_bar_has_a_verdict_and_a_given_reason_shows_where_it_fell_short(folders: dict[str, Any]) -> None:
    reasons = ("language: it prefers English.", "naming.styles.open: not shown as the bar is held.")
    results = run(folders, EvaluateConfig(**{**vars(world.CONFIG), "reasons": reasons}))
    verdicts = {one["key"]: one for one in results["verdicts"]}
    assert len(verdicts) == 9
    assert not verdicts["language"]["held"] and verdicts["language"]["reason"] == "it prefers English."
    assert verdicts["naming.styles.open"]["held"] and not verdicts["naming.styles.open"]["reason"]
    assert "Only 0 of 36" in verdicts["naming.subjects.open"]["reason"]


def test_a_killed_evaluation_goes_on_with_the_next_section(
    folders: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("herd.evaluate.sections.task_table", killed)
        with pytest.raises(KeyboardInterrupt):
            run(folders)
    assert not folders["out"].exists()
    monkeypatch.setattr("herd.evaluate.sections.open_answers", killed)  # naming was done: not asked again
    assert run(folders)["naming"]["splits"]["styles"]["open"]["all"]["hits"] == 36
    assert not list(folders["out"].glob(".section-*"))


def test_other_settings_start_afresh(folders: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("herd.evaluate.sections.continuations", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(folders)
    results = run(folders, EvaluateConfig(**{**vars(world.CONFIG), "pictures": 5}))
    assert results["naming"]["splits"]["styles"]["open"]["all"]["count"] == 15


def test_the_same_evaluation_twice_gives_the_same_figures(folders: dict[str, Any]) -> None:
    first = run(folders)
    second = run(folders)
    assert json.dumps({**first, "seconds": None}) == json.dumps({**second, "seconds": None})


def test_a_misspelt_bar_in_the_reasons_is_refused_before_the_work(folders: dict[str, Any]) -> None:
    with pytest.raises(HerdError, match=r"did you mean 'bits\.xz'"):
        run(folders, EvaluateConfig(reasons=("bits.xy: because",)))
    assert folders["model"].asked == 0


def test_a_missing_table_is_named(folders: dict[str, Any]) -> None:
    (folders["data"] / "chats.parquet").unlink()
    with pytest.raises(HerdError, match=r"chats\.parquet is missing"):
        run(folders)


def test_a_folder_that_is_not_there_leaves_nothing_behind(folders: dict[str, Any]) -> None:
    with pytest.raises(HerdError, match="nowhere is not there: give a folder"):
        evaluate(world.CONFIG, folders["sft"].parent / "nowhere", folders["data"], folders["out"])
    assert not list(folders["out"].parent.glob("evaluate*"))


def test_documents_are_capped_between_characters() -> None:
    kept = cap_documents(["абв", "где", "жзи"], 9)
    assert kept == ["абв", "г"]
    assert cap_documents(["abc"], 10) == ["abc"]


def test_xz_after_the_same_text_adds_almost_nothing() -> None:
    text = bytes(np.random.default_rng(0).integers(0, 256, 20_000, dtype=np.uint8))
    assert xz_bytes(text) > 20_000
    assert xz_bytes_after(text, text) < 0.02 * xz_bytes(text)
