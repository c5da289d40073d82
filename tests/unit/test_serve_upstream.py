"""Another OpenAI-compatible server behind this one: the same guards, keys and limits, and a name for each failure."""

import asyncio
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import anthropic
import openai
import pytest
from fake_herd import FakeModel
from serve_world import Running, eventually, picture, serving
from test_guard_stream import BAD, WordGuard

from herd.config import EngineConfig, ServeConfig
from herd.engine.pipeline import AnswerPipeline
from herd.errors import HerdError
from herd.guard.model_guard import Verdict
from herd.guard.stream import GuardGate
from herd.serve import server as api
from herd.serve import upstream_client
from herd.serve.api.app import create_app
from herd.serve.channels.config import Options
from herd.serve.channels.delivery import Turn
from herd.serve.channels.upstream import UpstreamAnswerer
from herd.serve.keys import Key, Keys
from herd.serve.models import one_model
from herd.serve.upstream import Upstream
from herd.serve.upstream_client import UpstreamClient, check_url

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@dataclass
class Stub:
    """A server that answers by the last word of what it is asked: an ASGI application."""

    seen: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    num_gone: int = 0
    """Streams whose client went away."""
    is_down: bool = False
    port: int = 0
    state: Any = field(default_factory=lambda: type("State", (), {"queue": type("Q", (), {"is_draining": False})()})())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.keys.append(dict(scope["headers"]).get(b"authorization", b"").decode())
        if scope["path"] == "/v1/models":
            status, body = (503, {"error": "loading"}) if self.is_down else (200, {"data": [{"id": "big"}]})
            await plain(send, status, json.dumps(body).encode())
            return
        data, more = b"", True
        while more:
            message = await receive()
            data, more = data + message.get("body", b""), message.get("more_body", False)
        body = json.loads(data)
        self.seen.append(body)
        text = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        text = text if isinstance(text, str) else "picture"
        kind = text.split()[-1]
        if kind.isdigit():
            said = json.dumps({"error": {"message": "it says why"}}).encode()
            await plain(send, int(kind), said, (b"retry-after", b"7"))
            return
        if kind == "html":
            await plain(send, 200, b"<html>", (b"content-type", b"text/html"))
            return
        if kind == "silent":
            await gone(receive)
            return
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def say(line: str) -> None:
            await send({"type": "http.response.body", "body": f"{line}\n\n".encode(), "more_body": True})

        async def chunk(reason: str | None = None, **delta: Any) -> None:
            one = {"text": delta["content"]} if "prompt" in body and "content" in delta else {"delta": delta}
            await say("data: " + json.dumps({"choices": [{"index": 0, **one, "finish_reason": reason}]}))

        await chunk(role="assistant", content="")
        if kind == "calls":
            call = {"index": 0, "id": "x", "type": "function", "function": {"name": "weather", "arguments": '{"city"'}}
            await chunk(tool_calls=[call])
            rest = ': "Os' if "cut" in text else f': "{text}"}}'
            await chunk(tool_calls=[{"index": 0, "function": {"arguments": rest}}])
            await chunk("length" if "cut" in text else "tool_calls")
        elif kind == "count":
            watch = asyncio.create_task(gone(receive))
            for number in range(1000):
                await chunk(content=f"{number} ")
                await asyncio.sleep(0.005)
                if watch.done():
                    self.num_gone += 1
                    return
        else:
            for word in text.split(" "):
                await chunk(content=f"{word} ", reasoning_content="secret")
        match kind:
            case "hang":
                await gone(receive)
                return
            case "die":
                raise ConnectionError
            case "garbage":
                await say("data: {not json")
            case "list":
                await say("data: [1, 2]")
            case "words":
                await say("no event at all")
            case "endless":
                await say("data: " + "x" * 5000)
            case "error":
                await say('data: {"error": {"message": "out of memory"}}')
            case "unended":
                await say("data: [DONE]")
            case "calls":
                pass
            case _:
                await chunk("stop")
        usage = {"prompt_tokens": 11, "completion_tokens": 22, "total_tokens": 33}
        await say("data: " + json.dumps({"choices": [], "usage": usage}))
        await say("data: [DONE]")
        await send({"type": "http.response.body", "body": b""})


async def plain(send: Any, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


async def gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@dataclass
class Front:
    """A server in front of another, and what its clients see."""

    port: int
    key: str = "none"

    @cached_property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=self.key, max_retries=0)

    @cached_property
    def claude(self) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=f"http://127.0.0.1:{self.port}", api_key=self.key, max_retries=0)

    def ask(self, text: object, *, model: str = "big", **options: Any) -> Any:
        messages = [{"role": "user", "content": text}]
        return self.client.chat.completions.create(model=model, messages=messages, **options)

    def raw(self, *args: Any, **options: Any) -> tuple[int, bytes]:
        return Running(FakeModel(), self.port).raw(*args, **options)


