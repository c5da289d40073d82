"""The released tokenizer, opened here and by transformers, gives tiktoken's ids on any text."""

import itertools
import random
import time
import unicodedata
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.data.tokens.tiktoken import special_tokens
from herd.data.tokens.tokenizer import MAX_CHARS, MAX_RUN, Tokenizer, bounded

CODE = [
    path.read_text(encoding="utf-8")
    for path in sorted(Path(__file__).parents[2].glob("herd/**/*"))
    if path.suffix in {".py", ".cpp", ".h", ".html", ".jinja"}
]


def ids(reference: Any, text: str) -> list[int]:
    return reference.encode(text, bos=False, eos=False)


def scripts() -> dict[str, list[str]]:
    """Letters and marks by the first word of their names: LATIN, CYRILLIC, CJK, CUNEIFORM, …"""
    found = defaultdict(list)
    for letter in map(chr, itertools.chain(range(0xD800), range(0xE000, 0x110000))):
        if unicodedata.category(letter)[0] in "LM":
            found[unicodedata.name(letter, "UNNAMED").split()[0]].append(letter)
    return found


def words(letters: list[str], rng: random.Random) -> str:
    """Made-up sentences of a script, with digits and marks between the words."""
    between = [" ", " ", " ", "\n", ", ", ". ", " 2024 ", "-", "'s ", "\r\n\t", "。", "؟ ", "  "]
    return "".join(
        "".join(rng.choices(letters, k=rng.randint(1, 9))) + rng.choice(between) for _ in range(rng.randint(5, 60))
    )


def test_the_special_tokens_have_the_released_ids(released, reference):
    assert {token: 200_000 + i for i, token in enumerate(special_tokens())} == reference.special_tokens
    assert all(released.special[token] == reference.special_tokens[token] for token in released.special)
    assert released.vocab_size == reference.n_words == 202_048
    known = released.ids
    assert (known.bos, known.end_of_text, known.eom, known.eot) == (200_000, 200_001, 200_007, 200_008)
    assert (known.pad, known.image_start, known.image_end, known.patch) == (200_018, 200_080, 200_081, 200_092)


def test_every_script_has_the_reference_s_ids(released, reference):
    rng = random.Random(0)
    groups = scripts()
    assert len(groups) > 150
    texts = [words(letters, rng) for letters in groups.values() for _ in range(3)]
    texts += [words(rng.choice(list(groups.values())) + list(groups["LATIN"])[:60], rng) for _ in range(100)]
    for text, ours in zip(texts, released.encode_batch(texts), strict=True):
        assert ours == ids(reference, text), text
        assert released.decode(ours) == text


def test_code_has_the_reference_s_ids(released, reference):
    assert len(CODE) > 50
    for text, ours in zip(CODE, released.encode_batch(CODE), strict=True):
        assert ours == ids(reference, text)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_random_text_and_random_bytes_have_the_reference_s_ids(released, reference, data):
    any_text = st.text(st.characters())  # half surrogate pairs too
    text = data.draw(any_text | st.binary().map(lambda b: b.decode("utf-8", "replace")) | st.text(" \n\t\r\x1c\u3000a"))
    assert released.encode(text) == ids(reference, text)


@settings(max_examples=200, deadline=None)
@given(tokens=st.lists(st.integers(0, 202_047), max_size=30))
def test_ids_that_end_inside_a_character_decode_as_the_reference_s(released, reference, tokens):
    assert released.decode(tokens, skip_special=False) == reference.decode(tokens)


@pytest.mark.parametrize(
    "text",
    [
        *("a" * 60_000, " " * 60_000, "A" * 60_000, "7" * 60_000, "字" * 60_000, "\n" * 60_000, "<|" * 30_000),
        *(
            "e\u0301" * 30_000,
            "x " * 250_000,
            "\x1c" * 30_000 + "a" * 30_000,
            "😀" * 30_000,
            "x" * 25_000 + " " * 25_001,
        ),
    ],
    ids=lambda text: f"{text[:2]!r} * {len(text)}",
)
def test_long_runs_are_cut_as_the_reference_cuts_them_and_take_no_square_time(released, reference, text):
    began = time.monotonic()
    ours = released.encode(text)
    assert time.monotonic() - began < 10
    assert ours == ids(reference, text)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("a \n\x1c字"), st.integers(1, 3 * MAX_RUN)), max_size=4))
def test_cuts_are_the_reference_s(tokenizer_model, runs):
    from llama_models.llama4.tokenizer import Tokenizer as Reference

    text = "".join(letter * count for letter, count in runs)
    parts = (text[i : i + MAX_CHARS] for i in range(0, len(text), MAX_CHARS))
    theirs = [piece for part in parts for piece in Reference._split_whitespaces_or_nonwhitespaces(part, MAX_RUN)]
    assert bounded(text) == (theirs or [""])


def test_the_saved_folder_opens_here_and_in_transformers_with_equal_ids(released_folder, in_transformers, reference):
    again, theirs = Tokenizer.load(released_folder), in_transformers
    assert theirs.bos_token_id == 200_000 and theirs.eos_token_id == 200_008 and theirs.pad_token_id == 200_018
    assert len(theirs) == again.vocab_size == 202_048
    rng = random.Random(1)
    for text in [words(letters, rng) for letters in scripts().values()] + CODE[::4]:
        if "<|" in text:
            continue  # transformers takes control tokens in plain text for what they spell
        expected = ids(reference, text)
        assert again.encode(text) == expected
        assert theirs.encode(text, add_special_tokens=False) == expected
    assert theirs.decode(ids(reference, "naïve 字 😀")) == "naïve 字 😀"


@pytest.mark.slow
def test_every_code_point_is_split_as_in_the_reference(released, reference):
    letters = map(chr, itertools.chain(range(0xD800), range(0xE000, 0x110000)))
    texts = [f"a{c}B {c}x 1{c}2'{c}l  {c}\n.{c}'S{c}{c}" for c in letters]
    for text, ours in zip(texts, released.encode_batch(texts), strict=True):
        assert ours == ids(reference, text), repr(text)
