"""Forms and text over the released vocabulary: 202,048 tokens, 2,048 of them special."""

import json
from typing import Any

import jsonschema
import torch

from herd.data.tokens.text_stream import TextStream
from herd.data.tokens.tokenizer import Tokenizer
from herd.engine.answer import Answer, advance, join_pieces
from herd.engine.sampler import SamplingParams
from herd.engine.structure import Structure, Structures


def test_the_bytes_of_a_token_are_those_of_tiktoken(released: Tokenizer, reference: Any) -> None:
    ids = [*range(0, released.vocab_size, 13), *sorted(released.special.values())[:40]]
    assert all(released.token_bytes(i) == reference.model.decode_single_token_bytes(i) for i in ids)
    stream, some = TextStream(released), [i for i in ids[::7] if i not in released.special_ids]
    assert "".join(map(stream.push, some)) + stream.finish() == released.decode(some) == reference.decode(some)


def test_a_form_holds_over_the_released_vocabulary(released: Tokenizer) -> None:
    ids, size = released.ids, released.vocab_size
    structures = Structures(released, vocab_size=size, stop=ids.stop)
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "maximum": 99}},
        "required": ["city", "days"],
        "additionalProperties": False,
    }
    form = Structure.from_schema(schema)
    for seed in range(3):
        answer = Answer(
            SamplingParams(temperature=1.0, seed=seed, max_tokens=200, structure=form),
            prompt=[],
            tokenizer=released,
            end_tokens=ids.stop,
            room=1000,
            seed=0,
            grammar=structures.start(form),
        )
        generator, pieces = torch.Generator().manual_seed(seed), []
        while answer.finish_reason is None:
            pieces += advance([answer], torch.randn(1, size, generator=generator) * 3)
        assert not released.special_ids & set(answer.tokens)
        assert (
            answer.finish_reason == "length"
            or jsonschema.validate(json.loads(join_pieces(pieces).text), schema) is None
        )
