"""Structured answers: what a random model says within a form has that form."""

import contextlib
import datetime
import ipaddress
import json
import re
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_folder import random_tokenizer

from herd.engine import structure
from herd.engine.answer import Answer, advance, join_pieces
from herd.engine.json_schema import FORMATS
from herd.engine.sampler import SamplingParams
from herd.engine.structure import ANY_OBJECT, Structure, Structures
from herd.errors import HerdError

TOKENIZER = random_tokenizer()
SIZE = TOKENIZER.vocab_size + 5  # a kin's embedding may have rows to spare
END = TOKENIZER.ids.stop
STRUCTURES = Structures(TOKENIZER, vocab_size=SIZE, stop=END)

words = st.lists(st.text(max_size=4) | st.integers(-9, 9), min_size=1, max_size=3)
scalars = st.one_of(
    st.fixed_dictionaries({"type": st.just("string")}, optional={"maxLength": st.integers(0, 5)}),
    st.fixed_dictionaries({"type": st.just("string"), "pattern": st.sampled_from(["^[a-c]{2,4}$", "^(x|yz)+$"])}),
    st.builds(lambda low: {"type": "integer", "minimum": low, "maximum": low + 20}, st.integers(-50, 50)),
    st.fixed_dictionaries({"type": st.sampled_from(["boolean", "null", "number"])}),
    st.builds(lambda some: {"enum": some}, words),
    st.just({"type": "string", "format": "date"}),
)
schemas = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.builds(lambda one, n: {"type": "array", "items": one, "maxItems": n}, inner, st.integers(0, 3)),
        st.builds(lambda some: {"anyOf": some}, st.lists(inner, min_size=1, max_size=2)),
        st.builds(
            lambda fields, closed, needed: {
                "type": "object",
                "properties": fields,
                "required": [name for name in fields if name in needed],
                **({"additionalProperties": False} if closed else {}),
            },
            st.dictionaries(st.sampled_from(["a", "b b", 'q"', "ä"]), inner, max_size=3),
            st.booleans(),
            st.sets(st.sampled_from(["a", "b b", "ä"])),
        ),
    ),
    max_leaves=5,
)


def said(form: Structure, *, seed: int, max_tokens: int = 100, wish: float = 0.0) -> tuple[Answer, str, str | None]:
    """What a model without any sense says in `form`; `wish` is how much it would like to end."""
    params = SamplingParams(temperature=1.0, seed=seed, max_tokens=max_tokens, structure=form)
    answer = Answer(
        params, prompt=[], tokenizer=TOKENIZER, end_tokens=END, room=10_000, seed=0, grammar=STRUCTURES.start(form)
    )
    generator, pieces = torch.Generator().manual_seed(seed), []
    while answer.finish_reason is None:
        logits = torch.randn(1, SIZE, generator=generator) * 3
        logits[0, list(END)] += wish
        pieces += advance([answer], logits)
    return answer, join_pieces(pieces).text, answer.finish_reason


@settings(max_examples=25, deadline=None)
@given(schema=schemas, seed=st.integers(0, 2**31))
def test_what_a_random_model_says_by_a_schema_is_valid(schema: dict[str, Any], seed: int) -> None:
    answer, text, reason = said(Structure.from_schema(schema), seed=seed, wish=5)
    assert not TOKENIZER.special_ids & set(answer.tokens)
    if reason == "stop":
        jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())
    else:
        assert reason == "length" and len(answer.tokens) == 100  # a long number or string, never a fault


expressions = st.sampled_from(["[a-z]+@[a-z]+\\.(com|org)", "(ab|c)*", "\\d{4}-\\d\\d", "ね+こ?"])


@settings(max_examples=10, deadline=None)
@given(source=expressions, seed=st.integers(0, 99))
def test_what_a_random_model_says_by_an_expression_matches_it(source: str, seed: int) -> None:
    _, text, reason = said(Structure(kind="regex", source=source), seed=seed, wish=3)
    assert reason == "length" or re.fullmatch(source, text)


