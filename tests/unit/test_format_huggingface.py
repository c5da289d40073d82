"""Folders that are not whole are refused by name."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from published_configs import WITHOUT_MIXTURES
from safetensors.torch import load_file, save_file

import herd
from herd.engine.model import Prompt
from herd.engine.sampler import SamplingParams
from herd.errors import HerdError
from herd.model.formats import huggingface
from herd.model.transformer import Transformer


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def shard(folder: Path) -> Path:
    [path] = folder.glob("*.safetensors")
    return path


def test_a_folder_keeps_every_bit(tiny_folder: Path, tmp_path: Path) -> None:
    model = huggingface.load(tiny_folder)
    huggingface.save(model, tmp_path, dtype=torch.float32)
    huggingface.save_processor(model.config, tmp_path)
    again = huggingface.load(tmp_path)
    assert again.config == model.config
    for (name, one), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize(
    ("name", "reported"),
    [
        ("config.json", "has neither config.json nor params.json"),
        ("tokenizer.json", "tokenizer.json is missing"),
        ("preprocessor_config.json", "preprocessor_config.json is missing"),
        ("model.safetensors.index.json", "model.safetensors.index.json is missing"),
    ],
)
def test_a_missing_file_is_named(copy: Path, name: str, reported: str) -> None:
    (copy / name).unlink()
    with pytest.raises(HerdError, match=reported):
        herd.load(copy)


def test_a_missing_or_torn_shard_is_named(copy: Path) -> None:
    path = shard(copy)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(HerdError, match=f"{path.name} is damaged"):
        herd.load(copy)
    path.unlink()
    with pytest.raises(HerdError, match=f"{path.name} is missing"):
        herd.load(copy)


def test_missing_extra_and_misshapen_tensors_are_named(copy: Path) -> None:
    path, index = shard(copy), copy / "model.safetensors.index.json"
    tensors, content = load_file(path), json.loads(index.read_text())
    norm, router = "language_model.model.norm.weight", "language_model.model.layers.1.feed_forward.router.weight"
    save_file({**tensors, norm: torch.zeros(3), router: tensors[router].short()}, path)
    with pytest.raises(HerdError, match=r"router\.weight is stored as int16.*norm\.weight has shape \(3,\)"):
        herd.load(copy)
    content["weight_map"]["surplus"] = content["weight_map"].pop(norm)
    index.write_text(json.dumps(content))
    with pytest.raises(HerdError, match=r"surplus is missing, though it is in the index; .*norm\.weight is not in"):
        herd.load(copy)
    tensors["surplus"] = tensors.pop(norm)
    save_file(tensors, path)
    with pytest.raises(HerdError, match=r"norm\.weight is missing; surplus is not a tensor of this model"):
        herd.load(copy)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "../elsewhere.safetensors")}))
    with pytest.raises(HerdError, match="does not name the file of each tensor"):
        herd.load(copy)


def test_names_that_begin_otherwise_are_shown_beside_those_that_are_missing(copy: Path) -> None:
    path = shard(copy)
    (copy / "model.safetensors.index.json").unlink()
    renamed = {
        name.replace("language_model.model.", "model.language_model."): tensor
        for name, tensor in load_file(path).items()
    }
    path.unlink()
    save_file(renamed, copy / "model.safetensors")
    reported = r"model\.language_model\.(\S+) seems to be language_model\.model\.\1: rename the tensors, with load_file"
    with pytest.raises(HerdError, match=reported):
        herd.load(copy)


def test_an_index_without_metadata_is_enough(copy: Path) -> None:
    path = copy / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": json.loads(path.read_text())["weight_map"]}))
    assert herd.load(copy).config.num_layers == 4


def test_one_file_without_an_index_is_opened(copy: Path, tiny_folder: Path) -> None:
    shard(copy).rename(copy / "model.safetensors")
    (copy / "model.safetensors.index.json").unlink()
    whole = dict(huggingface.load(tiny_folder).named_parameters())
    assert all(torch.equal(whole[name], x) for name, x in huggingface.load(copy).named_parameters())


def test_a_model_without_mixtures_or_chunks_answers(copy: Path) -> None:
    """The layout of Llama Guard 4."""
    config = huggingface.load(copy).config
    torch.manual_seed(0)
    dense = Transformer(replace(config, moe=replace(config.moe, every=5)))
    for name, parameter in dense.named_parameters():
        torch.nn.init.normal_(parameter, float(name.endswith("norm.weight")), 0.05)
    huggingface.save(dense, copy, dtype=torch.float32)
    raw = json.loads((copy / "config.json").read_text())
    raw["text_config"] |= {**WITHOUT_MIXTURES, "attention_chunk_size": None}
    (copy / "config.json").write_text(json.dumps(raw))
    model = herd.load(copy)
    assert model.config.chunk_size == model.config.max_positions == 4096
    ids = model.tokenizer.encode("the cat sat " * 100)
    assert len(ids) > config.chunk_size
    engine = model.engine()
    [reported] = engine.generate_batch([Prompt(token_ids=ids)], SamplingParams(max_tokens=4))
    engine.close()
    for _ in range(4):
        ids.append(int(model.logits(ids)[-1].argmax()))
    assert reported == model.tokenizer.decode(ids[-4:])


def test_what_cannot_be_honoured_is_refused(copy: Path) -> None:
    path = copy / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(HerdError, match="model_type='llama'"):
        herd.load(copy)
    config["text_config"]["attention_bias"] = True
    path.write_text(json.dumps(config))
    with pytest.raises(HerdError, match="attention_bias=True is not supported"):
        herd.load(copy)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HerdError, match="is not a folder"):
        herd.load(tmp_path / "nowhere")
