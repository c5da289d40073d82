"""Tool calls, read from what a model says: sound ones to structure, all else stays text."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.data.tokens.tool_calls import Call, CallFilter, find_call, parse_answer, write_calls
from herd.errors import HerdError

NAMES = ["weather", "get-time", "mcp.search", "2fa"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
CALLS = st.lists(
    st.builds(Call, name=st.sampled_from(NAMES), arguments=st.dictionaries(st.text(), JSON, max_size=3)),
    min_size=1,
    max_size=3,
).map(tuple)


def as_json(calls: tuple[Call, ...]) -> str:
    return "; ".join(json.dumps({"name": call.name, "parameters": call.arguments}) for call in calls)


@given(CALLS)
def test_what_is_written_is_read_back_in_both_styles(calls):
    for text in (write_calls(calls), as_json(calls), f"[{as_json(calls[:1])}]" if len(calls) == 1 else as_json(calls)):
        for whole in (text, f"<|python_start|>{text}<|python_end|>", f" \n{text}\n"):
            assert parse_answer(whole, NAMES).calls == calls, whole
        assert parse_answer(f"Let me see.\n{text}", NAMES).text == "Let me see."


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('[weather(city="a)], weather(b=(\'[")]', {"city": "a)], weather(b=('["}),
        ("[weather(city='it\\'s \"so\"', n=-3, x=1.5e3,)]", {"city": 'it\'s "so"', "n": -3, "x": 1500.0}),
        ("[ weather ( a = true , b = null, c=(1, 2), d=None ) , ]", {"a": True, "b": None, "c": [1, 2], "d": None}),
        ('[weather(from="Osló", class={"a": [1, {"b": "字"}]})]', {"from": "Osló", "class": {"a": [1, {"b": "字"}]}}),
        ('[weather(a="""two\nlines, "quoted" )""")]', {"a": 'two\nlines, "quoted" )'}),
        ("[weather()]", {}),
        ('{"type": "function", "name": "weather", "parameters": {"a": "}"}}', {"a": "}"}),
        ('[{"name": "weather", "arguments": {"a": [1, 2]}}]', {"a": [1, 2]}),
        ('{"name": "weather", "arguments": "{\\"a\\": [1, \\"b\\"]}"}', {"a": [1, "b"]}),  # JSON text inside JSON
        ('[weather(a=1, **{"first name": "x", "$f": 2}, b=3)]', {"a": 1, "first name": "x", "$f": 2, "b": 3}),
        ('[weather(a="\\ud83e\\udd94")]', {"a": "🦔"}),  # a surrogate pair, as JSON escapes it
        ('[weather(a="x]", b=[1, {"c": 2}])', {"a": "x]", "b": [1, {"c": 2}]}),  # without its last bracket
        ('{"name": "weather", "parameters": {"a": "}"}', {"a": "}"}),
        ('[{"name": "weather", "parameters": {}}', {}),
    ],
)
def test_strings_brackets_and_nested_values_are_read(text, arguments):
    assert parse_answer(text, NAMES).calls == (Call(name="weather", arguments=arguments),)


@pytest.mark.parametrize(
    "text",
    [
        "[weather(city=city)]",
        "[weather(a=__import__('os').getcwd())]",
        "[weather(a=1+1)]",
        "[weather(a=f'{1}')]",
        "[weather(a=b'x')]",
        "[weather(a={1: 2})]",
        "[weather(a={1})]",
        "[weather(**{'a': 1}, a=2)]",
        "[weather(**{'a': 1, 2: 3})]",
        "[weather(**x)]",
        "[weather(first name=1)]",
        "[weather('Oslo')]",
        "[weather(a=1, a=2)]",
        "[weather(a=1e999)]",
        "[weather(a='\\ud800')]",
        "[weather(a=0x" + "f" * 9000 + ")]",
        "[weather(a=" + "[" * 5000 + "]" * 5000 + ")]",
        "[weather(a=" + "-" * 50_000 + "1)]",
        "[weather(a=1",
        "[weather(a='1)]",
        "[weather(a=1)] is what I would call.",
        "[weather(a=1), other()]",
        "[weather(a=1); get-time()]",
        "[weather(a==1)]",
        "[weather(a=1\0)]",
        '{"name": "weather"}',
        '{"name": "weather", "parameters": []}',
        '{"name": "weather", "parameters": {"a": NaN}}',
        '{"name": "weather", "parameters": {"a": 1',
        '{"name": "weather", "parameters": "Oslo"}',
        '{"name": "weather", "parameters": "[1]"}',
        '{"name": "weather", "parameters": {}, "more": 1}',
        '{"name": "weather", "parameters": ' + '{"a":' * 100_000,
        '{"name": "weather", "parameters": {}} and more',
    ],
    ids=lambda text: text[:30],
)
def test_what_is_no_sound_call_is_given_back_whole_with_the_reason(text):
    answer = parse_answer(text, NAMES)
    assert (answer.text, answer.calls) == (text, ())
    assert answer.reason


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", "[weather]", "weather(a=1)", '{"name": "Bob"}', "[other()]", "a < b [x"]
)
def test_what_only_looks_like_a_call_is_text_at_once(text):
    assert find_call(text, NAMES)[0] == "text"
    assert parse_answer(text, NAMES).reason is None
    assert CallFilter(NAMES).push(text) == text


def test_no_tools_no_calls():
    assert parse_answer("[weather()]", []).text == "[weather()]"


@given(
    before=st.sampled_from(["", "I look: ", "a [1] {b} <| < "]),
    calls=CALLS,
    style=st.sampled_from([write_calls, as_json]),
    data=st.data(),
)
def test_a_stream_shows_the_words_and_keeps_the_calls_however_it_is_cut(before, calls, style, data):
    text = before + style(calls)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=20)))
    stream = CallFilter(NAMES)
    shown = "".join(stream.push(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True))
    answer = stream.finish()
    assert (shown + answer.text, answer.calls) == (before.rstrip(), calls)


@given(st.text(st.sampled_from('[{<weather("name": |python_start>)}]1, =')))
def test_a_stream_without_a_sound_call_loses_nothing(text):
    stream = CallFilter(NAMES)
    shown = "".join(map(stream.push, text))
    answer = stream.finish()
    if not answer.calls:
        assert shown + answer.text == text


def test_a_long_run_of_open_brackets_takes_no_square_time():
    stream = CallFilter(NAMES)
    for _ in range(5000):
        assert stream.push("[ {< ") != ""


def test_a_name_that_could_not_be_read_back_is_refused():
    with pytest.raises(HerdError, match="'two words'"):
        write_calls([Call(name="two words", arguments={})])


@given(st.text() | st.text("\n\r\t\0\x0b\x1f\u2028\"'\\n"))
def test_any_text_is_read_as_it_stands_whether_its_line_breaks_are_escaped_or_not(text):
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    for said in (f'[weather(a="{quoted}")]', f'{{"name": "weather", "parameters": {{"a": "{quoted}"}}}}'):
        assert parse_answer(said, NAMES).calls == (Call(name="weather", arguments={"a": text}),)
    in_threes = text.replace("\\", "\\\\").replace("'", "\\'")
    assert parse_answer(f"[weather(a='''{in_threes}''')]", NAMES).calls[0].arguments == {"a": text}


@given(calls=CALLS, style=st.sampled_from([write_calls, as_json]), data=st.data())
def test_of_calls_that_are_cut_off_comes_the_beginning_and_nothing_else(calls, style, data):
    text = style(calls)
    cut = text[: data.draw(st.integers(0, len(text)))]
    answer = parse_answer(cut, NAMES, cut=True)
    if find_call(cut, NAMES)[0] != "call":
        assert answer.text == cut
        return
    assert answer.text == "" and answer.calls
    *whole, last = answer.calls
    expected = calls[len(whole)]
    assert tuple(whole) == calls[: len(whole)] and last.name == expected.name
    full = json.dumps(expected.arguments, ensure_ascii=False)
    # A number may have been cut within, and be written otherwise: 1e2 of 1e22.
    assert full.startswith(re.sub(r"-?[0-9][0-9.e+-]*$", "", last.arguments_json))
    # JSON calls one after the other are whole without those that were to follow.
    assert answer.cut or answer.calls == calls[: len(answer.calls)]


@pytest.mark.parametrize(
    ("said", "arguments"),
    [
        ("[weather(", "{"),
        ('[weather(city="Oslo", da', '{"city": "Oslo"'),
        ('[weather(city="Oslo", days=[1, {"a": "Mon', '{"city": "Oslo", "days": [1, {"a": "Mon'),
        ("[weather(city='it\\", '{"city": "it'),
        ('[weather(**{"first name": "A', '{"first name": "A'),
        ("[weather(sunny=Tru", "{"),
        ('{"name": "weather", "parameters": {"city": "one\ttw', '{"city": "one\\ttw'),
        ('[{"name": "weather", "parameters": {"days": [1, 2', '{"days": [1, 2'),
    ],
)
def test_a_call_that_is_cut_off_has_partial_arguments(said, arguments):
    answer = parse_answer(said, NAMES, cut=True)
    assert (answer.text, answer.cut, [call.arguments_json for call in answer.calls]) == ("", True, [arguments])
    assert parse_answer(said, NAMES).text == said  # and one that ends there by itself is none


@pytest.mark.parametrize("said", ["[weather(a=1)] is what I'd", '{"name": "weather", "parameters": {}} and "so'])
def test_words_behind_a_call_are_not_cut_away(said):
    assert parse_answer(said, NAMES, cut=True).text == said


def test_calls_between_the_tags_of_chatml_are_read_however_they_are_cut() -> None:
    said = (
        'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "a</tool_call>b"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    )
    names = ["weather", "clock"]
    answer = parse_answer(said, names)
    assert answer.text == "I look."
    assert [(call.name, call.arguments) for call in answer.calls] == [
        ("weather", {"city": "a</tool_call>b"}),
        ("clock", {}),
    ]
    for size in (1, 3, 7):
        stream = CallFilter(names)
        shown = "".join(stream.push(said[at : at + size]) for at in range(0, len(said), size))
        assert shown == "I look."
    assert parse_answer("<tool_call> is a tag", names).calls == ()