def test_a_grammar_of_calculations_gives_calculations() -> None:
    source = 'start: term (("+" | "*") term)*\nterm: /[1-9][0-9]?/ | "(" start ")"'
    texts = [said(Structure(kind="grammar", source=source), seed=seed, wish=4)[1:] for seed in range(20)]
    whole = [text for text, reason in texts if reason == "stop"]
    assert len(whole) > 10 and all(re.fullmatch(r"[0-9+*()]+", text) and eval(text) for text in whole)


def test_any_object_is_an_object() -> None:
    ended = [text for text, reason in (said(ANY_OBJECT, seed=s, wish=9)[1:] for s in range(4)) if reason == "stop"]
    assert ended and all(isinstance(json.loads(text), dict) for text in ended)


def test_an_answer_may_end_exactly_where_the_form_is_complete() -> None:
    progress = STRUCTURES.start(Structure(kind="regex", source="(cat )+"))
    for token in TOKENIZER.encode("cat cat "):
        allowed = progress.allowed_tokens()
        complete = bool(allowed[list(END)].any())
        assert complete == progress.is_accepting == all(allowed[list(END)])
        progress.push(token)
    assert progress.allowed_tokens()[list(END)].all()


@pytest.mark.parametrize(
    ("kind", "source"), [("regex", "(.|\n)*"), ("grammar", "start: <[*]>*"), ("grammar", "start: <[^1]>*")]
)
def test_no_special_token_and_no_spare_row_is_allowed_inside(kind: Literal["regex", "grammar"], source: str) -> None:
    allowed = set(torch.nonzero(STRUCTURES.start(Structure(kind=kind, source=source)).allowed_tokens())[:, 0].tolist())
    assert allowed - set(END) and not (allowed - set(END)) & TOKENIZER.special_ids
    assert max(allowed) < TOKENIZER.vocab_size


def test_a_grammar_that_asks_for_a_special_token_cannot_have_it() -> None:
    special = TOKENIZER.special["<|python_start|>"]
    with pytest.raises(HerdError, match="cannot be continued"):
        STRUCTURES.start(Structure(kind="grammar", source=f"start: <[{special}]>"))


