"""The server in front of a model without weights, spoken to by OpenAI's own client and by raw requests."""

import asyncio
import base64
import http.client
import io
import json
import socket
import statistics
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import openai
import pytest
from fake_herd import CONTEXT, FakeEngine, FakeModel
from fastapi import FastAPI, Request
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from herd.core.errors import HerdError
from herd.engine.answer import TokenLogprob
from herd.engine.sampler import SamplingParams, choice_seeds
from herd.engine.structure import ANY_OBJECT, Structure
from herd.serve import api, messages
from herd.serve.middleware import caller_of, salt_of
from herd.serve.reply import Said, best


@dataclass
class Running:
    model: FakeModel
    port: int

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0)

    def ask(self, text: object, **options: object) -> object:
        messages = [{"role": "user", "content": text}]
        return self.client.chat.completions.create(model="fake", messages=messages, **options)

    def raw(
        self, body: bytes, *, path: str = "/v1/chat/completions", method: str = "POST", **headers: str
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        connection.request(method, path, body, {"Content-Type": "application/json"} | named)
        response = connection.getresponse()
        return response.status, response.read()


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    model = FakeModel(delay_s=0.002)
    listener = api.listen("127.0.0.1", 0)
    engine = model.engine()
    app = api.create_app(model, engine, name="fake", params=SamplingParams(top_p=0.9), loopback_host="my-laptop")
    with serving(app, engine, listener):
        yield Running(model, listener.getsockname()[1])
    assert engine.closed


@contextmanager
def serving(app: FastAPI, engine: FakeEngine, listener: socket.socket) -> Iterator[None]:
    running = api.Server(app, engine)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield
    finally:
        running.should_exit = True
        thread.join(10)


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


def picture(width: int, height: int) -> dict[str, object]:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "blue").save(file, "PNG")
    return {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()},
    }


def test_the_one_model_is_listed_and_found_by_name(server):
    assert [model.id for model in server.client.models.list()] == ["fake"]
    assert server.client.models.retrieve("fake").id == "fake"
    with pytest.raises(openai.NotFoundError, match="'fake'"):
        server.client.models.retrieve("org/other")


def test_a_plain_answer_has_text_reason_and_usage(server):
    answer = server.ask("one two three")
    assert answer.choices[0].message.content == "one two three"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    prompt, _ = server.model.last_engine.seen[-1]
    assert answer.usage.prompt_tokens == len(prompt.token_ids)
    assert answer.usage.completion_tokens == 4
    assert answer.usage.total_tokens == len(prompt.token_ids) + 4


def test_a_share_of_the_engine_belongs_to_an_address_and_no_name_makes_another(server):
    server.ask("a", user="Ann")
    server.ask("a", user="Bob", extra_headers={"Authorization": "Bearer other"})
    assert server.model.last_engine.callers[-2:] == ["127.0.0.1", "127.0.0.1"]


def test_callers_in_one_ipv6_network_are_one_caller_and_ipv4_keeps_its_whole_address():
    def caller(host: str) -> str:
        return caller_of(Request({"type": "http", "client": (host, 1), "headers": []}))

    assert caller("2001:db8::1") == caller("2001:db8::ffff:2") != caller("2001:db8:0:1::1")
    assert caller("10.0.0.1") == caller("::ffff:10.0.0.1") != caller("10.0.0.2")


def test_only_requests_of_one_key_and_one_cache_salt_share_what_was_computed(server):
    def salt(key: str, **fields: str) -> str:
        server.ask("a", extra_headers={"Authorization": f"Bearer {key}"}, extra_body=fields)
        return server.model.last_engine.salts[-1]

    salts = [salt("one"), salt("two"), salt("one", cache_salt="x"), salt("one", cache_salt="y")]
    assert len(set(salts)) == 4
    assert salt("one") == salts[0]
    assert salt("one", cache_salt="x", user="Ann") == salts[2]
    with pytest.raises(openai.BadRequestError, match="cache_salt"):
        salt("one", cache_salt="")


def test_callers_from_different_addresses_share_nothing_whatever_they_say():
    def salt(host: str) -> str:
        headers = [(b"authorization", b"Bearer none")]
        return salt_of(Request({"type": "http", "client": (host, 1), "headers": headers}), None)

    assert salt("10.0.0.1") != salt("10.0.0.2")


