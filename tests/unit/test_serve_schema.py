"""Requests: what is honoured, what is refused by name, and that nothing falls between."""

import base64
import io
import re

import pytest
from fastapi.exceptions import RequestValidationError
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from herd.data.tokens.chat import call_of
from herd.data.tokens.tool_calls import Call, parse_answer, read_arguments, write_calls
from herd.engine.reply import tool_call_objects
from herd.engine.sampler import SamplingParams
from herd.errors import HerdError
from herd.serve import messages
from herd.serve.messages import data_url, read_conversation
from herd.serve.refusal import ApiError, validation_error
from herd.serve.schema import ChatRequest, check_fields

PLAIN = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def png(width: int = 3, height: int = 2) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, "PNG")
    return file.getvalue()


def url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def image(address: str, **more: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": address, **more}}


def parse(**fields: object) -> ChatRequest:
    return check_fields(ChatRequest.model_validate({**PLAIN, **fields}))


def refused(**fields: object) -> ApiError:
    """The refusal of a request with these fields, through validation and decoding."""
    with pytest.raises((ApiError, ValidationError)) as caught:
        read_conversation(parse(**fields))
    if isinstance(caught.value, ApiError):
        return caught.value
    return validation_error(RequestValidationError(caught.value.errors()).errors(), ChatRequest)


def user(*parts: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": list(parts)}]


TOOL = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def calling(arguments: str, name: str = "f") -> dict[str, object]:
    call = {**CALL, "function": {"name": name, "arguments": arguments}}
    return {"messages": [{"role": "assistant", "tool_calls": [call]}]}


def test_results_are_in_the_order_of_the_calls():
    calls = [{**CALL, "id": name} for name in "ab"]
    results = [{"role": "tool", "content": name, "tool_call_id": name} for name in "ba"]
    asked = [*PLAIN["messages"], {"role": "assistant", "content": None, "tool_calls": calls}, *results]
    made = read_conversation(parse(messages=asked)).messages
    assert [message["role"] for message in made] == ["user", "assistant", "ipython", "ipython"]
    assert [message["content"] for message in made[2:]] == ["a", "b"]


def sent_back(*calls: Call) -> str:
    """What the model is shown of these calls of its own, after the way through a client."""
    reported = tool_call_objects(calls)
    results = [{"role": "tool", "content": "x", "tool_call_id": call["id"]} for call in reported]
    [asked, *_] = read_conversation(parse(messages=[{"role": "assistant", "tool_calls": reported}, *results])).messages
    return write_calls([call_of(call) for call in asked["tool_calls"]])


@given(name=st.from_regex("[a-zA-Z0-9_.-]{1,64}", fullmatch=True), arguments=st.dictionaries(st.text(), st.text()))
def test_a_call_that_we_gave_out_can_be_sent_back_and_is_rendered_as_it_was_made(name, arguments):
    call = Call(name=name, arguments=arguments)
    assert parse_answer(sent_back(call), [name]).calls == (call,)


def test_white_space_at_the_end_of_arguments_that_were_cut_off_is_theirs():
    assert read_arguments('{"": " ') == {"": " "}
    assert read_arguments(' {"a": 1}\n') == {"a": 1}
    assert read_arguments(" \n") == {}


@given(arguments=st.dictionaries(st.text(), st.text() | st.lists(st.integers())), data=st.data())
def test_a_call_that_was_cut_off_can_be_sent_back_too(arguments, data):
    whole = Call(name="f", arguments=arguments)
    said = write_calls([whole])
    answer = parse_answer(said[: data.draw(st.integers(3, len(said)))], ["f"], cut=True)
    [again] = parse_answer(sent_back(*answer.calls), ["f"]).calls
    assert again.arguments == answer.calls[0].arguments


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        ("", "[f()]"),
        ("null", "[f()]"),
        ('{"city": "Ber', '[f(city="Ber")]'),
        ('{"city": "Ber", "da', '[f(city="Ber")]'),
        ('"{\\"city\\": 1}"', "[f(city=1)]"),
        ('{"city": "one\ntwo"}', '[f(city="one\\ntwo")]'),
        ("[1]", "[f(arguments=[1])]"),
        ("city=Berlin", '[f(arguments="city=Berlin")]'),
        ("[" * 100_000, f'[f(arguments="{"[" * 100_000}")]'),
    ],
)
def test_a_broken_call_of_the_past_is_rendered_as_well_as_it_can_be_read(arguments, reported):
    message = calling(arguments)["messages"][0]
    [asked, _] = read_conversation(
        parse(messages=[message, {"role": "tool", "content": "x", "tool_call_id": "1"}])
    ).messages
    assert write_calls([call_of(call) for call in asked["tool_calls"]]) == reported


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy"}),
        ("reasoning_effort", "high"),
        ("service_tier", "priority"),
    ],
)
def test_a_field_that_cannot_be_honoured_is_refused_by_name(field, value):
    error = refused(**{field: value})
    assert (error.param, error.code) == (field, "unsupported_parameter")
    assert field in error.message


