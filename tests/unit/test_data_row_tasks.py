"""Rows as tasks in cells: prompts with rules, of a file or a data folder, and chats with a right answer."""

import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from herd.data.loading import tables
from herd.data.tasks.chat_cells import ChatCells
from herd.data.tasks.known import open_task
from herd.data.tasks.prompts import RULES, PromptsTask, Ruled, last_number
from herd.data.tasks.task import UNKNOWN, CellTask, is_heldout, prompt_key
from herd.errors import HerdError
from herd.rl.environment import open_environment

ANY = st.text(st.characters(exclude_categories=()))


def asking(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def ruled(text: str, answer: str, rule: str = "", *, heldout: bool = False) -> Ruled:
    return Ruled(place="row", cell="mine", messages=asking(text), answer=answer, rule=rule, is_heldout=heldout)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def first_words(task: CellTask, count: int) -> list[str]:
    return [task.prompt(task.cells[0], i)[0]["content"] for i in range(count)]


@pytest.mark.parametrize(
    ("rule", "right", "said", "is_right"),
    [("", "a  b", "a b\n", True), ("exact", "4", "4.", False), ("number", "1,000", "so it is 1000.0 then", True),
     ("number", "4", "4 or 5", False), ("number", "-3", "x=−3", True), ("number", "4", "none", False),
     ("contains", "Paris", "It is PARIS, I think", True), ("contains", "Paris", "Par is", False),
     ("regex", r"^\d+ cats$", "12 cats", True), ("regex", r"^\d+ cats$", "12 cats!", False)],
)  # fmt: skip
def test_rules(rule: str, right: str, said: str, is_right: bool):
    task = PromptsTask([ruled("?", right, rule)], 1)
    assert task.grade(asking("?"), said).right == is_right
    assert task.grade([{"role": "system", "content": "Be brief."}, *asking("?")], said).right == is_right
    assert task.grade(asking("!"), said) == UNKNOWN


@given(st.sampled_from([*RULES]), st.integers(), ANY)
def test_any_string_has_a_grade_under_every_rule(rule: str, right: int, said: str):
    grade = PromptsTask([ruled("?", str(right), rule)], 1).grade(asking("?"), said)
    assert grade.score in (0, 1)


@given(st.integers(), st.decimals(allow_nan=False, allow_infinity=False, places=3))
def test_the_last_number_is_read_as_it_was_written(first: int, last: Decimal):
    assert last_number(f"{first}, not {last:,f}.") == last


def shortness(messages: Any, answer: str) -> float:
    return 1 / (1 + len(answer))


def nonsense(messages: Any, answer: str) -> float:
    return float("nan")


def test_a_function_of_the_users_may_grade():
    task = PromptsTask([ruled("?", "", f"{__name__}:shortness")], 1)
    assert [task.grade(asking("?"), said).score for said in ("", "x")] == [1, 0.5]
    with pytest.raises(HerdError, match="gives nan: a score is from 0 to 1"):
        PromptsTask([ruled("?", "", f"{__name__}:nonsense")], 1).grade(asking("?"), "")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (ruled("?", "4", "exat"), "row: unknown rule 'exat', did you mean 'exact'"),
        (ruled("?", "(", "regex"), "no regular expression"),
        (ruled("?", "four", "number"), "has no number"),
        (ruled("?", "", '{"a": 1}'), "unknown rule"),
        (ruled("?", "", f"{__name__}:shortnes"), "did you mean 'shortness'"),
        (ruled("?", "4", heldout=True), "none of the 1 prompts is of training"),
    ],
)
def test_rows_that_cannot_be_graded_are_refused_when_the_task_is_opened(row: Ruled, said: str):
    with pytest.raises(HerdError, match=said):
        PromptsTask([row], 1)


def test_a_file_is_dealt_in_turns_and_a_fifth_is_held_out_by_content(tmp_path: Path):
    path = write(
        tmp_path / "my sums.jsonl",
        [{"prompt": f"{i} + 1?", "answer": str(i + 1), "rule": "number"} for i in range(100)],
    )
    trained, held = open_task(str(path), None, 1), open_task(str(path), None, 1, heldout=True)
    assert trained.cells == held.cells == ("my-sums",)
    everyone = {f"{i} + 1?" for i in range(100)}
    kept = {text for text in everyone if is_heldout(prompt_key(asking(text)))}
    turn = len(everyone - kept)
    asked = first_words(trained, 2 * turn)
    assert set(asked[:turn]) == set(asked[turn:]) == everyone - kept and asked[:turn] != asked[turn:]
    assert set(first_words(held, 2 * len(kept))) == kept and 10 < len(kept) < 30
    assert first_words(open_task(str(path), None, 2), turn) != asked[:turn]
    for i in range(100):
        for task in (trained, held):
            assert task.grade(asking(f"{i} + 1?"), f"I say {i + 1}").right
    reaction = open_environment(str(path), None, 1).respond(asking("3 + 1?"), {"role": "assistant", "content": "4"})
    assert reaction.reward == 1


