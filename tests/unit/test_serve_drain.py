"""How a server ends and what it does under load: SIGTERM drains, a full queue says for how long, a client that goes
away frees its pages."""

import http.client
import json
import signal
import time

import pytest
from fake_herd import FakeModel
from serve_world import Running, eventually, serving

from herd.config import ServeConfig
from herd.engine.pipeline import AnswerPipeline
from herd.errors import HerdError
from herd.serve import server as api
from herd.serve.middleware import Queue
from herd.serve.models import one_model


def started(model, engine, listener, **options):
    app = api.create_app(one_model(AnswerPipeline(model, engine), name="fake"))
    return serving(app, engine, listener, **options)


def test_after_sigterm_running_answers_end_and_nothing_more_is_let_in():
    model = FakeModel(delay_s=0.01)
    engine = model.engine()
    with api.listen("127.0.0.1", 0) as listener:
        one = Running(model, listener.getsockname()[1])
        with started(model, engine, listener, drain_s=30) as server:
            assert one.raw(b"", path="/ready", method="GET") == (200, b'{"status":"ready"}')
            stream = iter(one.ask("count", stream=True, max_tokens=150))
            next(stream)
            server.handle_exit(signal.SIGTERM, None)
            assert one.raw(b"", path="/ready", method="GET") == (503, b'{"status":"draining"}')
            assert one.raw(b"", path="/health", method="GET")[0] == 200  # it is alive: nobody must kill it
            for path in ("/v1/chat/completions", "/v1/messages"):
                connection = http.client.HTTPConnection("127.0.0.1", one.port, timeout=10)
                connection.request("POST", path, b"{}", {"Content-Type": "application/json"})
                response = connection.getresponse()
                assert (response.status, response.headers["Retry-After"]) == (503, "5")
                error = json.loads(response.read())["error"]
                assert error.get("code", error["type"]) in {"shutting_down", "overloaded_error"}
            chunks = list(stream)
            assert chunks[-1].choices[0].finish_reason == "length" and len(chunks) == 151
            assert eventually(lambda: engine.closed)
    assert engine.num_cancelled == 0


def test_what_does_not_end_in_time_is_ended():
    model = FakeModel(delay_s=0.01)
    engine = model.engine()
    with api.listen("127.0.0.1", 0) as listener:
        one = Running(model, listener.getsockname()[1])
        with started(model, engine, listener, drain_s=0.3) as server:
            stream = iter(one.ask("count", stream=True))
            next(stream)
            begin = time.monotonic()
            server.handle_exit(signal.SIGTERM, None)
            with pytest.raises(Exception, match=r"(?i)peer|incomplete|closed|read|connection"):  # of the HTTP library
                list(stream)
            assert time.monotonic() - begin < 8
            assert eventually(lambda: engine.closed)


def test_a_second_signal_ends_it_at_once():
    model = FakeModel(delay_s=0.01)
    engine = model.engine()
    with api.listen("127.0.0.1", 0) as listener:
        one = Running(model, listener.getsockname()[1])
        with started(model, engine, listener, drain_s=60) as server:
            next(iter(one.ask("count", stream=True)))
            server.handle_exit(signal.SIGTERM, None)
            assert not server.should_exit
            server.handle_exit(signal.SIGTERM, None)
            assert server.should_exit
            server._captured_signals.clear()  # or the test's own process would get it when the server has ended


def test_a_full_queue_says_how_long_it_will_take():
    queue = Queue(most=8, num_seqs=2)
    assert queue.refusal() is None and queue.estimate_s == 1
    queue.num_open = 8
    assert queue.refusal().headers["Retry-After"] == "1"  # nothing has ended yet
    for _ in range(100):
        queue.count(4.0)
    refused = queue.refusal()
    # Six wait, two run at a time, for four seconds each.
    assert (refused.status, refused.headers["Retry-After"]) == (429, "12") and "in 12 s" in refused.message
    queue.count(1e9)
    assert queue.estimate_s == 60


@pytest.mark.parametrize("options", [{"drain_s": -1}, {"drain_s": float("nan")}, {"max_queued_requests": -1}])
def test_numbers_that_make_no_sense_are_refused(options):
    with pytest.raises(HerdError, match="must"):
        ServeConfig(**options)


@pytest.mark.parametrize("api_path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_the_generation_in_every_api(server, api_path, stream):
    talk = {"messages": [{"role": "user", "content": "count"}]}
    given = {"/v1/completions": {"prompt": "count"}, "/v1/responses": {"input": "count"}}.get(api_path, talk)
    body = {"model": "fake", "stream": stream, **given}
    body |= {"max_tokens": 1500} if api_path != "/v1/responses" else {}
    engine = server.model.last_engine
    before = engine.num_cancelled
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("POST", api_path, json.dumps(body), {"Content-Type": "application/json"})
    assert eventually(lambda: engine.running == 1)
    connection.sock.close() if stream is False else connection.close()
    assert eventually(lambda: engine.running == 0 and engine.num_cancelled == before + 1)


def test_the_pages_of_an_answer_that_is_given_up_are_free_within_two_steps(tiny_folder):
    import asyncio

    import torch

    from herd.engine.load import load
    from herd.engine.pipeline import ReplyRequest
    from herd.engine.sampler import SamplingParams

    model = load(tiny_folder, dtype=torch.float32)
    engine = model.engine(max_num_seqs=2, max_model_len=256)
    steps = 0
    real = engine._step

    def counted():
        nonlocal steps
        steps += 1
        real()

    engine._step = counted
    pipeline = AnswerPipeline(model, engine)
    request = ReplyRequest(prompt=model.prompt_of_text("the cat"), params=SamplingParams(max_tokens=200))

    async def talk() -> None:
        nonlocal steps
        parts = pipeline.stream(request)
        for _ in range(3):
            await anext(parts)
        assert engine.stats()["used_bytes"] > 0
        await parts.aclose()
        steps = 0
        while engine.stats()["used_bytes"]:
            await asyncio.sleep(0.001)
        assert steps <= 2

    try:
        asyncio.run(asyncio.wait_for(talk(), 60))
        assert engine.stats()["running"] == engine.stats()["waiting"] == 0
    finally:
        engine.close()