def test_values_that_ask_for_nothing_pass():
    neutral = {field: value for field, values in ChatRequest.unsupported.items() for value in values[-1:]}
    assert parse(**neutral) == parse(**dict.fromkeys(ChatRequest.unsupported)) == parse()


def test_bookkeeping_fields_change_nothing():
    assert parse(store=True, metadata={"a": "b"}, safety_identifier="x") == parse()


def test_an_unknown_field_is_refused_with_the_nearest_name():
    error = refused(temprature=1)
    assert (error.param, error.code) == ("temprature", "unknown_parameter")
    assert "did you mean 'temperature'?" in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "function_call": {}}]}, "messages[0].function_call"),
        ({"messages": [{"role": "user", "content": "x", "refusal": "no"}]}, "messages[0].refusal"),
        ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "tool_calls": [CALL]}]}, "messages"),
        ({"messages": [{"role": "assistant", "tool_calls": [CALL]}, *PLAIN["messages"]]}, "messages[1]"),
        ({"messages": [{"role": "assistant", "tool_calls": [CALL, CALL]}]}, "messages[0].tool_calls"),
        (calling("{}", name="f(x)"), "messages[0].tool_calls[0].function.name"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "f g"}}]}, "tools[0].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": user({"type": "input_audio"})}, "messages[0].content[0]"),
        ({"messages": user({"type": "video_url"})}, "messages[0].content[0].video_url"),
        ({"messages": user({"type": "video_url", "video_url": {"url": "x"}})}, "messages[0].content[0].video_url"),
        ({"messages": user({"type": "text"})}, "messages[0].content[0].text"),
        ({"messages": user("x")}, "messages[0].content[0]"),
        ({"messages": user({"type": "text", "text": "x"}, image(""))}, "messages[0].content[1].image_url"),
        ({"messages": user(image(url(b"x"), detail="tiny"))}, "messages[0].content[0].image_url.detail"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ({"messages": [{"role": "system", "content": [image(url(png()))]}]}, "messages[0].content[0]"),
        ({"model": 3}, "model"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"n": 17}, "n"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"frequency_penalty": 2.1}, "frequency_penalty"),
        ({"presence_penalty": "1"}, "presence_penalty"),
        ({"logit_bias": {"cat": 1}}, "logit_bias.cat.[key]"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"verbosity": "low"}, "verbosity"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"regex": "a", "grammar": "start: /a/"}, "regex"),
        ({"regex": "a", "response_format": {"type": "json_object"}}, "regex"),
        ({"regex": ""}, "regex"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
            "response_format.json_schema.name",
        ),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "must"}, "tool_choice"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usge": True}}, "stream_options.include_usge"),
    ],
)
def test_a_broken_request_is_refused_with_the_field_at_fault(fields, param):
    error = refused(**fields)
    assert error.param == param
    assert error.status == 400
    assert param.split(".")[0].split("[")[0] in error.message
    assert "\n" not in error.message


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("https://example.com/cat.png", "does not do"),
        ("HTTP://example.com/cat.png", "does not do"),
        ("file:///etc/passwd", "does not do"),
        ("/etc/passwd", "not a base64 data: URL"),
        ("data:image/png,abc", "not a base64 data: URL"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64,a", "broken"),
        ("data:image/png;base64,*€*", "broken"),
        ("data:image/png;base64,aGVs*bG8=", "broken"),
        (url(b"no picture"), "empty, damaged or none of PNG"),
        (url(png()[:45]), "not a readable picture"),
    ],
)
def test_only_a_readable_picture_in_a_data_url_is_accepted(address, says):
    error = refused(messages=user(image(address)))
    assert says in error.message
    assert error.param == "messages[0].content[0].image_url"


def test_a_picture_past_the_limit_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(messages, "MAX_MEDIA_BYTES", 2**20)
    assert len(data_url(url(bytes(2**20)))) == 2**20
    with pytest.raises(HerdError, match="more than 1 MiB"):
        data_url(url(bytes(2**20 + 9)))


@given(st.binary(min_size=1, max_size=200), st.integers(0, 200))
def test_a_data_url_gives_back_its_bytes_however_its_base64_is_wrapped(data, at):
    text = base64.b64encode(data).decode()
    assert data_url(f"data:image/webp;name=x;base64,{text[:at]}\r\n {text[at:]}") == data


def test_text_and_several_pictures_keep_their_order():
    parts = [image(url(png(3, 2))), {"type": "text", "text": "between"}, image(url(png(5, 4)), detail="auto")]
    made = read_conversation(parse(messages=[{"role": "developer", "content": "be brief"}, *user(*parts)])).messages
    assert made[0] == {"role": "system", "content": "be brief"}
    first, text, second = made[1]["content"]
    assert (first["image"].size, text, second["image"].size) == ((3, 2), {"type": "text", "text": "between"}, (5, 4))


