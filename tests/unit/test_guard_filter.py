"""Training data without what a guard calls unsafe."""

import json

import pytest

from herd.errors import HerdError
from herd.guard.filter import filter_file
from herd.guard.model_guard import Verdict


class WordGuard:
    """Unsafe is what has the word POISON."""

    def judge_all(self, conversations):
        flags = ["POISON" in messages[-1]["content"] for messages in conversations]
        return [Verdict(unsafe=flag, score=float(flag), categories=("S1",) if flag else ()) for flag in flags]


def chat(*texts):
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]}


ROWS = [
    {"text": "Water."},
    {"text": "POISON."},
    chat("Hi", "Hello"),
    chat("POISON?", "I can't help with that."),
    chat("How?", "POISON!"),
    chat("POISON?", "No.", "POISON?"),
]


def run(tmp_path, **options):
    source, out = tmp_path / "rows.jsonl", tmp_path / "safe.jsonl"
    source.write_text("\n".join(map(json.dumps, ROWS)))
    counts = filter_file(WordGuard(), source, out, **options)
    read = [
        [json.loads(line) for line in path.read_text().splitlines()] for path in (out, tmp_path / "safe.removed.jsonl")
    ]
    return counts, *read


def test_unsafe_rows_go_to_a_file_of_their_own_and_the_others_stay_as_they_were(tmp_path):
    counts, kept, removed = run(tmp_path)
    assert kept == [ROWS[0], ROWS[2], ROWS[3]] and counts["kept"] == 3
    assert [(one["line"], one["categories"]) for one in removed] == [(2, ["S1"]), (5, ["S1"]), (6, ["S1"])]
    assert counts["removed"] == 3 and counts["S1"] == 3


def test_refused_requests_can_go_too(tmp_path):
    counts, kept, _ = run(tmp_path, keep_refused=False)
    assert kept == [ROWS[0], ROWS[2]] and counts["removed"] == 4


def test_nothing_is_overwritten_and_what_is_no_row_is_named(tmp_path):
    run(tmp_path)
    with pytest.raises(HerdError, match="is there already"):
        filter_file(WordGuard(), tmp_path / "rows.jsonl", tmp_path / "safe.jsonl")
    for line, says in (("{", "line 1 is no JSON"), ("3", "is no object"), ('{"x": 1}', "neither")):
        (tmp_path / "bad.jsonl").write_text(line)
        with pytest.raises(HerdError, match=says):
            filter_file(WordGuard(), tmp_path / "bad.jsonl", tmp_path / "other.jsonl")
        assert not (tmp_path / "other.jsonl").exists()
