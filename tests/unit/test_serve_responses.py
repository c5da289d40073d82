"""OpenAI's Responses API, asked by its client: text, pictures, tools, forms, streams, and what goes on from what."""

import json

import openai
import pytest
from fake_herd import FakeModel
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from serve_world import Running, picture, serving
from test_guard_stream import BAD, WordGuard

from herd.engine.pipeline import AnswerPipeline
from herd.guard.stream import GuardGate
from herd.serve import server as api
from herd.serve.api.responses_store import ResponseStore
from herd.serve.models import one_model

TOOLS = [
    {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": None},
    {"type": "function", "name": "clock", "parameters": None, "strict": None},
]
STREAM_EVENT = TypeAdapter(ResponseStreamEvent)


def ask(server, given, **options):
    return server.client.responses.create(model="fake", input=given, **options)


def asked(server):
    """The messages that the model read last."""
    return json.loads(bytes(server.model.last_engine.seen[-1][0].token_ids))


def test_a_text_is_answered_in_openais_shape(server):
    answer = ask(server, "one two", instructions="Be brief.", temperature=0.5, max_output_tokens=9, metadata={"a": "b"})
    assert (answer.output_text, answer.status, answer.output[0].type) == ("one two", "completed", "message")
    Response.model_validate(answer.to_dict(), strict=False)
    assert [one["role"] for one in asked(server)] == ["system", "user"]
    prompt, params = server.model.last_engine.seen[-1]
    assert (params.temperature, params.max_tokens) == (0.5, 9)
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (len(prompt.token_ids), 3)
    assert answer.metadata == {"a": "b"}


def test_pictures_and_roles_reach_the_model(server):
    image = {"type": "input_image", "image_url": picture(3, 2)["image_url"]["url"], "detail": "auto"}
    content = [image, {"type": "input_text", "text": "what?"}]
    given = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": content}]
    assert ask(server, given).output_text == "[3x2]what?"
    with pytest.raises(openai.BadRequestError, match="does not do"):
        ask(server, [{"role": "user", "content": [{**image, "image_url": "http://10.0.0.1/a.png"}]}])


@pytest.mark.parametrize("stream", [False, True])
def test_the_limit_makes_a_response_incomplete(server, stream):
    answer = ask(server, "count", max_output_tokens=3, stream=stream)
    if stream:
        answer = list(answer)[-1].response
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.output_text == "1 2 3 " and answer.output[0].status == "incomplete"


def test_a_stream_has_openais_events_and_ends_in_the_plain_response(server):
    plain = ask(server, "one two", include=["message.output_text.logprobs"], top_logprobs=1)
    events = list(ask(server, "one two", stream=True, include=["message.output_text.logprobs"], top_logprobs=1))
    kinds = [one.type.removeprefix("response.") for one in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert [one.sequence_number for one in events] == list(range(len(events)))
    for one in events:
        STREAM_EVENT.validate_python(one.to_dict())
    assert "".join(one.delta for one in events if one.type == "response.output_text.delta") == plain.output_text
    last = events[-1].response.to_dict()
    for changing in ("id", "created_at"):
        last[changing] = getattr(plain, changing)
    last["output"][0]["id"] = plain.output[0].id
    assert last == plain.to_dict()
    assert len(plain.output[0].content[0].logprobs) == 3


def test_the_client_s_own_helper_accumulates_a_stream(server):
    with server.client.responses.stream(model="fake", input="[clock()]", tools=TOOLS) as stream:
        final = stream.get_final_response()
    assert [one.name for one in final.output] == ["clock"]


@pytest.mark.parametrize("stream", [False, True])
def test_calls_are_items_and_their_results_are_sent_back(server, stream):
    said = 'I look. [weather(city="Oslo"), clock()]'
    answer = ask(server, said, tools=TOOLS, stream=stream)
    if stream:
        events = list(answer)
        answer = events[-1].response
        deltas = [one for one in events if one.type == "response.function_call_arguments.delta"]
        assert json.loads(deltas[0].delta) == {"city": "Oslo"} and deltas[0].item_id == answer.output[1].id
    assert [one.type for one in answer.output] == ["message", "function_call", "function_call"]
    calls = answer.output[1:]
    assert [(one.name, json.loads(one.arguments)) for one in calls] == [("weather", {"city": "Oslo"}), ("clock", {})]
    results = [{"type": "function_call_output", "call_id": one.call_id, "output": "fine"} for one in calls]
    for again in (
        ask(server, [{"role": "user", "content": said}, *answer.output, *results], tools=TOOLS),
        ask(server, results, tools=TOOLS, previous_response_id=answer.id),
    ):
        assert again.output_text == "fine"
        read = asked(server)
        assert [one["role"] for one in read] == ["user", "assistant", "ipython", "ipython"]
        assert len(read[1]["tool_calls"]) == 2


def test_a_call_that_is_cut_off_is_an_incomplete_call(server):
    answer = ask(server, '[weather(a=1, b="x y z", c=3)]', tools=TOOLS, max_output_tokens=4)
    assert (answer.status, answer.output[0].status) == ("incomplete", "incomplete")
    assert answer.output[0].arguments == '{"a": 1, "b": "x y'


def test_a_form_binds_the_answer(server):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    form = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    ask(server, "a", text=form)
    structure = server.model.last_engine.seen[-1][1].structure
    assert structure.kind == "json_schema" and '"a"' in structure.source
    ask(server, "a", tools=TOOLS, tool_choice="required")
    assert server.model.last_engine.seen[-1][1].structure.kind == "grammar"


def test_a_response_goes_on_from_the_one_before_without_its_instructions(server):
    first = ask(server, "one", instructions="Be brief.")
    second = ask(server, "two", previous_response_id=first.id)
    third = ask(server, "three", previous_response_id=second.id, stream=True)
    list(third)
    assert [(one["role"], one["content"]) for one in asked(server)] == [
        ("user", "one"),
        ("assistant", [{"type": "text", "text": "one"}]),
        ("user", "two"),
        ("assistant", [{"type": "text", "text": "two"}]),
        ("user", "three"),
    ]
    assert server.client.responses.retrieve(second.id).output_text == "two"
    assert next(one.content for one in server.client.responses.input_items.list(first.id)) == "one"
    server.client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match="no response"):
        server.client.responses.retrieve(first.id)


def test_what_is_not_stored_or_somebody_else_s_cannot_be_named(server):
    kept, gone = ask(server, "one"), ask(server, "one", store=False)
    with pytest.raises(openai.BadRequestError, match="no response") as caught:
        ask(server, "two", previous_response_id=gone.id)
    assert caught.value.param == "previous_response_id"
    other = openai.OpenAI(base_url=server.client.base_url, api_key="other", max_retries=0)
    for call in (
        lambda: other.responses.create(model="fake", input="two", previous_response_id=kept.id),
        lambda: other.responses.retrieve(kept.id),
        lambda: other.responses.delete(kept.id),
    ):
        with pytest.raises((openai.BadRequestError, openai.NotFoundError)):
            call()
    assert server.client.responses.retrieve(kept.id).output_text == "one"


def test_the_store_is_bounded_in_number_and_bytes():
    store = ResponseStore(max_responses=2, max_bytes=1000)
    for name in "abc":
        store.put("me", {"id": name}, [], [{"text": name}])
        store.get("me", "a")
    assert [name for name in "abc" if store.get("me", name)] == ["a", "c"]  # used last
    store.put("me", {"id": "big"}, [{"text": "x" * 990}], [])
    assert store.get("me", "a") is None and store.get("me", "big") is None  # larger than all room
    store.put("me", {"id": "d"}, [], [{"text": "d"}])
    assert store.get("me", "d") and store.get("you", "d") is None
    assert store.delete("you", "d") is False and store.delete("me", "d") is True


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, "input"),
        ({"input": []}, "input"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"truncation": "auto"}, "truncation"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 10_000}, "input"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"verbosity": "low"}, "verbosity"),
    ],
)
def test_what_is_not_done_is_refused_by_name(server, options, param):
    body = {"model": "fake", "input": "a", **options}
    status, answer = server.raw(json.dumps(body).encode(), path="/v1/responses")
    error = json.loads(answer)["error"]
    assert (status, error["param"]) == (400, param), error


