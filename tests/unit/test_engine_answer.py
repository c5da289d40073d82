"""An answer's text, ends, and what guessing ahead may not change."""

import hashlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_folder import random_tokenizer
from torch import Tensor

from herd.data.tokens.text_stream import TextStream
from herd.engine import sampler
from herd.engine.answer import Answer, Piece, advance, join_pieces
from herd.engine.sampler import SamplingParams
from herd.engine.structure import Structure, Structures
from herd.errors import HerdError

TOKENIZER = random_tokenizer()
SIZE = TOKENIZER.vocab_size + 5  # a kin's embedding may have rows to spare
END = TOKENIZER.ids.stop
STRUCTURES = Structures(TOKENIZER, vocab_size=SIZE, stop=END)
PROMPT = TOKENIZER.encode("the cat")


def logits_behind(tokens: Sequence[int]) -> Tensor:
    """A model: logits that are a function of what was said."""
    digest = hashlib.blake2b(repr(list(tokens)).encode(), digest_size=7).digest()
    logits = torch.randn(SIZE, generator=torch.Generator().manual_seed(int.from_bytes(digest, "little"))) * 2
    logits[list(END)] += 1.5  # that answers end of themselves too
    logits[TOKENIZER.vocab_size :] += 2  # and rows to spare are met
    return logits


def begin(params: SamplingParams, *, room: int = 1000) -> Answer:
    progress = STRUCTURES.start(params.structure) if params.structure else None
    return Answer(
        params, prompt=PROMPT, tokenizer=TOKENIZER, end_tokens=END, room=room, seed=params.seed or 0, grammar=progress
    )  # fmt: skip


def run(answer: Answer, guess: Any = lambda tokens: []) -> Piece:
    """The whole answer by the model above; `guess` drafts tokens behind those that were said."""
    pieces = []
    while answer.finish_reason is None:
        draft = guess(answer.tokens)
        rows = [logits_behind([*answer.tokens, *draft[:k]]) for k in range(len(draft) + 1)]
        pieces += advance([answer], torch.stack(rows), [draft])
    return join_pieces(pieces)


many_params = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 30),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_p=st.sampled_from([1.0, 0.9]),
    repetition_penalty=st.sampled_from([1.0, 1.2]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
    stop=st.sampled_from([(), ("a",), ("th", "0")]),
    seed=st.integers(0, 1000),
    logprobs=st.sampled_from([None, 2]),
    structure=st.sampled_from([None, Structure(kind="regex", source="[a-f]{3,9}|(the cat )+")]),
)


@settings(max_examples=40, deadline=None)
@given(params=many_params, chance=st.randoms())
def test_drafts_right_and_wrong_change_nothing_of_an_answer(params: SamplingParams, chance: Any) -> None:
    plain = begin(params)
    wanted = run(plain)

    def guess(tokens: list[int]) -> list[int]:
        known = plain.tokens[len(tokens) : len(tokens) + chance.randint(0, 5)]
        return [token if chance.random() < 0.8 else chance.randrange(SIZE) for token in known]

    drafted = begin(params)
    assert run(drafted, guess) == wanted
    assert drafted.tokens == plain.tokens
    assert drafted.num_accepted <= drafted.num_drafted


def test_the_accepted_share_counts_right_drafts_and_wasted_ones() -> None:
    plain = begin(SamplingParams(max_tokens=9, seed=1, temperature=1.0, logit_bias=dict.fromkeys(END, -100.0)))
    run(plain)
    drafted = begin(plain.params)
    run(drafted, lambda tokens: [*plain.tokens[len(tokens) : len(tokens) + 2], SIZE - 1])
    # Three rounds of two right drafts, a wrong one, and the token drawn behind the right ones.
    assert (drafted.num_drafted, drafted.num_accepted) == (9, 6)


@settings(max_examples=60)
@given(ids=st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=40))
def test_text_in_pieces_is_the_text_of_the_whole(ids: list[int]) -> None:
    stream = TextStream(TOKENIZER)
    assert "".join(map(stream.push, ids)) + stream.finish() == TOKENIZER.decode(ids)


@given(ids=st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=40))
def test_a_tokenizer_that_is_not_of_bytes_streams_the_same_text(ids: list[int]) -> None:
    class Windowed:
        is_byte_level, decode = False, staticmethod(TOKENIZER.decode)

    stream = TextStream(Windowed())  # type: ignore[arg-type]
    assert "".join(map(stream.push, ids)) + stream.finish() == TOKENIZER.decode(ids)