@pytest.mark.parametrize(("host", "name"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("localhost", "localhost")])
def test_a_response_on_a_kept_connection_does_not_wait_for_an_acknowledgement(host, name):
    model = FakeModel()
    engine = model.engine()
    with api.listen(host, 0) as listener:
        port = listener.getsockname()[1]
        with serving(api.create_app(model, engine, name="fake", loopback_host=host), engine, listener):
            connection = http.client.HTTPConnection(name.strip("[]"), port, timeout=10)

            def median_s() -> float:
                seconds = []
                for _ in range(15):
                    begin = time.perf_counter()
                    connection.request("GET", "/health", headers={"Host": f"{name}:{port}"})
                    assert connection.getresponse().read() == b'{"status":"ok","model":"fake"}'
                    seconds.append(time.perf_counter() - begin)
                return statistics.median(seconds)

            # The wait was 40 ms each time; other work on the machine does not last through all tries.
            assert any(median_s() < 0.005 for _ in range(8))


def test_more_requests_than_may_wait_are_refused_with_429_and_a_time(server):
    model = FakeModel(delay_s=0.01)
    engine = model.engine()
    with api.listen("127.0.0.1", 0) as listener:
        one = Running(model, listener.getsockname()[1])
        with serving(api.create_app(model, engine, name="fake", max_open=2), engine, listener):
            streams = [one.ask("count", stream=True) for _ in range(2)]
            with pytest.raises(openai.RateLimitError, match="2 requests are running or waiting") as caught:
                one.ask("a")
            assert caught.value.response.headers["Retry-After"] == "1"
            assert (caught.value.type, caught.value.code) == ("requests", "rate_limit_exceeded")
            assert one.raw(b"", path="/health", method="GET")[0] == 200
            streams[0].close()
            assert eventually(lambda: engine.running == 1)
            assert one.ask("a b").choices[0].message.content == "a b"
            with pytest.raises(openai.BadRequestError):  # one that is refused gives its place back
                one.ask("a", max_tokens=0)
            assert one.ask("a b").choices[0].message.content == "a b"
            streams[1].close()


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


@pytest.mark.parametrize("stream", [False, True])
def test_the_limit_of_tokens_gives_the_reason_length(server, stream):
    answer = server.ask("count", max_completion_tokens=3, stream=stream)
    reason = list(answer)[-1].choices[0].finish_reason if stream else answer.choices[0].finish_reason
    assert reason == "length"
    assert server.model.last_engine.seen[-1][1].max_tokens == 3


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_and_the_generation(server, stream):
    before = server.model.last_engine.num_cancelled
    answer = server.ask("count", stop=["5 6", "never"], stream=stream)
    if stream:
        chunks = list(answer)
        text, reason = "".join(c.choices[0].delta.content or "" for c in chunks), chunks[-1].choices[0].finish_reason
    else:
        text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert (text, reason) == ("1 2 3 4 ", "stop")
    assert eventually(lambda: server.model.last_engine.num_cancelled == before + 1)


@pytest.mark.parametrize("stream", [False, True])
def test_the_mere_beginning_of_a_stop_string_belongs_to_the_answer(server, stream):
    answer = server.ask("one two", stop="two three", stream=stream)
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    else:
        text = answer.choices[0].message.content
    assert text == "one two"


def test_sampling_is_as_asked_or_as_the_folder_says(server):
    server.ask("a", temperature=0.5, seed=7)
    params = server.model.last_engine.seen[-1][1]
    assert (params.temperature, params.top_p, params.seed) == (0.5, 0.9, 7)
    server.ask("a", temperature=0, top_p=0.1)
    params = server.model.last_engine.seen[-1][1]
    assert (params.temperature, params.top_p, params.seed) == (0, 0.1, None)


def test_without_a_limit_the_answer_may_fill_the_context(server):
    server.ask("a")
    prompt, params = server.model.last_engine.seen[-1]
    assert len(prompt.token_ids) + params.max_tokens == CONTEXT


def test_pictures_reach_the_model_in_their_order(server):
    answer = server.ask([picture(3, 2), {"type": "text", "text": "and"}, picture(5, 4)])
    assert answer.choices[0].message.content == "[3x2][5x4]and"


def test_an_answer_of_the_client_can_be_sent_back(server):
    first = server.ask("a b")
    messages = [{"role": "user", "content": "a b"}, first.choices[0].message, {"role": "user", "content": "c"}]
    second = server.client.chat.completions.create(model="fake", messages=messages)
    assert second.choices[0].message.content == "c"