@pytest.mark.parametrize(
    ("form", "named"),
    [
        ({"type": "array", "uniqueItems": True}, '"uniqueItems" is not supported'),
        ({"properties": {"a": {"not": {}}}}, '"not" is not supported'),
        ({"if": {}, "then": {}}, '"if", "then" is not supported'),
        ({"oneOf": [{"type": "string"}, {"maxLength": 3}]}, "oneOf"),
        ({"$ref": "#/nowhere"}, "#/nowhere"),
        ({"$ref": "#name"}, "#/$defs/NAME"),
        ({"$ref": "http://x/y"}, "http://x/y"),
        ({"type": "klingon"}, "klingon"),
        ({"items": 3}, "schema must be an object"),
        ({"properties": {"a": 3}}, "schema/properties/a: '3' is not a schema"),
        (False, "allows nothing"),
        ({"description": "x" * 100_000}, "100019 characters"),
        # What would break in the middle of an answer, or never end.
        ({"$ref": "#"}, "'#' contains itself without end"),
        ({"allOf": [{"$ref": "#"}]}, "'#' contains itself without end"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "'#' contains itself without end"),
        (
            {"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"$ref": "#/$defs/b"}}},
            "'#/$defs/b' contains itself",
        ),
        (
            {"properties": {"a": {"type": "integer"}}, "patternProperties": {"^a$": {"type": "string"}}},
            "the property 'a' also falls under \"patternProperties\" '^a$'",
        ),
        (
            {
                "allOf": [{"patternProperties": {"b": {"type": "null"}}}, {"properties": {"ab": {"type": "string"}}}],
                "additionalProperties": False,
            },
            "the property 'ab'",
        ),
        ({"const": 2**53 + 1}, "9007199254740993 is beyond 2^53"),
        ({"enum": ["a", {"b": [-(2**64)]}]}, "-18446744073709551616 is beyond 2^53"),
        ({"type": "integer", "minimum": 2**63}, "'minimum' of 9223372036854775808 is beyond 64 bits"),
        ({"type": "integer", "exclusiveMaximum": -(2**63)}, "'exclusiveMaximum' of -9223372036854775808"),
        (Structure(kind="regex", source="a("), "unclosed group"),
        (Structure(kind="regex", source="a(?=b)"), "look-ahead"),
        (Structure(kind="grammar", source="start: nothing"), "nothing"),
        (Structure(kind="grammar", source="start: a\na: a"), "allows nothing more"),
    ],
)
def test_a_faulty_or_unsupported_form_is_refused_with_the_word_at_fault(form: Any, named: str) -> None:
    with pytest.raises(HerdError, match=re.escape(named)) as refusal:
        STRUCTURES.start(form if isinstance(form, Structure) else Structure.from_schema(form))
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 400 and "<state>" not in str(refusal.value)


def test_a_schema_that_is_nested_without_measure_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(3000):
        schema = {"items": schema}
    with pytest.raises(HerdError, match="nested too deeply"):
        Structure.from_schema(schema)


def passes(schema: Any, text: str, *, strict: bool = False) -> bool:
    """Whether `text`, said letter by letter, has the form of the schema."""
    progress = STRUCTURES.start(Structure.from_schema(schema, strict=strict))
    for token in (token for letter in text for token in TOKENIZER.encode(letter)):
        if not progress.allowed_tokens()[token]:
            return False
        progress.push(token)
    return progress.is_accepting


BASE = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
Y = {"properties": {"y": {"type": "integer"}}, "required": ["y"]}


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        (BASE, ['{"x": 1}'], ['{"x": 1, "z": 2}', '{"x":1}', '{ "x": 1}', '{"x": 1 }']),
        ({**BASE, "additionalProperties": True}, ['{"x": 1, "z": 2}'], []),
        ({**BASE, "additionalProperties": {"type": "null"}}, ['{"x": 1, "z": null}'], ['{"x": 1, "z": 2}']),
        ({"type": "object"}, ["{}", '{"z": [1, {}]}'], ["[]", '{"z":1}']),
        ({"type": "array", "items": BASE}, ['[{"x": 1}, {"x": 2}]'], ['[{"x": 1, "z": 2}]']),
        ({"type": "object", "required": ["z"], "properties": {}}, ['{"z": 1}'], ['{"z": 1, "a": 1}', "{}"]),
        # Of several schemas over one object the whole is closed; the same definition elsewhere is closed for itself.
        (
            {"$defs": {"B": BASE}, "allOf": [{"$ref": "#/$defs/B"}, Y, {"properties": {"b": {"$ref": "#/$defs/B"}}}]},
            ['{"x": 1, "y": 2}', '{"x": 1, "y": 2, "b": {"x": 1}}'],
            ['{"x": 1}', '{"x": 1, "y": "2"}', '{"x": 1, "y": 2, "z": 3}', '{"x": 1, "y": 2, "b": {"x": 1, "y": 2}}'],
        ),
        ({"$defs": {"B": BASE}, "$ref": "#/$defs/B", **Y}, ['{"x": 1, "y": 2}'], ['{"x": 1, "y": 2, "z": 3}']),
        ({**BASE, "anyOf": [Y, {}]}, ['{"x": 1, "y": 2}', '{"x": 1}'], ['{"x": 1, "z": 2}']),
        ({"anyOf": [BASE, Y]}, ['{"x": 1}', '{"y": 1}'], ['{"x": 1, "y": 2}']),
        (
            {"properties": {"x": {}}, "patternProperties": {"^b$": {"type": "null"}}},
            ['{"x": 1, "b": null}'],
            ['{"c": null}'],
        ),
        ({"type": "object", "properties": {"next": {"$ref": "#"}}}, ['{"next": {"next": {}}}'], ['{"z": {}}']),
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, ["null"], ["1"]),
        ({"properties": {"x": {}}, "propertyNames": {"type": "string"}}, ['{"x": 1}'], []),
        (True, ["1", "{}"], []),
    ],
)
def test_an_object_has_the_properties_that_its_schema_lists_and_no_others(
    schema: Any, right: list[str], wrong: list[str]
) -> None:
    assert [text for text in right if not passes(schema, text)] == []
    assert [text for text in wrong if passes(schema, text)] == []


