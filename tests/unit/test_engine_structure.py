"""Structured answers: what a random model says within a form has that form."""

import json
import re
import time
from typing import Any, Literal

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_folder import random_tokenizer

from herd.core.errors import HerdError
from herd.engine import structure
from herd.engine.answer import Answer, joined, take
from herd.engine.sampler import SamplingParams
from herd.engine.structure import ANY_OBJECT, Progress, Structure, Structures

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
            st.just(True),
            st.sets(st.sampled_from(["a", "b b", "ä"])),
        ),
    ),
    max_leaves=5,
)


def said(form: Structure, *, seed: int, max_tokens: int = 100, wish: float = 0.0) -> tuple[Answer, str, str | None]:
    """What a model without any sense says in `form`; `wish` is how much it would like to end."""
    params = SamplingParams(temperature=1.0, seed=seed, max_tokens=max_tokens, structure=form)
    answer = Answer(
        params, prompt=[], tokenizer=TOKENIZER, end_tokens=END, room=10_000, seed=0, progress=STRUCTURES.start(form)
    )
    generator, pieces = torch.Generator().manual_seed(seed), []
    while answer.finish_reason is None:
        logits = torch.randn(1, SIZE, generator=generator) * 3
        logits[0, list(END)] += wish
        pieces += take([answer], logits)
    return answer, joined(pieces).text, answer.finish_reason


@settings(max_examples=25, deadline=None)
@given(schema=schemas, seed=st.integers(0, 2**31))
def test_what_a_random_model_says_by_a_schema_is_valid(schema: dict[str, Any], seed: int) -> None:
    answer, text, reason = said(Structure.schema(schema), seed=seed, wish=5)
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
        allowed = progress.allowed()
        complete = bool(allowed[list(END)].any())
        assert complete == progress.accepting == all(allowed[list(END)])
        progress.push(token)
    assert progress.allowed()[list(END)].all()


@pytest.mark.parametrize(
    ("kind", "source"), [("regex", "(.|\n)*"), ("grammar", "start: <[*]>*"), ("grammar", "start: <[^1]>*")]
)
def test_no_special_token_and_no_spare_row_is_allowed_inside(kind: Literal["regex", "grammar"], source: str) -> None:
    allowed = set(torch.nonzero(STRUCTURES.start(Structure(kind=kind, source=source)).allowed())[:, 0].tolist())
    assert allowed - set(END) and not (allowed - set(END)) & TOKENIZER.special_ids
    assert max(allowed) < TOKENIZER.vocab_size


def test_a_grammar_that_asks_for_a_special_token_cannot_have_it() -> None:
    special = TOKENIZER.special["<|python_start|>"]
    with pytest.raises(HerdError, match="cannot be continued"):
        STRUCTURES.start(Structure(kind="grammar", source=f"start: <[{special}]>")).allowed()


@pytest.mark.parametrize(
    ("form", "named"),
    [
        (Structure.schema({"type": "array", "uniqueItems": True}), '"uniqueItems" is not supported'),
        (Structure.schema({"properties": {"a": {"not": {}}}}), '"not" is not supported'),
        (Structure.schema({"if": {}, "then": {}}), '"if", "then" is not supported'),
        (Structure.schema({"type": "string", "format": "klingon"}), "klingon"),
        (Structure.schema({"oneOf": [{"type": "string"}, {"maxLength": 3}]}), "oneOf"),
        (Structure.schema({"$ref": "#/nowhere"}), "nowhere"),
        (Structure.schema({"type": "klingon"}), "klingon"),
        (Structure(kind="regex", source="a("), "unclosed group"),
        (Structure(kind="regex", source="a(?=b)"), "look-ahead"),
        (Structure(kind="grammar", source="start: nothing"), "nothing"),
    ],
)
def test_a_faulty_or_unsupported_form_is_refused_with_the_word_at_fault(form: Structure, named: str) -> None:
    with pytest.raises(HerdError, match=re.escape(named)) as refusal:
        STRUCTURES.start(form)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 400


def test_a_form_that_takes_too_long_is_refused_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(form: Structure) -> str:
        time.sleep(1)
        return "start: /a/"

    monkeypatch.setattr(structure, "_grammar", slow)
    begin = time.monotonic()
    with pytest.raises(HerdError, match="not compiled within 0"):
        STRUCTURES.start(Structure(kind="regex", source="slow"), deadline_s=0.05)
    assert time.monotonic() - begin < 0.8


def test_a_compiled_form_serves_many_answers_at_once() -> None:
    form = Structure(kind="regex", source="ab|ac")
    first, second = STRUCTURES.start(form), STRUCTURES.start(form)
    first.push(TOKENIZER.encode("a")[0])
    fresh = STRUCTURES.start(form)
    assert torch.equal(second.allowed(), fresh.allowed())
    assert not torch.equal(first.allowed(), fresh.allowed())


def test_white_space_cannot_go_on_for_ever() -> None:
    progress: Progress = STRUCTURES.start(ANY_OBJECT)
    progress.push(TOKENIZER.encode("{")[0])
    [space] = TOKENIZER.encode("\n")
    count = 0
    while progress.allowed()[space]:
        progress.push(space)
        count += 1
    assert count == 64
