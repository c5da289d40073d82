"""First weights: a global layer's queries can begin near its keys."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from herd.config import SpecialIds, preset
from herd.model.init import correlate_queries_with_keys, initialise
from herd.model.transformer import Transformer

IDS = SpecialIds(bos=0, end_of_text=1, eom=2, eot=3, pad=4)


def heads_of(model: Transformer, layer: int) -> Tensor:
    config = model.config
    return model.get_parameter(f"layers.{layer}.attention.qkv.weight").detach().view(-1, config.head_dim * config.dim)


def test_queries_of_global_layers_are_as_like_their_keys_as_was_asked_and_nothing_else_changes() -> None:
    config = replace(preset("tiny-long", vocab_size=32, special=IDS), num_layers=4)  # two local layers, two global ones
    model, other = Transformer(config), Transformer(config)
    for one in (model, other):
        initialise(one, torch.Generator().manual_seed(0))
    correlate_queries_with_keys(model, 0.7)
    heads, kv_heads = config.num_heads, config.num_kv_heads
    for layer in range(4):
        rows, before = heads_of(model, layer), heads_of(other, layer)
        assert torch.equal(rows[heads:], before[heads:])
        if not config.is_global(layer):
            assert torch.equal(rows, before)
            continue
        alike = torch.corrcoef(rows[: heads + kv_heads])
        for head in range(heads):
            own = heads + head // (heads // kv_heads)
            for key in range(heads, heads + kv_heads):
                assert float(alike[head, key]) == pytest.approx(0.7 if key == own else 0.0, abs=0.06)
        assert float(alike[0, 1]) == pytest.approx(0.49, abs=0.06)  # heads of one group go their own ways
        assert float(rows[:heads].std() / before[:heads].std()) == pytest.approx(1, abs=0.05)
    names = [name for name, _ in model.named_parameters() if "qkv" not in name]
    assert all(torch.equal(model.get_parameter(name), other.get_parameter(name)) for name in names)
