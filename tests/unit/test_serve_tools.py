"""Tool calls at the server: offered, read, sent back, cut off."""

import json

import pytest

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
