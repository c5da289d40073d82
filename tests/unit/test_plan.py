"""Counts of `herd plan` against models on the meta device, ours and transformers', and against a real cache."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.cli import main
from herd.commands.stages import STAGES
from herd.config import LORA_TARGETS, PRESETS, LoraConfig, ModelConfig, MoEConfig, VisionConfig, preset, tiny_ids
from herd.data.tokens.tokenizer import train_tokenizer
from herd.errors import HerdError
from herd.model.cache import Slots
from herd.model.formats.config_json import config_to_json
from herd.model.formats.weights import skeleton
from herd.model.lora import add_adapters
from herd.model.quantize import Scheme, quantize_model
from herd.model.transformer import Transformer
from herd.plan.counts import (
    PRECISIONS,
    Precision,
    cache_bytes,
    count,
    count_adapters,
    longest_context,
    plan,
    weight_bytes,
)
from herd.stages.recipe import load_recipe


def on_meta(config: ModelConfig) -> Transformer:
    with torch.device("meta"):
        return Transformer(config)


def size(module: torch.nn.Module | None) -> int:
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_counts_as_the_model_on_the_meta_device(name: str) -> None:
    config = preset(name)
    model, counts = on_meta(config), count(config)
    assert (counts.total, counts.vision) == (size(model), size(model.vision))
    unvisited = sum(
        layer.ffn.gate_up_EDF[config.moe.top_k :].numel() + layer.ffn.down_EFD[config.moe.top_k :].numel()
        for index, layer in enumerate(model.layers)
        if config.is_moe(index)
    )
    assert counts.active == size(model) - size(model.vision) - unvisited


@settings(max_examples=20, deadline=None)
@given(
    every=st.integers(1, 3), top_k=st.integers(1, 4), num_layers=st.integers(1, 6), kv=st.sampled_from([1, 2, 4]),
    grid=st.integers(1, 3), vision_layers=st.integers(1, 3)
)  # fmt: skip
def test_any_shape_counts_as_on_the_meta_device(
    every: int, top_k: int, num_layers: int, kv: int, grid: int, vision_layers: int
) -> None:
    config = replace(
        preset("tiny", vocab_size=300),
        num_layers=num_layers,
        num_kv_heads=kv,
        moe=MoEConfig(num_experts=4, ffn_dim=48, top_k=top_k, every=every),
        vision=VisionConfig(
            image_size=8 * grid, patch_size=4, dim=32, num_layers=vision_layers, num_heads=2, adapter_dim=24
        ),
    )
    assert count(config).total == size(on_meta(config))


@pytest.mark.parametrize(
    ("name", "total", "active"), [("scout", 108.64, 17.17), ("maverick", 401.58, 17.18), ("behemoth", 1968.14, 287.98)]
)
def test_the_published_counts_to_the_digit(name: str, total: float, active: float) -> None:
    counts = count(preset(name))
    assert (round(counts.total / 1e9, 2), round(counts.active / 1e9, 2)) == (total, active)
    if name != "behemoth":
        assert round(counts.vision / 1e9, 3) == 0.872


def test_the_plan_of_tiny_is_that_of_the_model_which_the_tiny_recipe_makes() -> None:
    tokenizer = train_tokenizer(["a few words"], 300)
    assert tiny_ids(tokenizer.vocab_size) == tokenizer.ids
    recipe = load_recipe("tiny", STAGES)
    assert recipe["model"].config.shape(preset("tiny")) == preset("tiny")
    assert preset("tiny").vocab_size == recipe["data"].config.vocab_size
    assert round(count(preset("tiny")).total / 1e6, 2) == 12.85  # the parameters in runs/tiny/sft/herd.json


@pytest.mark.parametrize("name", ["scout", "maverick"])
def test_transformers_builds_the_same_number_from_our_config(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    raw = config_to_json(preset(name), torch.bfloat16)
    with torch.device("meta"):
        theirs = transformers.Llama4ForConditionalGeneration(transformers.Llama4Config(**raw))
    assert size(theirs) == count(preset(name)).total


@pytest.mark.parametrize("context", [1, 255, 256, 257, 4096])
def test_the_cache_has_the_bytes_that_were_planned(context: int) -> None:
    config = preset("tiny", vocab_size=300)
    cache = Slots(config, num_slots=1, capacity=context, dtype=torch.bfloat16, device=torch.device("cpu"))
    assert cache.cache.num_bytes == cache_bytes(config, context)


def test_scout_at_ten_million_tokens_keeps_480_gib_in_twelve_layers_and_a_chunk_in_the_others() -> None:
    scout = preset("scout")
    assert cache_bytes(scout, 10_485_760) == 12 * 4096 * 10_485_760 + 36 * 4096 * 8192 == 480 * 2**30 + 1_207_959_552


def test_scout_in_int4_fits_in_80_gb_and_no_wider_precision_does() -> None:
    rooms = plan(preset("scout"))["context_on_one_card"]
    assert isinstance(rooms, dict)
    assert [precision for precision in PRECISIONS if rooms[precision]] == ["int4"]
    assert 131_072 < rooms["int4"] < 10_485_760
    assert plan(preset("maverick"))["context_on_one_card"] == dict.fromkeys(PRECISIONS)


def test_the_longest_context_is_the_last_that_fits() -> None:
    scout = preset("scout")
    budget = 15_000_000_000
    longest = longest_context(scout, budget)
    assert cache_bytes(scout, longest) <= budget < cache_bytes(scout, longest + 1)
    assert longest_context(scout, 0) == 0
    assert longest_context(scout, 10**15) == scout.max_positions


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8", "int4"])
def test_the_bytes_are_those_of_a_model_in_that_precision(precision: Precision) -> None:
    config = replace(
        preset("tiny-maverick", vocab_size=300), num_layers=6, moe=MoEConfig(num_experts=3, ffn_dim=128, every=2)
    )
    model = Transformer(config).to(torch.bfloat16)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    if precision != "bf16":
        quantize_model(model, Scheme(name=precision), config)
    tensors = [*model.parameters(), *model.buffers()]
    assert sum(tensor.nbytes for tensor in tensors) == weight_bytes(config, precision)


def test_a_width_that_int4_cannot_group_is_reported() -> None:
    config = preset("tiny", vocab_size=300)
    figures = plan(config)["bytes"]
    assert isinstance(figures, dict) and figures["int4"] is None
    with pytest.raises(HerdError, match="192 inputs are not a multiple of 128"):
        plan(config, quantize="int4")
    with pytest.raises(HerdError, match="--context 5000 is not between 1 and the model's 4096"):
        plan(config, context=5000)


@pytest.mark.parametrize("name", ["scout", "maverick", "tiny", "tiny-maverick"])
@pytest.mark.parametrize("targets", [LORA_TARGETS, ("experts", "attention"), ("dense", "shared")])
def test_adapters_count_as_on_the_meta_device(name: str, targets: Any) -> None:
    lora = LoraConfig(rank=16, targets=targets)
    model = skeleton(preset(name))
    add_adapters(model, lora)
    assert count_adapters(model.config, lora) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_command_counts_adapters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "scout", "--lora", "16"]) == 0
    assert "LoRA of rank 16: " in capsys.readouterr().out
    assert main(["plan", "scout", "--lora", "16", "--json"]) == 0
    reported = json.loads(capsys.readouterr().out)
    assert reported["lora"]["training_bytes"] == 2 * reported["total_parameters"] + 14 * reported["lora"]["parameters"]
    assert main(["plan", "tiny", "--lora", "500"]) == 1
    assert "--lora 500 is larger than a side of a matrix" in capsys.readouterr().err


def test_the_command_plans_presets_and_folders(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "scout", "--json", "--context", "131072", "--quantize", "int4"]) == 0
    reported = json.loads(capsys.readouterr().out)
    assert reported["total_parameters"] == 108_641_793_536
    assert reported["serving_bytes"] == reported["bytes"]["int4"] + reported["cache_bytes"]
    assert main(["plan", str(tiny_folder)]) == 0
    assert "parameters" in capsys.readouterr().out
    assert main(["plan", "scuot"]) == 1
    assert "unknown preset 'scuot', did you mean 'scout'?" in capsys.readouterr().err
