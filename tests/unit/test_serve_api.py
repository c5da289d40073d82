"""Chat completions in front of a model without weights, asked by OpenAI's own client and by raw requests."""

import base64
import http.client
import json
import re
from dataclasses import replace
from functools import partial

import openai
import pytest
import torch
from fake_herd import CONTEXT
from serve_world import eventually, picture

from herd.config import EngineConfig
from herd.engine.load import load
from herd.plan.counts import cache_bytes, usual_cache_bytes
from herd.serve.api import page as page_api


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


def test_an_answer_can_reach_the_client_as_an_error_with_its_field(server):
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


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/v1/chat/completions", 405)])
def test_a_wrong_address_is_reported_in_openais_shape(server, method, path, status):
    got, answer = server.raw(b"", method=method, path=path)
    assert got == status
    assert path in json.loads(answer)["error"]["message"]


def fetched(server, path: str) -> tuple[http.client.HTTPResponse, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", path)
    response = connection.getresponse()
    return response, response.read().decode()


def test_the_page_is_small_loads_nothing_from_elsewhere_and_may_not(server):
    response, page = fetched(server, "/")
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "trusted-types 'none'" in policy
    files = set(re.findall(r'(?:src|href)="(web/[^"]+)"', page))
    imported = {
        f"web/{name}" for path in files for name in re.findall(r'from "\./([^"]+)"', fetched(server, f"/{path}")[1])
    }
    assert imported < files, "each module is named on the page, or one is found only once another has been read"
    assert len(files) == len(list(page_api.WEB.iterdir())) - 1
    num_bytes = len(page.encode())
    for path in files:
        response, text = fetched(server, f"/{path}")
        assert (response.status, response.headers["X-Content-Type-Options"]) == (200, "nosniff"), path
        assert response.headers["Content-Type"].startswith("text/javascript" if path.endswith(".js") else "text/css")
        num_bytes += len(text.encode())
        page += text
    assert num_bytes < 150_000
    assert not re.findall(r"[\"'(]https?://(?!www\.w3\.org/2000/svg)", page)
    assert fetched(server, "/web/../server.py")[0].status == 404
    assert fetched(server, "/web/index.html")[0].status == 404


def test_a_video_comes_as_its_frames_and_a_broken_one_is_named(server):
    pytest.importorskip("av")
    from video_files import clip

    def part(data: bytes) -> dict[str, object]:
        return {"type": "video_url", "video_url": {"url": "data:video/mp4;base64," + base64.b64encode(data).decode()}}

    answer = server.ask([part(clip(30)), picture(3, 2), {"type": "text", "text": "moves"}])
    assert answer.choices[0].message.content == "[3x2][video of 3]moves"
    with pytest.raises(openai.BadRequestError, match="not a readable video") as caught:
        server.ask([part(b"nothing")])
    assert caught.value.param == "messages[0].content[0].video_url"


def test_the_cache_has_room_for_eight_requests_and_for_the_longest_one(tiny_folder):
    model = load(tiny_folder, dtype=torch.float32)
    room = partial(cache_bytes, model.config, number_bytes=4)
    config = EngineConfig(max_num_seqs=32)
    usual = partial(usual_cache_bytes, model.config, number_bytes=4)
    assert usual(config) == 8 * room(4096)  # all that this model claims
    assert usual(replace(config, max_model_len=512)) == 8 * room(512)
    longest = replace(config, max_model_len=10 * 2**20, kv_cache_dtype="int8")
    assert usual(longest) == room(10 * 2**20, int8=True)