def test_an_answer_can_be_told_to_the_client_as_an_error_with_its_field(server):
    with pytest.raises(openai.BadRequestError) as caught:
        server.ask("a", service_tier="priority")
    assert (caught.value.param, caught.value.code, caught.value.type) == (
        "service_tier",
        "unsupported_parameter",
        "invalid_request_error",
    )
    with pytest.raises(openai.BadRequestError) as caught:
        server.ask([{"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}])
    assert caught.value.param == "messages[0].content[0].image_url"


def test_another_model_is_not_found(server):
    with pytest.raises(openai.NotFoundError, match="use 'fake'") as caught:
        server.client.chat.completions.create(model="gpt", messages=[{"role": "user", "content": "a"}])
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


@pytest.mark.parametrize("options", [{}, {"stream": True}])
def test_a_conversation_past_the_context_is_refused_before_anything_is_sent(server, options):
    with pytest.raises(openai.BadRequestError, match=f"context {CONTEXT}") as caught:
        server.ask("long " * CONTEXT, **options)
    assert (caught.value.param, caught.value.code) == ("messages", "context_length_exceeded")
    with pytest.raises(openai.BadRequestError, match="lower max_tokens to"):
        server.ask("a", max_tokens=CONTEXT, **options)


def test_a_failure_inside_a_stream_reaches_the_client_as_an_error_without_its_innards(server):
    with pytest.raises(openai.APIError, match="its log says why") as caught:
        list(server.ask("so far fail", stream=True))
    assert "fake was told" not in str(caught.value)
    with pytest.raises(openai.InternalServerError, match="its log says why"):
        server.ask("fail")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "not valid JSON"),
        (b"", "JSON"),
        (b"[]", "JSON object"),
        (b"\xff", "body"),
        (b"[" * 200_000, "body"),
        (b'{"model": "fake", "messages": [{"role": "user", "content": "a"}], "temperature": NaN}', "temperature"),
        (b'{"model": "fake", "messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
    ],
)
def test_a_body_that_is_no_request_is_refused_in_openais_shape(server, body, says):
    status, answer = server.raw(body)
    error = json.loads(answer)["error"]
    assert status == 400
    assert error.keys() == {"message", "type", "param", "code"}
    assert says in error["message"]


def test_only_json_is_taken_so_no_page_of_another_site_can_send_a_request_unasked(server):
    body = b'{"model": "fake", "messages": [{"role": "user", "content": "a"}]}'
    status, answer = server.raw(body, Content_Type="text/plain")
    assert status == 400
    assert "application/json" in json.loads(answer)["error"]["message"]


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "127.9.8.7:80", "[::1]:8000", "LOCALHOST", "my-laptop:5"])
def test_a_server_on_this_machine_answers_under_loopback_s_names_and_its_own(server, host):
    assert server.raw(b"", path="/health", method="GET", Host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "[::2]:8000", "0.0.0.0", "localhost:1:2", "[", "a@localhost", ""]
)
@pytest.mark.parametrize("path", ["/health", "/nowhere"])
def test_a_request_under_a_foreign_or_broken_host_name_is_refused_in_openais_shape(server, host, path):
    status, answer = server.raw(b"", path=path, method="GET", Host=host)
    error = json.loads(answer)["error"]
    assert (status, error["code"]) == (400, "invalid_host")
    assert "\n" not in error["message"]


def test_a_server_for_other_machines_takes_every_name_but_no_broken_one():
    model = FakeModel()
    engine = model.engine()
    with api.listen("127.0.0.1", 0) as listener:
        one = Running(model, listener.getsockname()[1])
        with serving(api.create_app(model, engine, name="fake"), engine, listener):
            assert one.raw(b"", path="/health", method="GET", Host="herd.example")[0] == 200
            for path in ("/health", "/nowhere"):
                status, answer = one.raw(b"", path=path, method="GET", Host="[")
                assert (status, json.loads(answer)["error"]["code"]) == (400, "invalid_host")


