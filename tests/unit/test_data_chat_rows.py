"""Chats, preferences and prompts: each form of their rows gives the same conversation."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest
from own_files import GOOD, SEA, build, jsonl, turns, write

from herd.data.loading import tables


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
