"""Answers are split at a channel's cap, between graphemes."""

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from herd.serve.channels.text import Unit, split_text

FAMILY = "👩‍👩‍👧‍👦"
PIECES = [
    FAMILY,
    "🇩🇪",
    "👍🏽",
    "é",
    "e\u0301",
    "क्षि",
    "ا",
    "你",
    "𝔘",
    "a",
    " ",
    "\n",
    "\n\n",
    ". ",
    ", ",
    " \u0301",
    "\r\n",
]


def size(text: str, unit: Unit) -> int:
    return len(text.encode()) if unit == "bytes" else len(text.encode("utf-16-le")) // 2


def graphemes(text: str) -> list[str]:
    return [one for one in regex.findall(r"\X", text) if not one.isspace()]


TEXTS = st.lists(st.sampled_from(PIECES), max_size=60).map("".join)


@given(TEXTS, st.integers(25, 80), st.sampled_from(["characters", "bytes"]))
def test_parts_fit_lose_no_letter_and_break_no_grapheme(text: str, cap: int, unit: Unit):
    parts = split_text(text, cap, unit)
    assert all(0 < size(part, unit) <= cap and part == part.rstrip() for part in parts)
    assert [one for part in parts for one in graphemes(part)] == graphemes(text)


@pytest.mark.parametrize(("cap", "unit"), [(4096, "characters"), (2000, "characters"), (1000, "bytes")])
def test_a_text_at_the_cap_is_one_part_and_one_letter_more_are_two(cap: int, unit: Unit):
    assert split_text("a" * cap, cap, unit) == ["a" * cap]
    assert [len(one) for one in split_text("a" * (cap + 1), cap, unit)] == [cap, 1]


def test_emoji_count_four_bytes_each_on_instagram():
    assert [len(one) for one in split_text("😀" * 251, 1000, "bytes")] == [250, 1]


def test_a_paragraph_is_a_better_place_than_a_sentence_and_that_than_a_word():
    text = "one two. three four\n\nfive six. seven eight nine"
    assert split_text(text, 34, "characters") == ["one two. three four", "five six. seven eight nine"]
    assert split_text("one two. three four five", 14, "characters") == ["one two.", "three four", "five"]


def test_a_grapheme_longer_than_the_cap_still_ends():
    parts = split_text("a" + "\u0301" * 100, 20, "characters")
    assert all(size(one, "characters") <= 20 for one in parts)
    assert "".join(parts) == "a" + "\u0301" * 100


def test_an_empty_text_has_no_parts():
    assert split_text(" \n ", 10, "bytes") == []