@contextmanager
def front(port: int, *, timeout_s: float = 0.3, gate: GuardGate | None = None, **options: Any) -> Iterator[Front]:
    client = UpstreamClient(f"http://127.0.0.1:{port}/v1", key="behind", timeout_s=timeout_s)
    models = Upstream(client, gate=gate)
    with api.listen("127.0.0.1", 0) as listener, serving(create_app(models, **options), models, listener):
        yield Front(listener.getsockname()[1])


class ReplyGuard(WordGuard):
    """The question may say what the answer may not: the stub repeats it."""

    def judge(self, messages):
        is_question = messages[-1]["role"] == "user" and "asked" not in str(messages[-1]["content"])
        return Verdict(unsafe=False, score=0.0) if is_question else super().judge(messages)


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Stub, Front, Front]]:
    """The other server, one in front of it, and one with a guard."""
    stub = Stub()
    closer = type("Closer", (), {"close": lambda self: None})()
    with ExitStack() as stack:
        listener = stack.enter_context(api.listen("127.0.0.1", 0))
        stack.enter_context(serving(stub, closer, listener))
        port = listener.getsockname()[1]
        one = stack.enter_context(front(port))
        guarded = stack.enter_context(front(port, gate=GuardGate(ReplyGuard())))
        stub.port = port
        yield stub, one, guarded


@pytest.fixture
def stub(world):
    return world[0]


@pytest.fixture
def one(world):
    return world[1]


@pytest.fixture
def guarded(world):
    return world[2]


def text_of(stream: Any) -> str:
    return "".join(part.choices[0].delta.content or "" for part in stream if part.choices)


def test_each_api_of_conversations_is_answered_by_the_server_behind(stub, one):
    assert [model.id for model in one.client.models.list()] == ["big"]
    answer = one.ask("hello there", temperature=0.5, seed=7, n=2, stop=["x"])
    assert [choice.message.content for choice in answer.choices] == ["hello there "] * 2
    assert answer.choices[0].finish_reason == "stop" and answer.model == "big"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (11, 44)
    sent = stub.seen[-2:]
    assert (len({body["seed"] for body in sent}) == 2 and sent[0]["seed"] == 7) or sent[1]["seed"] == 7
    assert all(body["stream"] and "n" not in body and body["stop"] == ["x"] for body in sent)
    assert sent[0]["temperature"] == 0.5 and "top_k" not in sent[0]
    assert stub.keys[-1] == "Bearer behind"  # the operator's, never the client's
    stream = list(one.ask("hello there", stream=True, stream_options={"include_usage": True}))
    assert text_of(stream) == "hello there " and stream[-1].usage.prompt_tokens == 11
    assert "secret" not in json.dumps([part.model_dump() for part in stream])  # what was not judged
    assert one.client.completions.create(model="big", prompt="a b").choices[0].text == "a b "
    assert stub.seen[-1]["max_tokens"] == 16
    response = one.client.responses.create(model="big", input="a b")
    assert response.output_text == "a b " and response.usage.input_tokens == 11
    talk = [{"role": "user", "content": "a b"}]
    message = one.claude.messages.create(model="big", messages=talk, max_tokens=5)
    assert message.content[0].text == "a b " and message.usage.input_tokens == 11
    assert stub.seen[-1]["max_tokens"] == 5
    with one.claude.messages.stream(model="big", messages=talk, max_tokens=5) as events:
        assert events.get_final_message().usage.output_tokens == 22
    parts = [picture(3, 2), {"type": "text", "text": "what?"}]
    assert one.ask(parts).choices[0].message.content == "picture "
    assert stub.seen[-1]["messages"][-1]["content"][0]["image_url"]["url"].startswith("data:image/png")


@pytest.mark.parametrize("stream", [False, True])
def test_calls_come_whole_and_cut_off(one, stream):
    def calls(text: str) -> tuple[str, str]:
        answer = one.ask(text, tools=[WEATHER], stream=stream)
        if not stream:
            return answer.choices[0].finish_reason, answer.choices[0].message.tool_calls[0].function.arguments
        parts = [part.choices[0] for part in answer if part.choices]
        found = [call for part in parts for call in part.delta.tool_calls or ()]
        return parts[-1].finish_reason, "".join(call.function.arguments for call in found)

    assert calls("Oslo calls") == ("tool_calls", '{"city": "Oslo calls"}')
    assert calls("cut calls") == ("length", '{"city": "Os')


