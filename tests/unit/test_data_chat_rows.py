"""Chats, preferences and prompts: each form of their rows gives the same conversation."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest
from own_files import GOOD, SEA, build, jsonl, turns, write

from herd.data.loading import tables
from herd.data.tasks.chats import Chat, ChatTask


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        (GOOD, GOOD["messages"]),
        (
            {"system": "No.", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
            turns(("system", "No."), ("user", "Hi"), ("assistant", "Hello"))["messages"],
        ),
        (
            {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day", "history": [["A", "B"]]},
            turns(("user", "A"), ("assistant", "B"), ("user", "Translate.\n\nGuten Tag"), ("assistant", "Good day"))[
                "messages"
            ],
        ),
        ({"prompt": "Hi", "completion": "Hello"}, turns(("user", "Hi"), ("assistant", "Hello"))["messages"]),
        (
            {"prompt": turns(("system", "Short."), ("user", "Hi"))["messages"], "completion": [
                {"role": "assistant", "content": "Hello"}
            ]},
            turns(("system", "Short."), ("user", "Hi"), ("assistant", "Hello"))["messages"],
        ),
    ],
)  # fmt: skip
def test_each_chat_format_is_found_by_its_columns(row: Any, messages: Any, tmp_path: Path) -> None:
    for name, data in (("a.jsonl", jsonl(row)), ("b.json", json.dumps([row]).encode())):
        built = build(write(tmp_path / name, {name: data}), tmp_path / f"{name}.out")
        [kept] = tables.read(built, "chats")
        assert json.loads(kept["messages"]) == messages
    table = pyarrow.Table.from_pylist([row])
    (tmp_path / "p").mkdir()
    parquet.write_table(table, tmp_path / "p" / "c.parquet")
    [kept] = tables.read(build(tmp_path / "p", tmp_path / "p.out"), "chats")
    assert json.loads(kept["messages"]) == messages


@pytest.mark.parametrize(
    ("answer", "kept"), [("1", "1"), (1, "1"), (-1.5, "-1.5"), ("so #### 4", "4"), (None, ""), ("", "")]
)
def test_the_answer_beside_a_chat_is_kept(answer: Any, kept: str, tmp_path: Path) -> None:
    problem = {"dataset": "arithmetic.chain_sum", "config": {"seed": 1, "size": 1}, "index": 0}
    rows = [
        GOOD | {"answer": answer, "verifier": problem},
        {"prompt": "2 + 2?", "completion": "It is 4", "answer": answer},
        {"instruction": "2 + 3?", "output": "It is 5", "answer": answer, "verifier": json.dumps(problem)},
    ]
    found = tables.read(build(write(tmp_path / "in", {"a.jsonl": jsonl(*rows)}), tmp_path / "out"), "chats")
    assert [row["answer"] for row in found] == [kept] * 3
    assert [json.loads(row["verifier"] or "null") for row in found] == (
        [problem, None, problem] if kept else [None] * 3
    )


def test_an_answer_or_a_verifier_that_cannot_be_used_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [GOOD | {"answer": ["1"]}, {"prompt": "2?", "completion": "2", "answer": "2", "verifier": "mine:is_two"}]
    built = build(write(tmp_path / "in", {"a.jsonl": jsonl(*rows)}), tmp_path / "out")
    assert [(row["answer"], row["verifier"]) for row in tables.read(built, "chats")] == [("", ""), ("2", "")]
    printed = capsys.readouterr().out
    assert "changed 1 chats whose answer is neither text nor a number: not used" in printed
    assert "changed 1 chats whose verifier is no problem of reasoning-gym" in printed


@pytest.mark.parametrize(
    ("right", "given", "equal"),
    [
        ("-1", "1", False),
        ("1", " 1.", True),
        ("1.5", "15", False),
        ("1.5", "1 5", False),
        ("50%", "50", False),
        ("Paris", "paris.", True),
    ],
)
def test_a_number_is_compared_with_its_sign_and_its_point(right: str, given: str, equal: bool) -> None:
    said = [{"role": "user", "content": "?"}]
    chat = Chat(id="a", split="train", kind="chat", language="en", messages=said, answer=right)
    assert ChatTask([chat]).grade(said, given).right is equal


def test_calls_results_and_tools_of_both_formats_are_the_same_chat(tmp_path: Path) -> None:
    add = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
    openai = {
        "messages": [
            {"role": "user", "content": "2 + 2?"},
            {"role": "assistant", "content": None, "tool_calls": [
                {"type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
            ]},
            {"role": "tool", "content": "4"},
            {"role": "assistant", "content": "Four."},
        ],
        "tools": [{"type": "function", "function": add}],
    }  # fmt: skip
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "2 + 2?"},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2}}'},
            {"from": "observation", "value": "4"},
            {"from": "gpt", "value": "Four."},
        ],
        "tools": json.dumps([add]),
    }
    built = [
        tables.read(build(write(tmp_path / name, {"a.jsonl": jsonl(row)}), tmp_path / f"{name}.out"), "chats")[0]
        for name, row in (("openai", openai), ("sharegpt", sharegpt))
    ]
    assert [row["id"] for row in built] == [built[0]["id"]] * 2
    assert json.loads(built[0]["tools"])[0]["function"] == add


def test_preferences_in_every_form_of_trl_are_the_same_rows(tmp_path: Path) -> None:
    user, good, bad = ({"role": "user", "content": "Hi"}, *({"role": "assistant", "content": t} for t in ("Yes", "No")))
    rows = [
        {"prompt": "Hi", "chosen": "Yes", "rejected": "No"},
        {"prompt": [user], "chosen": [good], "rejected": [bad]},
        {"prompt": "Hi", "chosen": [user, good], "rejected": [user, bad]},
        {"chosen": [user, good], "rejected": [user, bad]},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
        {"prompt": "Hi", "chosen": "Yes", "rejected": "Yes"},
    ]
    built = build(write(tmp_path / "mine", {"a.jsonl": jsonl(*rows), "b.txt": SEA.encode()}), tmp_path / "out")
    kept = tables.read(built, "preferences", ["prompt", "chosen", "rejected"])
    assert [{key: json.loads(value) for key, value in row.items()} for row in kept] == [
        {"prompt": [user], "chosen": [good], "rejected": [bad]}
    ] * 5


def test_prompts_have_their_answers_and_rules(tmp_path: Path) -> None:
    rows = [
        {"question": "2 + 2?", "answer": "Two and two.\n#### 4"},
        {"prompt": [{"role": "user", "content": "A haiku."}], "verifier": "mine:is_haiku"},
        {"problem": "1 + 1?", "answer": 2, "rules": {"kind": "integer"}},
        {"question": "Why?", "answer": ""},
    ]
    built = build(write(tmp_path / "mine", {"a.jsonl": jsonl(*rows), "b.txt": SEA.encode()}), tmp_path / "out")
    kept = [(row["answer"], row["verifier"]) for row in tables.read(built, "prompts")]
    assert kept == [("4", ""), ("", "mine:is_haiku"), ("2", '{"kind": "integer"}')]