def test_a_body_past_the_limit_is_refused(server, monkeypatch):
    status, answer = server.raw(b"[" + b" " * api.MAX_BODY_BYTES + b"]")
    assert status == 413
    assert "MiB" in json.loads(answer)["error"]["message"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/v1/chat/completions", 405)])
def test_a_wrong_address_is_told_in_openais_shape(server, method, path, status):
    got, answer = server.raw(b"", method=method, path=path)
    assert got == status
    assert path in json.loads(answer)["error"]["message"]


def test_the_page_loads_nothing_from_elsewhere(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/")
    response = connection.getresponse()
    page = response.read().decode()
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page


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
        await api.EventStream(generator)({"type": "http"}, receive, send)
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


def test_a_port_in_use_is_told_in_one_line(server):
    with pytest.raises(HerdError, match=f"cannot listen on 127.0.0.1 port {server.port} .*--port"):
        api.listen("127.0.0.1", server.port)
    with pytest.raises(HerdError, match="port 70000"):
        api.listen("127.0.0.1", 70000)
    with pytest.raises(HerdError, match=r"no\.such\.host"):
        api.listen("no.such.host.invalid", 8000)


TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "clock"}},
]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ('[weather(city="Oslo, [N]", days=[1, 2]), clock()]', None),
        ('I look it up. [weather(city="Oslo, [N]", days=[1, 2]), clock()]', "I look it up."),
        (
            '{"name": "weather", "parameters": {"city": "Oslo, [N]", "days": [1, 2]}} '
            '{"name": "clock", "parameters": {}}',
            None,
        ),
    ],
)
def test_calls_of_offered_tools_come_structured_whole_and_streamed(server, said, words):
    plain = server.ask(said, tools=TOOLS).choices[0]
    assert server.model.last_tools == TOOLS
    assert (plain.message.content, plain.finish_reason) == (words, "tool_calls")
    chunks = [chunk.choices[0] for chunk in server.ask(said, tools=TOOLS, stream=True)]
    assert "".join(choice.delta.content or "" for choice in chunks).strip() == (words or "")
    assert chunks[-1].finish_reason == "tool_calls"
    streamed = [call for choice in chunks for call in choice.delta.tool_calls or ()]
    assert [call.index for call in streamed] == [0, 1]
    for calls in (plain.message.tool_calls, streamed):
        assert [call.function.name for call in calls] == ["weather", "clock"]
        assert json.loads(calls[0].function.arguments) == {"city": "Oslo, [N]", "days": [1, 2]}
        assert len({call.id for call in calls}) == 2


def test_a_call_can_be_sent_back_with_its_result(server):
    message = server.ask("[clock()]", tools=TOOLS).choices[0].message
    result = {"role": "tool", "content": "noon", "tool_call_id": message.tool_calls[0].id}
    sent = [{"role": "user", "content": "[clock()]"}, message.to_dict(), result]
    answer = server.client.chat.completions.create(model="fake", messages=sent, tools=TOOLS)
    assert answer.choices[0].message.content == "noon"


@pytest.mark.parametrize(
    "said", ["[weather(city=here)]", "[1, 2] and [weather]", "[clock()] is what I would call", "[other()]"]
)
def test_what_is_no_sound_call_of_an_offered_tool_comes_whole_as_text(server, said):
    answer = server.ask(said, tools=TOOLS).choices[0]
    assert (answer.message.content, answer.message.tool_calls, answer.finish_reason) == (said, None, "stop")
    chunks = [chunk.choices[0] for chunk in server.ask(said, tools=TOOLS, stream=True)]
    assert "".join(choice.delta.content or "" for choice in chunks) == said


def test_without_tools_or_with_tool_choice_none_nothing_is_a_call(server):
    for options in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        assert server.ask("[clock()]", **options).choices[0].message.content == "[clock()]"
        assert server.model.last_tools == []


@pytest.mark.parametrize("tool_choice", ["auto", "required"])
def test_a_call_that_is_cut_off_comes_as_a_call_with_partial_arguments_and_the_reason_length(server, tool_choice):
    options = {"tools": TOOLS, "tool_choice": tool_choice, "max_tokens": 4}
    said = '[weather(a=1, b="x y z", c=3)]'
    answer = server.ask(said, **options).choices[0]
    assert (answer.message.content, answer.finish_reason) == (None, "length")
    assert [call.function.arguments for call in answer.message.tool_calls] == ['{"a": 1, "b": "x y']
    chunks = [chunk.choices[0] for chunk in server.ask(said, **options, stream=True)]
    [call] = [call for choice in chunks for call in choice.delta.tool_calls or ()]
    assert (call.function.arguments, chunks[-1].finish_reason) == ('{"a": 1, "b": "x y', "length")
    assert not any(choice.delta.content for choice in chunks)


