"""Streams and clients that go away."""

import asyncio
import http.client
import json
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve_world import eventually

from herd.errors import HerdError
from herd.serve import messages
from herd.serve.streams import EventStream


def test_a_stream_says_the_role_first_the_reason_last_and_joins_to_the_plain_answer(server):
    chunks = list(server.ask("eins zwei drei — ёж 🦔", stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "eins zwei drei — ёж 🦔"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_comes_in_a_last_chunk_of_a_stream_when_asked_for(server):
    *chunks, last = server.ask("a b", stream=True, stream_options={"include_usage": True})
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert last.choices == []
    assert last.usage.completion_tokens == 3


def test_a_stream_ends_with_done(server):
    body = {"model": "fake", "messages": [{"role": "user", "content": "a"}], "stream": True}
    status, events = server.raw(json.dumps(body).encode())
    assert status == 200
    lines = [line for line in events.decode().split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line.removeprefix("data: "))["object"] == "chat.completion.chunk" for line in lines[:-1])


def test_a_failure_inside_a_stream_reaches_the_client_as_an_error_without_its_innards(server):
    with pytest.raises(openai.APIError, match="the reason is in its log") as caught:
        list(server.ask("so far fail", stream=True))
    assert "fake was made" not in str(caught.value)
    with pytest.raises(openai.InternalServerError, match="the reason is in its log"):
        server.ask("fail")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_its_generation(server, stream):
    engine = server.model.last_engine
    before = engine.num_cancelled
    body = {"model": "fake", "messages": [{"role": "user", "content": "count"}], "stream": stream}
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    assert eventually(lambda: engine.running == 1)
    if stream:
        connection.getresponse().read(10)
    connection.close()
    assert eventually(lambda: engine.num_cancelled == before + 1)
    assert engine.running == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_video_is_not_decoded_further_when_its_client_has_gone(server, stream, monkeypatch):
    begun, ended = threading.Event(), threading.Event()

    def slow(data: bytes, *, cancelled: Callable[[], bool]) -> object:
        begun.set()
        if eventually(cancelled):
            ended.set()
        raise HerdError("decoded no further")

    monkeypatch.setattr(messages, "read_video", slow)
    part = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}
    body = {"model": "fake", "messages": [{"role": "user", "content": [part]}], "stream": stream}
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    assert begun.wait(5)
    connection.close()
    assert ended.wait(5)


def test_a_stream_is_closed_also_when_its_client_goes_away_without_having_read_what_was_sent():
    closed = []

    async def lines() -> AsyncGenerator[str, None]:
        try:
            yield "data: 1\n\n"
            yield "data: 2\n\n"
        finally:
            closed.append(True)

    async def conversation() -> None:
        stuck = asyncio.Event()

        async def send(message: dict[str, object]) -> None:
            if message["type"] == "http.response.body":
                stuck.set()
                await asyncio.sleep(60)

        async def receive() -> dict[str, str]:
            await stuck.wait()
            return {"type": "http.disconnect"}

        generator = lines()  # held, so that no garbage collector closes it in our place
        await EventStream(generator)({"type": "http"}, receive, send)
        assert closed == [True]

    asyncio.run(conversation())


def test_requests_run_at_the_same_time(server):
    server.model.last_engine.most_running = 0
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda n: server.ask("count", max_tokens=500 + n), range(4)))
    assert server.model.last_engine.most_running == 4
    assert [answer.usage.completion_tokens for answer in answers] == [500, 501, 502, 503]


@settings(max_examples=30, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=60))
def test_any_text_comes_back_through_a_stream_unchanged(server, text):
    chunks = server.ask(text, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
