"""Anthropic's Messages API, asked by its own client: text, pictures, tools, streams, and errors in its shape."""

import json

import anthropic
import pytest
from fake_herd import CONTEXT, FakeModel
from serve_world import Running, picture, serving
from test_guard_stream import BAD, WordGuard

from herd.engine.pipeline import AnswerPipeline
from herd.guard.stream import GuardGate
from herd.serve import server as api
from herd.serve.models import one_model

TOOLS = [
    {"name": "weather", "description": "Of a city.", "input_schema": {"type": "object"}},
    {"name": "clock", "input_schema": {"type": "object"}},
]


REMOTE = {"type": "url", "url": "http://10.0.0.1"}


def client_of(server):
    return anthropic.Anthropic(base_url=f"http://127.0.0.1:{server.port}", api_key="none", max_retries=0)


def ask(server, content, **options):
    messages = content if isinstance(content, list) and "role" in content[0] else [{"role": "user", "content": content}]
    options = {"max_tokens": 100, **options}
    return client_of(server).messages.create(model="fake", messages=messages, **options)


def asked(server):
    """The messages that the model read last."""
    return json.loads(bytes(server.model.last_engine.seen[-1][0].token_ids))


def image(width, height):
    return {
        "type": "image",
        "source": {
            "type": "base64",
            "media_type": "image/png",
            "data": picture(width, height)["image_url"]["url"].partition(",")[2],
        },
    }


def test_a_text_is_answered_in_anthropics_shape(server):
    answer = ask(server, "one two", system="Be brief.", extra_body={"temperature": 0.5, "top_p": 0.8, "top_k": 7})
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "fake")
    assert [(block.type, block.text) for block in answer.content] == [("text", "one two")]
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    prompt, params = server.model.last_engine.seen[-1]
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (0.5, 0.8, 7, 100)
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (len(prompt.token_ids), 3)
    assert asked(server)[0] == {"role": "system", "content": "Be brief."}


def test_a_system_of_blocks_and_pictures_reach_the_model(server):
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    answer = ask(server, [image(3, 2), {"type": "text", "text": "what?"}], system=system)
    assert answer.content[0].text == "[3x2]what?"