def test_under_strict_every_object_is_closed_and_cannot_ask_for_more() -> None:
    assert passes({"type": "object"}, "{}", strict=True) and not passes({"type": "object"}, '{"a": 1}', strict=True)
    for more in (True, {"type": "null"}):
        with pytest.raises(HerdError, match='schema/items: "additionalProperties" must be false'):
            Structure.from_schema({"items": {**BASE, "additionalProperties": more}}, strict=True)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_format_that_is_known_is_held_to(name: str) -> None:
    assert not passes({"type": "string", "format": name}, '"?"')


def test_every_format_that_pydantic_writes_is_held_to_or_an_annotation() -> None:
    kinds = [getattr(pydantic, name) for name in dir(pydantic) if name[0].isupper() and name in FORMATTED]
    kinds += [Path, bytes, datetime.datetime, datetime.date, datetime.time, datetime.timedelta, uuid.UUID, re.Pattern]
    kinds += [ipaddress.IPv4Address, ipaddress.IPv6Address, pydantic.Json[int]]
    formats = set()
    for kind in kinds:
        schema = pydantic.TypeAdapter(kind).json_schema()
        formats.add(schema.get("format", schema.get("contentMediaType")))
        STRUCTURES.start(Structure.from_schema(schema))
    assert {"path", "password", "binary", "ipvanyaddress", "uuid4", "date-time"} <= formats
    for unknown in ("klingon", "int64", "regex", 3, None):
        assert passes({"type": "string", "format": unknown}, '"?"')


FORMATTED = {
    *("AnyUrl", "HttpUrl", "FilePath", "DirectoryPath", "SecretStr", "SecretBytes", "UUID1", "UUID4", "Base64Bytes"),
    *("Base64UrlStr", "IPvAnyAddress", "IPvAnyInterface", "IPvAnyNetwork", "PastDate", "AwareDatetime", "ByteSize"),
}


@pytest.mark.parametrize(
    ("bounds", "right", "wrong"),
    [
        ({"minimum": -(2**63), "maximum": 2**63 - 1}, [0, -5, 2**63 - 1, -(2**63) + 1024], [2**63, -(2**63) - 1]),
        ({"minimum": 0, "maximum": 2**64 - 1}, [0, 2**63 - 1], [-1, 2**64]),
        ({"exclusiveMinimum": 2**53, "exclusiveMaximum": 2**53 + 4}, [2**53 + 2], [2**53, 2**53 + 1, 2**53 + 4]),
        ({"minimum": 2**53 - 1, "maximum": 2**53 + 7}, [2**53 - 1, 2**53 + 6], [2**53 - 2, 2**53 + 8]),
        ({"minimum": 2**62}, [2**62, 2**63 - 1], [2**62 - 1, 0]),
        ({"maximum": -(2**62)}, [-(2**62)], [-(2**62) + 1, 0]),
        ({"maximum": 1e30}, [5, -(10**25)], []),
    ],
)
def test_integers_of_64_bits_keep_their_bounds(bounds: dict[str, Any], right: list[int], wrong: list[int]) -> None:
    assert [number for number in right if not passes({"type": "integer", **bounds}, str(number))] == []
    assert [number for number in wrong if passes({"type": "integer", **bounds}, str(number))] == []


def test_numbers_have_bounds_beyond_64_bits() -> None:
    assert passes({"type": "number", "minimum": -1.7e308, "maximum": 1.7e308}, "-5.5")


