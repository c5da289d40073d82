"""The whole evaluation of a made-up model whose right figures are known."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import evaluate_world as world
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from herd.config import EvaluateConfig
from herd.core.files import read_json, write_json
from herd.data.tasks.chats import Chat
from herd.errors import HerdError
from herd.evaluate.bits import cap_documents
from herd.evaluate.compress import xz_bytes, xz_bytes_after
from herd.evaluate.harness import evaluate
from herd.evaluate.tasks import frequent_answers

KNOWN = [*range(20, 30), *range(40, 60)]  # half of the subjects, all styles


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    model = world.Model(KNOWN)
    monkeypatch.setattr("herd.evaluate.evaluation.load", lambda folder, **_: model)
    monkeypatch.setattr("herd.engine.score.log_likelihoods", world.log_likelihoods)
    monkeypatch.setattr("herd.engine.score.token_losses", world.token_losses)
    monkeypatch.setattr("herd.evaluate.chat_loss.render_messages", world.render_messages)
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
    assert (bits["all"]["model_low"], bits["all"]["model_high"]) == (pytest.approx(1), pytest.approx(1))
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


def test_tasks_keep_the_sign_and_have_the_most_frequent_answer_beside_them(folders: dict[str, Any]) -> None:
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


def test_a_language_without_names_is_refused_before_the_work(folders: dict[str, Any]) -> None:
    with pytest.raises(HerdError, match=r"unknown language in .*pictures\.parquet: 'xx', known: de, en, ru"):
        run(folders, replace(world.CONFIG, languages=("en", "xx")))
    assert folders["model"].asked == 0


def test_a_table_without_a_column_is_named(folders: dict[str, Any]) -> None:
    path = folders["data"] / "chats.parquet"
    parquet.write_table(parquet.read_table(path).drop(["kind"]), path)
    with pytest.raises(HerdError, match=r"chats\.parquet lacks the column kind"):
        run(folders)


SECTIONS = {"bits_per_byte", "naming", "chat_loss", "tasks", "samples"}


@pytest.mark.parametrize(
    ("absent", "left_out"),
    [
        (["pictures"], {"naming": "the data folder has no held-out pictures with names"}),
        (["text"], {"bits_per_byte": "the data folder has no held-out text"}),
        (
            ["chats"],
            {
                "naming": "the data folder has no chat of kind 'name' that asks for a picture's name",
                "chat_loss": "the data folder has no held-out chats that end with the assistant",
                "tasks": "the data folder has no held-out chats with one right answer",
            },
        ),
        (["text", "pictures"], {"bits_per_byte": "no held-out text", "naming": "no held-out pictures"}),
        (
            ["pictures", "chats"],
            {"naming": "no held-out pictures", "chat_loss": "no held-out chats", "tasks": "no held-out chats"},
        ),
    ],
)
def test_sections_are_chosen_by_what_the_data_folder_has(
    folders: dict[str, Any], absent: list[str], left_out: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for table in absent:
        (folders["data"] / f"{table}.parquet").unlink()
    results = run(folders)
    assert results.keys() & SECTIONS == SECTIONS - left_out.keys()
    assert results["left_out"].keys() == left_out.keys()
    assert all(why in results["left_out"][name] for name, why in left_out.items())
    reported = capsys.readouterr().out
    assert all(f"{name}: left out, {why}" in reported for name, why in results["left_out"].items())
    assert read_json(folders["out"] / "herd.json")["metrics"].keys() == results.keys() & SECTIONS - {"samples"}
    assert (results["samples"]["continuations"] == []) == ("text" in absent)
    assert (results["samples"]["chats"] == []) == ("chats" in absent)


def test_a_model_of_text_alone_is_asked_what_needs_no_pictures(folders: dict[str, Any]) -> None:
    full = run(folders)["tasks"]["rows"]
    shown = [{"type": "image", "picture": "p1"}, {"type": "text", "text": world.QUESTIONS["en"]}]
    world.add_chats(folders["data"], [world.chat_row(0, "flag", "en", "heldout", shown, "F0")])
    folders["model"].processor.reads_pictures = False
    results = run(folders)
    assert results["left_out"] == {
        "naming": "the model reads text alone",
        "1 chats with pictures": "the model reads text alone",
    }
    assert "naming" not in results and results["tasks"]["rows"] == full


def test_a_folder_that_gives_nothing_to_evaluate_is_refused(folders: dict[str, Any]) -> None:
    for table in ("text", "pictures", "chats"):
        (folders["data"] / f"{table}.parquet").unlink()
    with pytest.raises(HerdError, match=r"gives nothing to evaluate \(bits_per_byte: the data folder has no held-out"):
        run(folders)


def test_data_that_can_only_be_sampled_is_refused(folders: dict[str, Any]) -> None:
    for table in ("text", "pictures", "chats"):
        (folders["data"] / f"{table}.parquet").unlink()
    world.add_chats(folders["data"], [world.chat_row(0, "free", "nl", "test", "hallo", "")])
    with pytest.raises(
        HerdError, match=r"gives nothing to evaluate .*chat_loss: the data folder has no held-out chats"
    ):
        run(folders)
    assert not folders["out"].exists()


def test_the_chief_figures_are_printed_at_the_end(folders: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    results = run(folders)
    printed = capsys.readouterr().out.splitlines()
    assert results["chat_loss"]["nats"] == pytest.approx(np.log(2))  # a bit for each token
    assert (results["chat_loss"]["chats"], results["chat_loss"]["tokens"]) == (9, 18)
    figures = [
        "bits per byte: 1.0000",
        "loss on held-out chats, nats a token: 0.6931",
        "naming, styles, open: right: 100.0%",
    ]
    assert all(figure in printed for figure in figures)
    shares = [f"{row['kind']}: right: {row['share']:.1%}" for row in results["tasks"]["rows"]]
    assert printed[-len(shares) :] == shares


def test_a_users_own_chats_are_enough_whatever_their_kinds_and_splits(folders: dict[str, Any]) -> None:
    for table in ("text", "pictures", "chats"):
        (folders["data"] / f"{table}.parquet").unlink()
    rows = [
        world.chat_row(0, "support", "nl", "test", "wat is 2 - 2 =", "wat is 2"),
        world.chat_row(1, "support", "nl", "test", "x" * 5000, "too long"),
        world.chat_row(2, "support", "nl", "train", "nog een", "C0"),
        world.chat_row(3, "free", "nl", "test", "hallo", ""),
    ]
    world.add_chats(folders["data"], rows)
    results = run(folders, EvaluateConfig())
    [row] = results["tasks"]["rows"]
    assert (row["kind"], row["hits"], row["count"], row["baseline"]["hits"]) == ("support", 1, 1, 0)
    assert results["samples"]["chats"] == [{"language": "nl", "question": "hallo", "answer": "C0"}]
    assert results["left_out"].keys() == {"bits_per_byte", "naming", "chat_loss", "1 questions"}
    assert results["left_out"]["1 questions"] == "longer than the context"


def test_languages_and_splits_are_those_of_the_data_folder(folders: dict[str, Any]) -> None:
    for table in ("text", "pictures"):
        path = folders["data"] / f"{table}.parquet"
        rows = parquet.read_table(path).to_pylist()
        others = {"heldout": "valid", "styles": "rare", "subjects": "train"}
        rows = [row | {"split": others.get(row["split"], row["split"])} for row in rows]
        parquet.write_table(pa.Table.from_pylist(rows), path)
    results = run(folders, replace(world.CONFIG, languages=(), kinds=()))
    assert [row["language"] for row in results["bits_per_byte"]["rows"]] == ["de", "en"]
    assert results["naming"]["splits"].keys() == {"rare"}
    asked = results["naming"]["splits"]["rare"]["open"]["rows"]
    assert [row["language"] for row in asked] == sorted(world.LANGUAGES)
    assert results["left_out"] == {}


def test_a_model_of_few_positions_reads_held_out_text_within_them(folders: dict[str, Any]) -> None:
    folders["model"].config.max_positions = 64
    assert run(folders)["bits_per_byte"]["all"]["model"] == pytest.approx(1)


def test_without_training_text_the_baselines_that_need_it_are_left_out(folders: dict[str, Any]) -> None:
    path = folders["data"] / "text.parquet"
    rows = [row for row in parquet.read_table(path).to_pylist() if row["split"] == "heldout"]
    parquet.write_table(pa.Table.from_pylist(rows), path)
    results = run(folders)
    assert results["bits_per_byte"]["all"].keys() == {"documents", "bytes", "model", "model_low", "model_high", "xz"}
    assert set(results["left_out"].values()) == {"the data folder has no training text"}
    assert "the byte 5-gram" in results["left_out"]


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