@pytest.mark.parametrize(
    ("options", "reason", "sequence"),
    [({"max_tokens": 3}, "max_tokens", None), ({"stop_sequences": ["never", "5 6"]}, "stop_sequence", "5 6")],
)
def test_the_reason_of_an_end_is_named(server, options, reason, sequence):
    answer = ask(server, "count", **options)
    assert (answer.stop_reason, answer.stop_sequence) == (reason, sequence)
    with client_of(server).messages.stream(
        model="fake", messages=[{"role": "user", "content": "count"}], **{"max_tokens": 100, **options}
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert (final.stop_reason, final.stop_sequence, text) == (reason, sequence, answer.content[0].text)
    assert final.usage.output_tokens == answer.usage.output_tokens or sequence
    assert final.usage.input_tokens == answer.usage.input_tokens


def test_a_stream_has_anthropics_events_in_their_order(server):
    events = list(ask(server, "one two", stream=True))
    kinds = [one.type for one in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_calls_are_blocks_and_their_results_are_sent_back(server):
    said = 'I look. [weather(city="Oslo"), clock()]'
    plain = ask(server, said, tools=TOOLS)
    described = server.model.last_tools[0]["function"]
    assert described == {"name": "weather", "description": "Of a city.", "parameters": {"type": "object"}}
    with client_of(server).messages.stream(
        model="fake", max_tokens=100, messages=[{"role": "user", "content": said}], tools=TOOLS
    ) as stream:
        streamed = stream.get_final_message()
    for answer in (plain, streamed):
        assert answer.stop_reason == "tool_use"
        assert [block.type for block in answer.content] == ["text", "tool_use", "tool_use"]
        assert [(one.name, one.input) for one in answer.content[1:]] == [("weather", {"city": "Oslo"}), ("clock", {})]
    results = [
        {"type": "tool_result", "tool_use_id": plain.content[2].id, "content": [{"type": "text", "text": "noon"}]},
        {"type": "tool_result", "tool_use_id": plain.content[1].id, "content": "rain", "is_error": False},
    ]
    talk = [{"role": "user", "content": said}, {"role": "assistant", "content": plain.content}]
    again = ask(server, [*talk, {"role": "user", "content": [*results, {"type": "text", "text": "so?"}]}], tools=TOOLS)
    assert again.content[0].text == "so?"
    read = asked(server)
    assert [one["role"] for one in read] == ["user", "assistant", "ipython", "ipython", "user"]
    assert [one["content"] for one in read[2:4]] == ["rain", [{"type": "text", "text": "noon"}]]  # as the calls


@pytest.mark.parametrize(
    "choice", [{"type": "any"}, {"type": "tool", "name": "clock"}, {"type": "auto", "disable_parallel_tool_use": True}]
)
def test_a_choice_of_tools_binds_the_answer(server, choice):
    ask(server, "a", tools=TOOLS, tool_choice=choice)
    assert server.model.last_engine.seen[-1][1].structure.kind == "grammar"


def test_tools_may_be_forbidden(server):
    assert ask(server, "[clock()]", tools=TOOLS, tool_choice={"type": "none"}).content[0].text == "[clock()]"


def test_a_call_that_is_cut_off_is_a_call_with_what_can_be_read(server):
    answer = ask(server, '[weather(a=1, b="x y z", c=3)]', tools=TOOLS, max_tokens=4)
    assert (answer.stop_reason, answer.content[0].input) == ("max_tokens", {"a": 1, "b": "x y"})


def test_a_schema_binds_the_answer(server):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    ask(server, "a", output_config={"format": {"type": "json_schema", "schema": schema}})
    assert server.model.last_engine.seen[-1][1].structure.kind == "json_schema"


def test_the_tokens_of_a_prompt_are_counted_as_they_are_charged(server):
    messages = [{"role": "user", "content": "one two"}]
    before = len(server.model.last_engine.seen)
    count = client_of(server).messages.count_tokens(model="fake", messages=messages, tools=TOOLS)
    assert len(server.model.last_engine.seen) == before
    assert count.input_tokens == ask(server, messages, tools=TOOLS).usage.input_tokens


def test_the_model_is_listed_for_both_clients(server):
    assert [one.id for one in client_of(server).models.list()] == ["fake"]
    card = client_of(server).models.retrieve("fake")
    assert (card.type, card.display_name, card.created_at.year) == ("model", "fake", card.created_at.year)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": CONTEXT}, "lower max_tokens"),
        ({"temperature": 1.5}, "temperature"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "last one is the"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "x", "name": "f", "input": {}}]}]},
         "only for the role"),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}, "a block is an object"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": REMOTE}]}]}, "to be fetched"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]}, "waits"),
        ({"nonsense": 1}, "unknown field"),
    ],
)  # fmt: skip
def test_what_is_not_done_is_refused_in_anthropics_shape(server, options, says):
    body = {"model": "fake", "max_tokens": 9, "messages": [{"role": "user", "content": "a"}], **options}
    status, answer = server.raw(json.dumps(body).encode(), path="/v1/messages")
    answer = json.loads(answer)
    assert (status, answer["type"], answer["error"]["type"]) == (400, "error", "invalid_request_error")
    assert says in answer["error"]["message"]


def test_errors_raise_what_anthropics_client_knows(server):
    with pytest.raises(anthropic.NotFoundError, match="use 'fake'"):
        client_of(server).messages.create(model="x", max_tokens=9, messages=[{"role": "user", "content": "a"}])
    with pytest.raises(anthropic.InternalServerError):
        ask(server, "one fail two")
    with pytest.raises(anthropic.APIStatusError, match="the server failed"):
        list(ask(server, "one fail two", stream=True))


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_guard_blocks_ends_with_a_refusal(stream):
    model = FakeModel()
    engine = model.engine()

    class ReplyGuard(WordGuard):
        def judge(self, messages):
            if messages[-1]["role"] == "user":
                return super().judge([{"role": "user", "content": ""}])
            return super().judge(messages)

    with api.listen("127.0.0.1", 0) as listener:
        one = Running(model, listener.getsockname()[1])
        app = api.create_app(one_model(AnswerPipeline(model, engine, gate=GuardGate(ReplyGuard())), name="fake"))
        with serving(app, engine, listener):
            if stream:
                with client_of(one).messages.stream(
                    model="fake", max_tokens=900, messages=[{"role": "user", "content": "a" * 300 + " " + BAD}]
                ) as events:
                    answer = events.get_final_message()
            else:
                answer = ask(one, "a" * 300 + " " + BAD, max_tokens=900)
    assert answer.stop_reason == "refusal"
    assert answer.content[0].text == "a" * 300 and "S1 Violent Crimes" in answer.content[1].text