def test_a_video_comes_as_its_frames_and_a_broken_one_is_named(server):
    pytest.importorskip("av")
    from test_data_video import clip

    def part(data: bytes) -> dict[str, object]:
        return {"type": "video_url", "video_url": {"url": "data:video/mp4;base64," + base64.b64encode(data).decode()}}

    answer = server.ask([part(clip(30)), picture(3, 2), {"type": "text", "text": "moves"}])
    assert answer.choices[0].message.content == "[3x2][video of 3]moves"
    with pytest.raises(openai.BadRequestError, match="not a readable video") as caught:
        server.ask([part(b"nothing")])
    assert caught.value.param == "messages[0].content[0].video_url"


@pytest.mark.parametrize("stream", [False, True])
def test_several_answers_come_under_their_numbers_with_seeds_of_their_own(server, stream):
    options = {"stream_options": {"include_usage": True}} if stream else {}
    answer = server.ask("a b c", n=3, seed=5, stream=stream, **options)
    if stream:
        *chunks, last = list(answer)
        assert [chunk.choices[0].index for chunk in chunks[:3]] == [0, 1, 2]
        texts = ["".join(c.choices[0].delta.content or "" for c in chunks if c.choices[0].index == i) for i in range(3)]
        reasons = [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason]
        usage = last.usage
    else:
        assert [one.index for one in answer.choices] == [0, 1, 2]
        texts, reasons = (
            [f(one) for one in answer.choices] for f in (lambda c: c.message.content, lambda c: c.finish_reason)
        )
        usage = answer.usage
    assert (texts, reasons, usage.completion_tokens) == (["a b c"] * 3, ["stop"] * 3, 12)
    seeds = [params.seed for _, params in server.model.last_engine.seen[-3:]]
    assert sorted(seeds) == sorted(choice_seeds(5, 3)) and len(set(seeds)) == 3


def test_of_several_answers_one_that_fails_ends_all(server):
    engine = server.model.last_engine
    for stream in (False, True):
        with pytest.raises(openai.APIError, match="its log says why"):
            list(server.ask("a fail", n=2, stream=stream))
    assert eventually(lambda: engine.running == 0)


def test_the_best_of_several_answers_are_those_of_the_likeliest_tokens():
    def said(*logprobs: float) -> Said:
        told = tuple(TokenLogprob(token_id=0, logprob=one) for one in logprobs)
        return Said(text=str(logprobs), num_tokens=len(logprobs), finish_reason="stop", logprobs=told)

    short, long, poor = said(-1.0), said(-0.5, -0.5, -0.5), said(-2.0, -0.1)
    assert best([poor, short, long], 2) == [long, short]  # by the mean: to be long is no fault


def test_best_of_counts_all_that_was_made(server):
    answer = server.ask("a b c", n=2, extra_body={"best_of": 3})
    assert (len(answer.choices), answer.usage.completion_tokens) == (2, 12)
    assert answer.choices[0].logprobs is None


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_come_in_openais_shape(server, stream):
    answer = server.ask("a b", logprobs=True, top_logprobs=2, stream=stream)
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    told = [one for choice in choices if choice.logprobs for one in choice.logprobs.content]
    assert [one.logprob for one in told] == [-0.5, -1.0, -1.5]
    assert bytes(told[0].bytes).decode(errors="replace") == told[0].token
    assert [(top.logprob, top.token) for top in told[1].top_logprobs] == [(-1.0, told[1].token), (-9.0, "!")]
    assert server.model.last_engine.seen[-1][1].logprobs == 2


def test_a_form_reaches_the_engine_and_a_faulty_one_the_client(server):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    for options, form in [
        ({"response_format": asked}, Structure.schema(schema)),
        ({"response_format": {"type": "json_object"}}, ANY_OBJECT),
        ({"extra_body": {"regex": "a+"}}, Structure(kind="regex", source="a+")),
        ({"extra_body": {"grammar": "start: /a/"}}, Structure(kind="grammar", source="start: /a/")),
        ({"response_format": {"type": "text"}}, None),
    ]:
        server.ask("a", **options)
        assert server.model.last_engine.seen[-1][1].structure == form
    asked["json_schema"]["schema"] = {"type": "array", "uniqueItems": True}
    for options, param, says in [
        ({"response_format": asked}, "response_format", '"uniqueItems" is not supported'),
        ({"extra_body": {"regex": "a("}}, "regex", "unclosed group"),
        ({"extra_body": {"grammar": "start: b"}}, "grammar", "b"),
    ]:
        with pytest.raises(openai.BadRequestError, match=says) as caught:
            server.ask("a", **options)
        assert caught.value.param == param
