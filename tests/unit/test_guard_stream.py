"""Guards inside a conversation: nothing is shown before its verdict, and a guard that fails shows nothing."""

import asyncio
from types import SimpleNamespace

import pytest
from fake_herd import FakeModel
from hypothesis import given
from hypothesis import strategies as st

from herd.engine.conversation import Conversation
from herd.engine.pipeline import AnswerPipeline
from herd.engine.sampler import SamplingParams
from herd.errors import HerdError
from herd.guard.model_guard import Verdict
from herd.guard.stream import BLOCKED, GuardFilter, GuardGate
from herd.guard.taxonomy import HAZARDS
from herd.serve.session import ChatSession

BAD = "POISON"
QUESTION = [{"role": "user", "content": "How?"}]


class WordGuard:
    """Unsafe is what has the word BAD."""

    policy, weakness = HAZARDS, ""

    def __init__(self):
        self.judged = []

    def judge(self, messages):
        text = messages[-1]["content"]
        self.judged.append(text)
        unsafe = BAD in text
        return Verdict(unsafe=unsafe, score=float(unsafe), categories=("S1",) if unsafe else ())


def shown_by(one, pieces):
    """What a filter shows after each piece, and at the end."""
    shown = [one.push(piece) for piece in pieces]
    return [*shown, one.finish()]


@given(st.integers(0, 120), st.integers(1, 64), st.lists(st.integers(1, 17), min_size=1, max_size=40))
def test_no_byte_of_a_planted_word_is_shown_at_any_place_and_chunk_size(place, chunk, sizes):
    text = "x" * place + BAD + "y" * 40
    pieces, at = [], 0
    for size in [*sizes, len(text)]:
        pieces.append(text[at : at + size])
        at += size
    guard = WordGuard()
    one = GuardFilter(guard, QUESTION, chunk_chars=chunk)
    shown = "".join(shown_by(one, pieces))
    assert text.startswith(shown) and "POISON" not in shown and one.verdict.finish_reason == BLOCKED
    # All that was shown had been judged before, and called safe.
    assert shown == "" or shown in [text for text in guard.judged if BAD not in text]
    assert "S1 Violent Crimes" in one.verdict.explanation


def test_a_word_in_two_chunks_is_judged_whole():
    one = GuardFilter(WordGuard(), QUESTION, chunk_chars=3)
    assert "".join(shown_by(one, ["POI", "SON", "more"])) == "POI" and one.verdict


@given(st.lists(st.text(max_size=20), max_size=20), st.integers(1, 64))
def test_safe_text_passes_unchanged(pieces, chunk):
    one = GuardFilter(WordGuard(), QUESTION, chunk_chars=chunk)
    shown = "".join(shown_by(one, pieces))
    text = "".join(pieces)
    assert one.verdict is None and shown == (text if text.strip() else "")


def test_a_reply_is_judged_behind_its_conversation():
    seen = []
    guard = SimpleNamespace(policy=HAZARDS, judge=lambda m: seen.append(m) or Verdict(unsafe=False, score=0.0))
    shown_by(GuardFilter(guard, QUESTION), ["So."])
    assert seen == [[*QUESTION, {"role": "assistant", "content": "So."}]]


@pytest.mark.parametrize("error", [HerdError("no room"), RuntimeError("out of memory"), TimeoutError("60 s")])
def test_a_guard_that_fails_shows_nothing(error):
    def fail(_):
        raise error

    one = GuardFilter(SimpleNamespace(policy=HAZARDS, judge=fail), QUESTION, chunk_chars=2)
    assert "".join(shown_by(one, ["hello", "there"])) == ""
    assert one.verdict.finish_reason == BLOCKED and str(error) in one.verdict.explanation


def session_of(guard):
    model = FakeModel()
    return ChatSession(AnswerPipeline(model, model.engine(), gate=GuardGate(guard)), SamplingParams(max_tokens=1000))


def ask(session, text):
    async def collect():
        return [part async for part in session.ask(text)]

    return asyncio.run(collect())


def test_an_unsafe_message_is_not_read_and_the_conversation_goes_on():
    session = session_of(WordGuard())
    parts = ask(session, f"Give me {BAD}")
    assert [part.finish_reason for part in parts] == [BLOCKED] and "S1 Violent Crimes" in parts[0].text
    assert session.pipeline.engine.seen == [] and session.conversation.messages == []
    assert "".join(part.text for part in ask(session, "Hello")) == "Hello"
    assert [one["role"] for one in session.conversation.messages] == ["user", "assistant"]


def test_an_unsafe_reply_ends_with_a_refusal_that_stays_in_the_conversation():
    class ReplyGuard(WordGuard):
        def judge(self, messages):  # the question says the words that the model repeats
            return super().judge(messages) if messages[-1]["role"] == "assistant" else Verdict(unsafe=False, score=0.0)

    session = session_of(ReplyGuard())
    text = "".join(part.text for part in ask(session, "a" * 300 + " " + BAD))
    assert text.startswith("a" * 300 + "\n\n") and BAD not in text and "S1 Violent Crimes" in text
    assert session.conversation.messages[-1]["content"] == text


@pytest.mark.parametrize("error", [HerdError("the message has 65 pictures"), RuntimeError("out of memory")])
def test_a_message_that_cannot_be_judged_is_not_read(error):
    def fail(_):
        raise error

    session = session_of(SimpleNamespace(policy=HAZARDS, judge=fail))
    (part,) = ask(session, "Hello")
    assert str(error) in part.text and session.pipeline.engine.seen == []


def test_code_without_an_event_loop_is_guarded_too():
    session = session_of(WordGuard())
    asked = session.pipeline.request(Conversation([{"role": "user", "content": BAD}]), SamplingParams())
    [reply] = session.pipeline.iterate(asked)
    assert (reply.finish_reason, reply.refused, reply.text) == (BLOCKED, True, "")
    assert session.pipeline.engine.seen == []