def test_an_address_to_fetch_and_what_cannot_be_read_there_never_reach_it(stub, one):
    before = len(stub.seen)
    part = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}
    with pytest.raises(openai.BadRequestError, match="would have to be fetched"):
        one.ask([part, {"type": "text", "text": "a"}])
    schema = {"name": "x", "schema": {"type": "object", "properties": {"a": {"$ref": "http://x/y"}}}}
    with pytest.raises(openai.BadRequestError, match="response_format"):
        one.ask("a", response_format={"type": "json_schema", "json_schema": schema})
    for options in ({"logprobs": True}, {"extra_body": {"regex": "a"}}, {"extra_body": {"best_of": 2}}):
        with pytest.raises(openai.BadRequestError, match="not supported by the server behind"):
            one.ask("a", **options)
    with pytest.raises(openai.BadRequestError, match="logprobs: not supported"):
        one.client.completions.create(model="big", prompt="a", logprobs=0)
    with pytest.raises(openai.BadRequestError, match="arrays of token ids"):
        one.client.completions.create(model="big", prompt=[1, 2])
    with pytest.raises(openai.NotFoundError, match="'other' is not served here: use 'big'"):
        one.ask("a", model="other")
    with pytest.raises(openai.NotFoundError, match="not passed on"):
        one.client.embeddings.create(model="big", input="a")
    assert len(stub.seen) == before