def test_a_row_that_cannot_be_read_is_named(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", [{"prompt": "2?", "answer": "2"}, {"prompt": "3?", "answer": [3]}])
    with pytest.raises(HerdError, match=r"skipped 1 prompts whose answer is neither text nor a number .*row 2"):
        open_task(str(path), None, 1)


def test_the_prompts_and_chats_of_a_data_folder_keep_its_splits(tmp_path: Path):
    common = {"source": "my set", "verifier": "", "tools": ""}
    prompts = [
        {
            **common,
            "id": str(i),
            "split": "heldout" if i > 4 else "train",
            "prompt": json.dumps(asking(f"{i}?")),
            "answer": "0",
        }
        for i in range(7)
    ]
    tables.write(tmp_path / "prompts.parquet", prompts, tables.PROMPTS)
    picture = [{"type": "image", "picture": "p1"}, {"type": "text", "text": "What is this?"}]
    chats = [
        ("train", "name", "de", picture, "Hund"), ("heldout", "name", "de", "B?", "Katze"),
        ("train", "capital", "en", "C?", "Rome"), ("train", "chat", "en", "D?", ""),
    ]  # fmt: skip
    rows = [
        {**common, "id": str(i), "split": split, "kind": kind, "language": language, "answer": answer,
         "messages": json.dumps([{"role": "user", "content": asked}, {"role": "assistant", "content": answer}])}
        for i, (split, kind, language, asked, answer) in enumerate(chats)
    ]  # fmt: skip
    tables.write(tmp_path / "chats.parquet", rows, tables.CHATS)
    assert set(first_words(open_task("prompts", tmp_path, 1), 5)) == {f"{i}?" for i in range(5)}
    assert set(first_words(open_task("prompts", tmp_path, 1, heldout=True), 2)) == {"5?", "6?"}
    names = open_task("names", tmp_path, 1)
    assert names.cells == ("name-de",) and names.prompt("name-de", 0) == [{"role": "user", "content": picture}]
    assert names.solution("name-de", 3) == "Hund" and names.grade(names.prompt("name-de", 0), "hund.").right
    assert names.grade([{"role": "system", "content": "Be brief."}, *names.prompt("name-de", 0)], "Hund").right
    assert first_words(open_task("names", tmp_path, 1, heldout=True), 1) == ["B?"]
    assert open_task("chats", tmp_path, 1).cells == ("capital-en", "name-de")
    with pytest.raises(HerdError, match="has no held-out chats of the kind capital"):
        ChatCells(tmp_path, 1, heldout=True, kinds=("capital",))
    with pytest.raises(HerdError, match="the task names reads a data folder"):
        open_task("names", None, 1)
    with pytest.raises(HerdError, match="unknown task 'digitz', did you mean 'digits'"):
        open_task("digitz", None, 1)


def test_pictures_are_opened_for_the_model_and_graded_by_their_ids(tmp_path: Path):
    png = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(png, "PNG")
    row = {"id": "p1", "split": "train", "source": "s", "subject": "", "names": "{}", "captions": "{}"}
    tables.write(tmp_path / "pictures.parquet", [{**row, "png": png.getvalue()}], tables.PICTURES)
    said = [
        {"role": "user", "content": [{"type": "image", "picture": "p1"}, {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": "Red"},
    ]
    chat = {"id": "1", "split": "train", "kind": "name", "language": "en", "answer": "Red", "verifier": "", "tools": ""}
    tables.write(tmp_path / "chats.parquet", [{**chat, "source": "s", "messages": json.dumps(said)}], tables.CHATS)
    names = open_environment("names", tmp_path, 1)
    asked = names.prompt("name-en", 5)
    assert asked[0]["content"][0]["image"].size == (8, 6) and asked[0]["content"][1]["text"] == "What is this?"
    right, wrong = (names.respond(asked, {"role": "assistant", "content": one}).reward for one in ("red", "blue"))
    assert (right, wrong) == (1, 0)
