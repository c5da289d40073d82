"""herd.rl.demonstrations: chats of the tasks of RL, whose held-out content is in no training chat."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from herd.config import DataConfig, DemonstrationSource
from herd.data.loading import tables
from herd.data.tasks.chats import Chat, ChatTask
from herd.data.tokens.tokenizer import Tokenizer
from herd.errors import HerdError
from herd.rl.demonstrations import rows
from herd.rl.environment import open_environment
from herd.stages.data import build_data


def chat_of(row: dict[str, Any]) -> Chat:
    kept = {name: value for name, value in row.items() if name not in {"source", "tools"}}
    return Chat(**{**kept, "messages": json.loads(row["messages"])})


@pytest.mark.parametrize("name", ["digits", "spelling", "chains", "search", "answers", "calculator"])
def test_each_row_shows_what_the_environment_rewards_and_evaluation_grades_alike(name: str):
    made = list(rows(DemonstrationSource(environment=name, num=60, heldout=40), 3))
    assert Counter(row["split"] for row in made) == {"train": 60, "heldout": 40}
    assert len({row["id"] for row in made}) == 100
    environment = open_environment(name, None, 3)
    for row in made:
        chat = chat_of(row)
        assert environment.respond(chat.question, chat.messages[-1]).reward == 1
        assert json.loads(row["tools"] or "[]") == list(environment.tools)
        task = ChatTask([chat])
        assert task.grade(chat.question, chat.answer).right and not task.grade(chat.question, "!").right
    prompts = {
        split: {json.dumps(chat_of(row).messages[0]) for row in made if row["split"] == split}
        for split in ("train", "heldout")
    }
    assert not prompts["train"] & prompts["heldout"]


def test_rl_under_the_same_seed_does_not_begin_with_what_was_shown():
    shown = {json.loads(row["messages"])[0]["content"] for row in rows(DemonstrationSource(environment="digits"), 3)}
    digits = open_environment("digits[*-7]", None, 3)
    assert not shown & {digits.prompt(cell, i)[0]["content"] for cell in digits.cells for i in range(50)}


def test_any_right_answer_to_a_search_counts_in_evaluation_too():
    [row] = rows(DemonstrationSource(environment="search", num=1, heldout=0, cells=("ten-3",)), 3)
    chat = chat_of(row)
    other = " ".join(chat.answer.split()[::-1])
    assert other != chat.answer and ChatTask([chat]).grade(chat.question, other).right


def test_the_cells_asked_for_are_shown_equally_often():
    made = list(rows(DemonstrationSource(environment="digits", num=21, heldout=0, cells=("sort-*", "copy-3")), 3))
    kinds = Counter(
        (asked := json.loads(row["messages"])[0]["content"].split())[0] + str(len(asked) - 1) for row in made
    )
    assert kinds.keys() == {"copy3", "sort3", "sort4", "sort5", "sort6", "sort7"} and set(kinds.values()) == {3, 4}
    with pytest.raises(HerdError, match="unknown cell 'sorts-"):
        list(rows(DemonstrationSource(environment="digits", cells=("sorts-*",)), 3))


class Silent:
    """An environment that shows nothing."""

    cells, tools = ("only",), ()

    def __init__(self, *, seed: int, heldout: bool) -> None: ...

    def prompt(self, cell: str, index: int) -> list[dict[str, Any]]:
        return [{"role": "user", "content": "?"}]

    def respond(self, messages: Any, answer: Any, *, seed: int = 0) -> Any: ...


class Shown(Silent):
    def demonstration(self, cell: str, index: int) -> list[dict[str, Any]]:
        return [{"role": "assistant", "content": "!"}]


def test_what_cannot_be_shown_is_named():
    with pytest.raises(HerdError, match="has no method `demonstration"):
        list(rows(DemonstrationSource(environment=f"{__name__}:Silent"), 1))
    with pytest.raises(HerdError, match="has 1 different prompts for train, not 2"):
        list(rows(DemonstrationSource(environment=f"{__name__}:Shown", num=2), 1))


def test_a_data_folder_of_demonstrations_alone_has_chats_and_a_tokenizer_of_their_words(tmp_path: Path):
    source = DemonstrationSource(environment="digits", num=30, heldout=10)
    folder = build_data(DataConfig(demonstrations=(source,), vocab_size=320, seed=4), tmp_path / "data")
    found = tables.read(folder, "chats")
    assert found == list(rows(source, 4))
    tokenizer = Tokenizer.load(folder / "tokenizer")
    assert len(tokenizer.encode("sort")) == 1 and len(tokenizer.encode("1 2 3")) == 5
    facts = json.loads((folder / "herd.json").read_text())["card"]["chats"]
    assert facts == {"digits heldout": 10, "digits train": 30}
    again = build_data(DataConfig(demonstrations=(source,), vocab_size=320, seed=5), tmp_path / "other")
    assert tables.read(again, "chats") != found