FAILURES = {
    "hang": (504, "silent for 0.3 s"),
    "silent": (504, "silent for 0.3 s"),
    "die": (502, "broke off in the middle"),
    "garbage": (502, "an event that cannot be read"),
    "list": (502, "an event that cannot be read"),
    "words": (502, "what is no event"),
    "endless": (502, "too long"),
    "error": (502, "out of memory"),
    "unended": (502, "ended without a reason"),
    "html": (502, "it sent text/html in place of events"),
    "400": (400, "refuses this: it says why"),
    "401": (502, "answers 401$"),
    "404": (502, "answers 404: it says why"),
    "429": (429, "is busy: it says why"),
    "500": (502, "answers 500: it says why"),
    "503": (503, "is not ready: it says why"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_each_failure_of_the_server_behind_is_named(one, monkeypatch, kind):
    status, message = FAILURES[kind]
    monkeypatch.setattr(upstream_client, "MAX_LINE_BYTES", 1000)
    with pytest.raises(openai.APIStatusError, match=message) as caught:
        one.ask(kind)
    assert caught.value.status_code == status
    if status in (429, 503):
        assert caught.value.response.headers["Retry-After"] == "7"
    # Before the first event a stream has the status too; later the error is an event, after what had come.
    shown: list[str] = []
    with pytest.raises(openai.APIError, match=message) as caught:
        shown.extend(part.choices[0].delta.content or "" for part in one.ask(f"begin {kind}", stream=True))
    has_begun = not (kind.isdigit() or kind in ("silent", "html"))
    assert isinstance(caught.value, openai.APIStatusError) != has_begun
    assert "".join(shown) == (f"begin {kind} " if has_begun else "")


def test_a_server_behind_that_is_away_is_named_and_readiness_says_so(stub, one):
    with front(1) as away:  # nobody listens there
        with pytest.raises(openai.InternalServerError, match="cannot be reached") as caught:
            away.ask("a")
        assert caught.value.status_code == 502
        assert away.raw(b"", path="/ready", method="GET")[0] == 503
        assert away.raw(b"", path="/health", method="GET")[0] == 200
    assert one.raw(b"", path="/ready", method="GET")[0] == 200
    stub.is_down = True
    try:
        assert one.raw(b"", path="/ready", method="GET")[0] == 503
    finally:
        stub.is_down = False


def test_a_client_that_goes_away_ends_the_answer_behind(stub, one):
    before = stub.num_gone
    stream = one.ask("count", stream=True)
    next(iter(stream))
    stream.close()
    assert eventually(lambda: stub.num_gone == before + 1)


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_guard_blocks_never_comes_and_what_is_asked_is_judged_before_it_is_sent(stub, guarded, stream):
    before = len(stub.seen)
    answer = guarded.ask(f"asked {BAD}", stream=stream)
    choice = list(answer)[-1].choices[0] if stream else answer.choices[0]
    assert choice.finish_reason == "content_filter" and len(stub.seen) == before
    said = "x " * 150 + BAD + " y"
    if stream:
        parts = list(guarded.ask(said, stream=True))
        text, last = text_of(parts), parts[-1].choices[0].finish_reason
        assert "S1 Violent Crimes" in "".join(part.choices[0].delta.refusal or "" for part in parts)
    else:
        answer = guarded.ask(said)
        text, last = answer.choices[0].message.content or "", answer.choices[0].finish_reason
    assert last == "content_filter" and BAD not in text and said.startswith(text.rstrip())
    # The arguments of calls are words of the model's too.
    answer = guarded.ask(f"{BAD} calls", tools=[WEATHER])
    assert answer.choices[0].finish_reason == "content_filter" and not answer.choices[0].message.tool_calls
    with pytest.raises(openai.APIError, match="broke off"):  # after what was judged
        list(guarded.ask("die", stream=True))


def test_no_token_passes_before_its_chunk_s_verdict(stub):
    verdict = threading.Event()

    class Slow(WordGuard):
        def judge(self, messages):
            if messages[-1]["role"] == "assistant":
                assert verdict.wait(10)
            return Verdict(unsafe=False, score=0.0)

    with front(stub.port, gate=GuardGate(Slow()), timeout_s=5) as one:
        stream = iter(one.ask("a b", stream=True))
        come: list[str] = []
        reader = threading.Thread(
            target=lambda: come.extend(part.choices[0].delta.content or "" for part in stream if part.choices)
        )
        reader.start()
        assert eventually(lambda: bool(stub.seen) and stub.seen[-1]["messages"][-1]["content"] == "a b")
        reader.join(0.3)
        assert "".join(come) == ""
        verdict.set()
        reader.join(5)
        assert "".join(come) == "a b "


def test_keys_and_their_limits_hold_and_each_has_a_salt_of_its_own(stub):
    digest = {name: hashlib.sha256(name.encode() * 8).digest() for name in ("ann", "bob")}
    keys = Keys([Key(name=name, digest=digest[name]) for name in digest])
    with front(stub.port, keys=keys) as one:
        with pytest.raises(openai.AuthenticationError):
            one.ask("a")
        salts = []
        for name in ("ann", "ann", "bob"):
            Front(one.port, key=name * 8).ask("a")
            salts.append(stub.seen[-1]["cache_salt"])
        assert salts[0] == salts[1] != salts[2]


def test_our_own_server_is_one_of_them(stub):
    model = FakeModel(delay_s=0.002)
    engine = model.engine()
    with api.listen("127.0.0.1", 0) as listener:
        app = create_app(one_model(AnswerPipeline(model, engine), name="fake"))
        with serving(app, engine, listener), front(listener.getsockname()[1]) as one:
            answer = one.ask("a b", model="fake", max_tokens=2)
            assert answer.choices[0].message.content == "a" and answer.choices[0].finish_reason == "length"
            assert answer.usage.completion_tokens == 2 and answer.usage.prompt_tokens > 0
            assert text_of(one.ask("a b", model="fake", stream=True)) == "a b"
            with pytest.raises(openai.APIError, match="the server failed"):
                list(one.ask("fail", model="fake", stream=True))
            stream = one.ask("count", model="fake", stream=True)
            next(iter(stream))
            stream.close()
            assert eventually(lambda: engine.running == 0 and engine.num_cancelled == 2)


def test_channels_answer_by_it_too(stub):
    def answer(text: str, gate: Any = None, history: Any = ()) -> Any:
        def client() -> UpstreamClient:
            return UpstreamClient(f"http://127.0.0.1:{stub.port}/v1", key=None, timeout_s=1)

        options = Options(system="Be brief.")
        one = UpstreamAnswerer(client, gate, options)
        return asyncio.run(one.answer(Turn(caller="+47 1", history=history, text=text, pictures=[])))

    assert answer("a b").text == "a b "
    assert stub.seen[-1]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert "+47" not in json.dumps(stub.seen[-1])
    blocked = answer(f"asked {BAD}", GuardGate(ReplyGuard()))
    assert blocked.blocked and "S1 Violent Crimes" in blocked.text
    with pytest.raises(HerdError, match="refuses this: it says why"):
        answer("400", history=[("user", "a", []), ("assistant", "b", [])])
    assert len(stub.seen[-1]["messages"]) == 2  # the earlier ones were left out


def test_an_address_that_is_none_and_options_of_an_own_model_are_refused(tmp_path):
    assert check_url("http://10.0.0.1:8001") == "http://10.0.0.1:8001/v1"
    assert check_url("https://x.example/v2/") == "https://x.example/v2"
    for wrong in ("ftp://x", "x.example", "http://", "http://key@x", "http://x?y"):
        with pytest.raises(HerdError, match="--upstream"):
            check_url(wrong)
    server = ServeConfig(port=0, upstream="http://127.0.0.1:1")
    for models, config in (([str(tmp_path)], EngineConfig()), ([], EngineConfig(max_model_len=9))):
        with pytest.raises(HerdError, match="leave out models"):
            api.serve(models, server, config)
    with pytest.raises(HerdError, match="--memory"):
        ServeConfig(upstream="http://127.0.0.1:1", memory=1)