def test_a_form_that_takes_too_long_is_refused_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def slow(form: Structure) -> str:
        release.wait(60)
        return "start: /a/"

    monkeypatch.setattr(structure, "_grammar", slow)
    begin = time.monotonic()
    with pytest.raises(HerdError, match="not compiled within"):
        STRUCTURES.start(Structure(kind="regex", source="slow"), deadline_s=0.05)
    assert time.monotonic() - begin < 30  # a busy machine is no failure
    release.set()


def test_forms_that_nobody_waits_for_any_more_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    going, release = [], threading.Event()

    def slow(form: Structure) -> str:
        going.append(form)
        release.wait(20)
        return "start: /a/"

    structures = structure.Structures(TOKENIZER, vocab_size=TOKENIZER.vocab_size, stop=(299,))
    with monkeypatch.context() as patch:
        patch.setattr(structure, "_grammar", slow)
        for number in range(structure.COMPILERS):
            with pytest.raises(HerdError, match="not compiled within"):
                structures.start(Structure(kind="regex", source=f"x{number}"), deadline_s=0.02)
        with pytest.raises(HerdError, match="other forms have been compiling"):
            structures.start(Structure(kind="regex", source="one more"), deadline_s=0.02)
        assert len(going) == structure.COMPILERS
        release.set()
    structures.start(Structure(kind="regex", source="a"))  # they have ended, and there is room again


ENDLESS_PATTERN = {
    "properties": {"a" * 60 + "!": {"type": "string"}},
    "patternProperties": {"(a+)+$": {"type": "integer"}},
}
CHAIN = {"$ref": "#/$defs/d0", "$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(1900)} | {"d1900": {}}}
PRODUCT = {
    "properties": {f"p{i}": {"type": "string"} for i in range(1500)},
    "patternProperties": {f"x{i}$": {"type": "integer"} for i in range(1500)},
}
MESH = {
    "$ref": "#/$defs/d0",
    "$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{j}"} for j in range(i + 1, 60)]} for i in range(60)},
}


@pytest.mark.parametrize(
    ("schema", "refused"), [(ENDLESS_PATTERN, False), (CHAIN, False), (PRODUCT, True), (MESH, False)]
)
def test_a_schema_made_to_take_long_is_prepared_or_refused_in_seconds(schema: Any, refused: bool) -> None:
    """Python's regular expressions take 2^60 steps for the first; each took minutes or more once."""
    begin = time.process_time()
    with pytest.raises(HerdError, match="simpler") if refused else contextlib.nullcontext():
        Structure.from_schema(schema)
    assert time.process_time() - begin < 10


def test_a_property_under_a_pattern_with_another_form_is_refused_by_name() -> None:
    pattern = {"properties": {"x-a": {"type": "string"}}, "patternProperties": {"^x-": {"type": "integer"}}}
    with pytest.raises(HerdError, match="'x-a' also falls under"):
        Structure.from_schema(pattern)
    pattern["properties"] = {"a": {"type": "string"}}
    Structure.from_schema(pattern)


def test_a_compiled_form_serves_many_answers_at_once() -> None:
    form = Structure(kind="regex", source="ab|ac")
    first, second = STRUCTURES.start(form), STRUCTURES.start(form)
    first.push(TOKENIZER.encode("a")[0])
    fresh = STRUCTURES.start(form)
    assert torch.equal(second.allowed_tokens(), fresh.allowed_tokens())
    assert not torch.equal(first.allowed_tokens(), fresh.allowed_tokens())


@settings(max_examples=25, deadline=None)
@given(schema=schemas, seed=st.integers(0, 99))
def test_json_is_written_as_python_writes_it_without_a_token_of_white_space_more(
    schema: dict[str, Any], seed: int
) -> None:
    _, text, reason = said(Structure.from_schema(schema), seed=seed, wish=5)
    if reason == "stop":
        outside = re.sub(r'"(?:[^"\\]|\\.)*"', "", text)
        assert outside == re.sub(r"(?<=[,:])\s+", " ", outside) and not re.search(r"(?<![,:])\s", outside)