@pytest.mark.parametrize(
    ("sent", "made"),
    [
        # As OpenAI's client dumps an answer, and as clients of other services do.
        ({"content": "hi", "refusal": None, "annotations": [], "tool_calls": None, "audio": None}, "hi"),
        ({"content": "hi", "name": "Ada", "reasoning_content": "hm", "reasoning": "hm"}, "hi"),
        ({"content": "hi", "annotations": [{"type": "url_citation"}], "cache_control": {"type": "ephemeral"}}, "hi"),
        ({"content": None}, ""),
        ({"content": None, "tool_calls": []}, ""),
        ({"content": None, "refusal": "I cannot"}, "I cannot"),
        ({"content": []}, ""),
        ({"content": [{"type": "refusal", "refusal": "no"}]}, [{"type": "text", "text": "no"}]),
        (
            {"content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]},
            [{"type": "text", "text": "hi"}],
        ),
    ],
)
def test_an_answer_is_accepted_back_as_clients_send_it(sent, made):
    asked = read_conversation(parse(messages=[{"role": "assistant", **sent}, *PLAIN["messages"]])).messages
    assert asked[0] == {"role": "assistant", "content": made}


def test_a_result_of_a_tool_may_have_a_name_and_nothing_to_say():
    call = {**CALL, "index": 0}
    for content in ("", None, []):
        result = {"role": "tool", "name": "f", "content": content, "tool_call_id": "1"}
        made = read_conversation(
            parse(messages=[{"role": "assistant", "content": None, "tool_calls": [call]}, result])
        ).messages
        assert (made[1]["role"], made[1]["content"]) == ("ipython", "")


def test_a_picture_of_low_detail_is_one_tile():
    sent = user(*(image(url(png()), detail=detail) for detail in ("low", "high")))
    [low, high] = read_conversation(parse(messages=sent)).messages[0]["content"]
    assert (low["max_tiles"], "max_tiles" in high) == (1, False)


@given(st.binary(min_size=1, max_size=50))
def test_base64_is_read_without_padding_and_with_the_marks_of_addresses(data):
    for encoded in (base64.b64encode(data), base64.urlsafe_b64encode(data)):
        assert data_url(f"data:image/png;base64,{encoded.decode().rstrip('=')}") == data


def test_sampling_is_what_the_request_says_and_else_the_default():
    defaults = SamplingParams(temperature=0.3, top_k=7)
    assert parse().sampling(defaults) == defaults
    asked = parse(
        temperature=1, top_p=0.5, top_k=0, min_p=0.1, repetition_penalty=1.2, frequency_penalty=1, presence_penalty=-1,
        logit_bias={"5": -100, "6": 2.5}, seed=-3, stop="x", logprobs=True, top_logprobs=4,
    ).sampling(defaults)  # fmt: skip
    assert asked == SamplingParams(
        temperature=1.0, top_p=0.5, min_p=0.1, repetition_penalty=1.2, frequency_penalty=1.0, presence_penalty=-1.0,
        logit_bias={5: -100.0, 6: 2.5}, seed=-3, stop=("x",), logprobs=4,
    )  # fmt: skip
    assert parse(logprobs=True).sampling(defaults).logprobs == 0
    assert parse(best_of=3).sampling(defaults).logprobs == 0  # to choose by
    assert parse(n=3).sampling(defaults).logprobs is None


def test_either_name_of_the_limit_counts():
    assert parse(max_tokens=5).limit == parse(max_completion_tokens=5).limit == 5
    assert parse(max_tokens=5, max_completion_tokens=5).limit == 5
    assert parse().limit is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(sorted({*ChatRequest.model_fields, *ChatRequest.unsupported, *ChatRequest.ignored}))


part_kinds = st.sampled_from(["text", "image_url", "video_url"]) | json_values
parts = json_values | st.fixed_dictionaries(
    {},
    optional={
        "type": part_kinds,
        "text": json_values,
        "image_url": json_values | st.dictionaries(st.just("url"), json_values),
    },
)
some_messages = st.lists(
    json_values
    | st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["user", "system"]) | json_values,
            "content": st.lists(parts, max_size=2) | json_values,
            "name": json_values,
        },
    ),
    max_size=2,
)


@given(st.dictionaries(fields, json_values, max_size=4), some_messages | st.just(PLAIN["messages"]))
def test_any_json_is_accepted_or_refused_in_one_line(body, said):
    body = {"messages": said} | body
    try:
        read_conversation(check_fields(ChatRequest.model_validate({**PLAIN, **body})))
    except ApiError as error:
        refusal = error
    except ValidationError as error:
        refusal = validation_error(RequestValidationError(error.errors()).errors(), ChatRequest)
    else:
        return
    assert refusal.param is not None
    assert re.fullmatch(r"[a-z_]+([.\[].*)?", refusal.param)
    assert refusal.message
    assert len(refusal.message) < 400
