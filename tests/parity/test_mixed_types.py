"""A folder whose tensors are of several types: all are cast to one, as transformers does, and nothing else changes."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_folder import random_tokenizer
from safetensors.torch import load_file, save_file

import herd
from herd.config import MoEConfig, preset
from herd.errors import HerdError
from herd.model.formats import huggingface
from herd.model.transformer import Transformer

transformers = pytest.importorskip("transformers")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KINDS = (
    *("embed_tokens", "lm_head", "model.norm", "input_layernorm", "post_attention_layernorm"),
    *("q_proj", "k_proj", "v_proj", "o_proj", "router", "experts.gate_up_proj", "experts.down_proj"),
    *("shared_expert.gate_proj", "shared_expert.up_proj", "shared_expert.down_proj", "vision_model", "multi_modal"),
)
IDS = list(range(5, 60))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with pictures whose values every type can hold, in fp32."""
    from dataclasses import replace

    out = tmp_path_factory.mktemp("mixed") / "model"
    out.mkdir()
    tokenizer = random_tokenizer()
    shape = preset("tiny", vocab_size=tokenizer.vocab_size, special=tokenizer.ids)
    assert shape.vision is not None
    shape = replace(
        shape,
        dim=64, num_heads=4, num_kv_heads=2, head_dim=16, num_layers=4, dense_ffn_dim=64,
        moe=MoEConfig(num_experts=4, ffn_dim=64), vision=replace(shape.vision, num_layers=1),
    )  # fmt: skip
    torch.manual_seed(0)
    model = Transformer(shape)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if name.endswith("norm.weight") else 0.0, 0.1)
        parameter.data = (parameter.data * 64).round() / 64
    huggingface.save(model, out, dtype=torch.float32)
    huggingface.save_processor(model.config, out)
    tokenizer.save(out)
    return out


def written(folder: Path, out: Path, kinds: dict[str, str], config: str | None) -> Path:
    """A copy of `folder` whose tensors are of the type that `kinds` names by a part of their name, else of `config`."""
    out.mkdir(exist_ok=True)
    for path in folder.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model-00001-of-00001.safetensors")
    for name, tensor in tensors.items():
        kind = next((kind for part, kind in kinds.items() if part in name), config)
        tensors[name] = tensor.to(DTYPES[kind or "bfloat16"])
    save_file(tensors, out / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    raw = json.loads((out / "config.json").read_text())
    for part in (raw, raw["text_config"]):
        part.pop("dtype")
        if config is not None:
            part["dtype"] = config
    (out / "config.json").write_text(json.dumps(raw))
    return out


@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data(), config=st.sampled_from(list(DTYPES)))
def test_any_mix_is_cast_to_the_type_that_config_json_names(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, config: str
) -> None:
    kinds = data.draw(st.dictionaries(st.sampled_from(KINDS), st.sampled_from(list(DTYPES)), min_size=1, max_size=4))
    mixed = written(folder, tmp_path_factory.mktemp("a"), kinds, config)
    plain = written(folder, tmp_path_factory.mktemp("b"), {}, config)
    ours, same = herd.load(mixed).transformer.state_dict(), herd.load(plain).transformer.state_dict()
    for name, tensor in ours.items():
        assert tensor.dtype == DTYPES[config] and torch.equal(tensor, same[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_one_tensor_of_another_type_changes_no_logit_here_and_in_transformers(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    mixed = written(folder, tmp_path / "mixed", {kind: "bfloat16"}, "float32")
    theirs = transformers.Llama4ForConditionalGeneration.from_pretrained(mixed)
    assert theirs.dtype == torch.float32
    with torch.no_grad():
        wanted = theirs(torch.tensor([IDS])).logits[0]
    assert (herd.load(mixed).logits(IDS) - wanted).abs().max() <= 2e-4


def test_without_a_type_in_config_json_the_embedding_s_is_used(folder: Path, tmp_path: Path) -> None:
    mixed = written(folder, tmp_path / "mixed", {"norm": "float32", "router": "float16"}, None)
    assert {tensor.dtype for tensor in herd.load(mixed).transformer.parameters()} == {torch.bfloat16}


def test_a_value_that_the_type_cannot_hold_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    mixed = written(folder, tmp_path / "mixed", {"router": "float32"}, "float16")
    path = mixed / "model-00001-of-00001.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "router" in name)
    tensors[name][0, 0] = 1e6
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(HerdError, match=r"router\.weight holds values beyond 65504, which float16 cannot hold"):
        herd.load(mixed)