def says(
    text: str, params: SamplingParams, *, room: int = 1000, letter_by_letter: bool = True
) -> tuple[Answer, list[Piece]]:
    """An answer whose model is sure of the tokens of `text`, then of the end."""
    ids = [i for part in (text if letter_by_letter else [text]) for i in TOKENIZER.encode(part)]
    answer, pieces = begin(params, room=room), []
    for token in [*ids, END[-1]]:
        if answer.finish_reason is None:
            sure = torch.zeros(1, SIZE)
            sure[0, token] = 50
            pieces += advance([answer], sure)
    return answer, pieces


@pytest.mark.parametrize("letter_by_letter", [True, False])
@pytest.mark.parametrize("stop", ["sat", "at sa", "t", " cat", "the"])
def test_a_stop_string_is_left_out_wherever_tokens_divide_it(stop: str, letter_by_letter: bool) -> None:
    text = "the cat sat on the mat"
    answer, pieces = says(text, SamplingParams(stop=("xyz", stop)), letter_by_letter=letter_by_letter)
    assert join_pieces(pieces).text == text[: text.index(stop)]
    assert answer.finish_reason == pieces[-1].finish_reason == "stop"
    assert text.startswith("".join(piece.text for piece in pieces))


def test_what_might_begin_a_stop_string_waits_and_comes_when_it_does_not() -> None:
    _, pieces = says("sa sat", SamplingParams(stop=("sats",)))
    assert [piece.text for piece in pieces] == ["", "", "sa ", "", "", "", "sat"]


def test_a_row_to_spare_is_no_text() -> None:
    answer = begin(SamplingParams(max_tokens=3))
    sure = torch.zeros(1, SIZE)
    sure[0, SIZE - 1] = 50
    assert [advance([answer], sure)[0].text for _ in range(3)] == ["", "", ""]
    assert answer.finish_reason == "length"


def test_a_character_of_two_tokens_comes_whole() -> None:
    _, pieces = says("ねこ", SamplingParams())
    assert join_pieces(pieces).text == "ねこ"
    assert all("\ufffd" not in piece.text for piece in pieces)


def test_an_answer_ends_at_the_room_of_the_context_and_at_its_own_limit() -> None:
    for room, limit in [(3, 100), (100, 3)]:
        answer, pieces = says("abcdef", SamplingParams(max_tokens=limit), room=room)
        assert (join_pieces(pieces).text, answer.finish_reason) == ("abc", "length")


def test_log_probabilities_are_given_for_each_token_and_the_end() -> None:
    answer, pieces = says("ab", SamplingParams(logprobs=1, temperature=1.0, logit_bias={5: 3.0}))
    reported = join_pieces(pieces).logprobs
    assert [one.token_id for one in reported] == [*answer.tokens, END[-1]]
    assert all(one.logprob == pytest.approx(0.0, abs=1e-3) and one.top[0][0] == one.token_id for one in reported)
    assert join_pieces(says("ab", SamplingParams())[1]).logprobs == ()


def test_a_structure_that_cannot_go_on_ends_its_answer_and_no_other() -> None:
    # After an "a" the grammar asks for a control token, which never stands inside an answer.
    dead = begin(SamplingParams(structure=Structure(kind="grammar", source=f'start: "a" <[{END[0] - 1}]>')))
    alive = begin(SamplingParams(max_tokens=3))
    for _ in range(2):
        pieces = advance([dead, alive], torch.stack([logits_behind(())] * 2))
    assert pieces[0].finish_reason == dead.finish_reason == "error" and "cannot be continued" in pieces[0].text
    assert pieces[1].token_ids == alive.tokens[1:] != []


def test_a_draw_that_fails_for_one_answer_fails_for_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = sampler.adjust_logits

    def broken(logits_BV: Tensor, rows: Sequence[sampler.Row]) -> Tensor:
        if any(row.params.min_p == 0.5 for row in rows):
            raise IndexError("a hook failed")
        return sound(logits_BV, rows)

    monkeypatch.setattr(sampler, "adjust_logits", broken)
    bad, good = begin(SamplingParams(min_p=0.5)), begin(SamplingParams())
    pieces = advance([bad, good], torch.stack([logits_behind(())] * 2))
    assert pieces[0].finish_reason == bad.finish_reason == "fault" and "IndexError: a hook failed" in pieces[0].text
    assert pieces[1].finish_reason is None and len(good.tokens) == 1


def test_a_bias_for_a_token_that_is_none_is_refused() -> None:
    with pytest.raises(HerdError, match="no token 100000"):
        begin(SamplingParams(logit_bias={100_000: 1.0}))
