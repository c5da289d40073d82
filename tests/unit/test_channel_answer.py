"""Answers of channels come through the pipeline: its context, its pictures, its guards."""

import asyncio
import io

import pytest
from fake_herd import CONTEXT, FakeModel
from PIL import Image

from herd.engine.filters import Verdict
from herd.engine.pipeline import AnswerPipeline
from herd.engine.sampler import SamplingParams
from herd.errors import HerdError, Stopped
from herd.serve.channels.answer import PipelineAnswerer, messages_of
from herd.serve.channels.config import Options
from herd.serve.channels.delivery import Answer, Turn


class Guarded:
    verdict: Verdict | None = None

    def push(self, text: str) -> str:
        if "bad" in text:
            self.verdict = Verdict(finish_reason="content_filter", explanation="No.")
        return "" if self.verdict else text

    def finish(self) -> str:
        return ""


def answerer(**options: object) -> PipelineAnswerer:
    model = FakeModel()
    return PipelineAnswerer(
        AnswerPipeline(model, model.engine(), filters=[Guarded]), SamplingParams(), Options(**options)
    )


def ask(one: PipelineAnswerer, text: str, *, history: list = (), pictures: list = ()) -> Answer:
    return asyncio.run(one.answer(Turn(caller="whatsapp:1", history=history, text=text, pictures=pictures)))


def test_an_answer_has_the_share_and_the_cache_of_its_person():
    one = answerer(system="Be brief.")
    assert ask(one, "hello you") == Answer(text="hello you")
    assert (one.pipeline.engine.callers, one.pipeline.engine.salts) == (["whatsapp:1"], ["whatsapp:1"])


def test_a_guard_of_the_pipeline_replaces_the_whole_answer():
    assert ask(answerer(), "good and bad words") == Answer(text="No.", blocked=True)


def test_pictures_are_read_and_broken_ones_named():
    file = io.BytesIO()
    Image.new("RGB", (8, 6), "blue").save(file, "PNG")
    assert ask(answerer(), "what?", pictures=[file.getvalue()]).text == "[8x6]what?"
    assert ask(answerer(), "what?", pictures=[b"no picture"]).text == "[a picture that cannot be opened]\nwhat?"


def test_earlier_messages_give_way_until_the_answer_has_room():
    one = answerer()
    history = [(role, f"{n} " * 100, []) for n in range(10) for role in ("user", "assistant")]
    assert ask(one, "hello", history=history).text == "hello"
    prompt = one.pipeline.engine.seen[-1][0]
    assert CONTEXT - 500 < len(prompt.token_ids) <= CONTEXT - 64
    with pytest.raises(HerdError, match="leave out earlier messages"):
        ask(one, "x" * CONTEXT, history=history)


def test_a_conversation_begins_with_the_user_and_alternates():
    history = [
        ("assistant", "cut off", []),
        ("user", "a", []),
        ("user", "b", []),
        ("assistant", "c", []),
        ("user", "d", []),
    ]
    assert [(one["role"], one["content"]) for one in messages_of(history)] == [
        ("user", "a\nb"), ("assistant", "c"), ("user", "d"),
    ]  # fmt: skip


def test_a_message_that_an_engine_is_closed_under_waits_for_the_next_start():
    one = answerer()
    one.pipeline.engine.closed = True
    with pytest.raises(Stopped):
        ask(one, "fail")
