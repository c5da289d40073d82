"""Folders as others publish and save them: every form opens, with the logits that transformers has of it in fp32."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from published_configs import FORMS, PREPROCESSOR, PROCESSOR_5, small
from safetensors.torch import load_file, save_file

from herd.core.batch import Images
from herd.core.files import write_json
from herd.model.formats import huggingface

transformers = pytest.importorskip("transformers")
PATCH, COUNT = 8, 75


def understood(raw: dict[str, Any]) -> dict[str, Any]:
    """The same as transformers 5.23 can compute it: it refuses 4 for true, and chunks of no size."""
    raw = copy.deepcopy(raw)
    text = raw.get("text_config", raw)
    if "attn_temperature_tuning" in text:
        text["attn_temperature_tuning"] = bool(text["attn_temperature_tuning"])
    if text.get("attention_chunk_size") is None:
        text["attention_chunk_size"] = text["max_position_embeddings"]
    return raw


def in_transformers(raw: dict[str, Any], folder: Path) -> torch.nn.Module:
    """Random weights in transformers, saved by it to `folder`, where config.json is then `raw` itself."""
    text_alone = raw["model_type"] == "llama4_text"
    config = (transformers.Llama4TextConfig if text_alone else transformers.Llama4Config)(**understood(raw))
    kind = transformers.Llama4ForCausalLM if text_alone else transformers.Llama4ForConditionalGeneration
    theirs = kind(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in theirs.named_parameters():
        torch.nn.init.normal_(parameter, float("norm" in name and "weight" in name), 0.06, generator=generator)
    theirs.save_pretrained(folder)
    write_json(folder / "config.json", raw)
    if not text_alone:
        side = raw["vision_config"]["image_size"]
        write_json(folder / "preprocessor_config.json", PREPROCESSOR | {"size": {"height": side, "width": side}})
    return theirs


def difference(theirs: torch.nn.Module, folder: Path) -> float:
    """Greatest distance of a logit over several chunks, with two tiles where the model sees."""
    ours = huggingface.load(folder)
    ids = torch.randint(10, 300, (COUNT,), generator=torch.Generator().manual_seed(2))
    images, seen = None, {}
    if ours.config.vision is not None:
        per_tile, side = ours.config.vision.tokens_per_tile, ours.config.vision.image_size
        ids[3 : 3 + per_tile] = ids[40 : 40 + per_tile] = PATCH
        pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(3)) * 2 - 1
        images, seen = Images(tiles=pixels, rows=torch.nonzero(ids == PATCH)[:, 0]), {"pixel_values": pixels}
    with torch.no_grad():
        hidden = ours(ids, positions_N=torch.arange(COUNT), starts_S=torch.tensor([0, COUNT]), images=images)
        return float((ours.unembed(hidden) - theirs(input_ids=ids[None], **seen).logits[0]).abs().max())


@pytest.mark.parametrize("name", FORMS)
def test_every_published_form_has_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = in_transformers(small(FORMS[name]), tmp_path)
    assert difference(theirs, tmp_path) <= 1e-5


def test_what_transformers_saves_today_opens_as_it_is(tmp_path: Path) -> None:
    raw = small(FORMS["saved by 5.23"])
    in_transformers(raw, tmp_path)
    theirs = transformers.Llama4ForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    image_processor = PROCESSOR_5["image_processor"] | {"size": {"height": 56, "width": 56}, "max_patches": 4}
    write_json(tmp_path / "processor_config.json", PROCESSOR_5 | {"image_processor": image_processor})
    assert difference(theirs, tmp_path) <= 1e-5
    assert huggingface.load(tmp_path).config.vision.max_tiles == 4


@pytest.mark.parametrize("name", ["saved by 5.23", "text alone, saved by 4.51.3"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_head_that_is_in_the_file_counts_though_the_config_ties_it(name: str, kept: bool, tmp_path: Path) -> None:
    raw = small(FORMS[name])
    theirs = in_transformers(raw, tmp_path)
    raw.get("text_config", raw)["tie_word_embeddings"] = True
    write_json(tmp_path / "config.json", raw | {"tie_word_embeddings": True})
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    if not kept:
        [head] = [name for name in tensors if name.endswith("lm_head.weight")]
        del tensors[head]
        theirs.get_output_embeddings().weight.copy_(theirs.get_input_embeddings().weight)
        save_file(tensors, path, metadata={"format": "pt"})
    assert difference(theirs, tmp_path) <= 1e-5


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model."])
def test_a_prefix_of_all_names_is_removed_with_a_message(
    prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = in_transformers(small(FORMS["text alone, saved by 4.51.3"]), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path) | {"model.rotary_emb.inv_freq": torch.ones(8)}
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, path)
    capsys.readouterr()
    assert difference(theirs, tmp_path) <= 1e-5
    assert f"begin with {prefix}, which is left off" in capsys.readouterr().err