def test_what_openai_sends_in_vain_is_accepted(server):
    ask(server, "a", reasoning={"effort": "none"}, truncation="disabled", background=False, user="x", stream=False)
    reasoning = {"type": "reasoning", "id": "r", "summary": []}
    ask(server, [{"role": "user", "content": "a"}, reasoning, {"role": "user", "content": "b"}])
    assert len(asked(server)) == 2


def test_an_engine_that_fails_in_a_stream_ends_it_as_a_failed_response(server):
    events = list(ask(server, "one fail two", stream=True))
    assert events[-1].type == "response.failed" and events[-1].response.error.code == "server_error"
    with pytest.raises(openai.InternalServerError):
        ask(server, "one fail two")


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_guard_blocks_is_a_refusal(stream):
    model = FakeModel()
    engine = model.engine()
    with api.listen("127.0.0.1", 0) as listener:
        one = Running(model, listener.getsockname()[1])
        app = api.create_app(one_model(AnswerPipeline(model, engine, gate=GuardGate(WordGuard())), name="fake"))
        with serving(app, engine, listener):
            answer = ask(one, f"say {BAD}", stream=stream)
            if stream:
                events = list(answer)
                for event in events:
                    STREAM_EVENT.validate_python(event.to_dict())
                answer = events[-1].response
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "content_filter")
    assert [part.type for part in answer.output[0].content] == ["refusal"] and engine.seen == []
    assert "S1 Violent Crimes" in answer.output[0].content[0].refusal
