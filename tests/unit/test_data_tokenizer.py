"""Text to ids and back, and no control token unasked."""

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.data.tokens.tokenizer import SPECIAL_TOKENS, Tokenizer, train_tokenizer
from herd.errors import HerdError

TOKENIZER = train_tokenizer(["the cat sat on the mat", "кошка сидит", "बिल्ली बैठी है", "ねこ"] * 10, 350)


@given(st.text())
def test_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(st.lists(st.sampled_from([*SPECIAL_TOKENS, "the", " ", "<|"]), max_size=6).map("".join))
def test_text_never_becomes_a_control_token_unasked(text: str) -> None:
    control = set(TOKENIZER.special.values())
    assert not control & set(TOKENIZER.encode(text))
    assert not control & set(TOKENIZER.encode_batch([text])[0])


def test_allowed_control_tokens_are_read_and_others_stay_text() -> None:
    ids = TOKENIZER.encode("a<|eot|>b<|eom|>", allowed_special=frozenset({"<|eot|>"}))
    assert ids.count(TOKENIZER.special["<|eot|>"]) == 1
    assert TOKENIZER.special["<|eom|>"] not in ids
    assert TOKENIZER.decode(ids, skip_special=False) == "a<|eot|>b<|eom|>"


def test_a_saved_tokenizer_opens_as_it_was(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    opened = Tokenizer.load(tmp_path)
    assert opened.special == TOKENIZER.special
    assert opened.encode("the кошка <|eot|>") == TOKENIZER.encode("the кошка <|eot|>")


def test_a_tokenizer_sent_to_another_process_reads_no_control_token_either() -> None:
    sent = pickle.loads(pickle.dumps(TOKENIZER))
    assert sent.encode("a<|eot|>b") == TOKENIZER.encode("a<|eot|>b")
    assert sent.special == TOKENIZER.special


def test_a_missing_or_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(HerdError, match=r"tokenizer\.json is missing"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(HerdError, match="not a readable tokenizer"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_model_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_text("IQ== 0\nnot base64 1\n")
    with pytest.raises(HerdError, match=r"tokenizer\.model line 2 is not"):
        Tokenizer.load(tmp_path)
    path.write_text("IQ== 0\nIg== 2\n")
    with pytest.raises(HerdError, match="is it whole"):
        Tokenizer.load(path)
    with pytest.raises(HerdError, match="missing"):
        Tokenizer.load(tmp_path / "other.model")


def test_half_a_surrogate_pair_is_the_replacement_character() -> None:
    assert TOKENIZER.encode("a\ud83d!") == TOKENIZER.encode("a\ufffd!")
    assert TOKENIZER.encode_batch(["a\ud83d!", "\ud83d\ude00"]) == [
        TOKENIZER.encode("a\ufffd!"),
        TOKENIZER.encode("😀"),
    ]
