"""config.json: the released files are read as published, and what cannot be honoured is refused by name."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from published_configs import FORMS, GENERATION, LAYER_TYPES, PREPROCESSOR, PROCESSOR_5, SCOUT_SCALING, small

from herd.cli import main
from herd.config import RELEASED_IDS, ModelConfig, RopeScaling, preset
from herd.core.files import write_json
from herd.errors import HerdError
from herd.model.formats.config_json import config_from_json
from herd.model.formats.meta_params import config_from_params, params_of

TEXT_ALONE = FORMS["text alone, saved by 4.51.3"]
LLAMA_3 = SCOUT_SCALING | {"rope_theta": 500000.0}


def read(folder: Path, raw: dict[str, Any], **beside: dict[str, Any]) -> ModelConfig:
    write_json(folder / "config.json", raw)
    for name, content in beside.items():
        write_json(folder / f"{name}.json", content)
    return config_from_json(folder)


def test_the_released_files_are_the_presets_of_their_names(tmp_path: Path) -> None:
    assert read(tmp_path, FORMS["scout-instruct"], generation_config=GENERATION) == preset("scout")
    assert read(tmp_path, FORMS["maverick"]) == preset("maverick")


@pytest.mark.parametrize("form", ["scout-instruct", "saved by 4.57", "saved by 5.23"])
def test_what_later_versions_save_of_it_is_the_same_model(form: str, tmp_path: Path) -> None:
    assert read(tmp_path, FORMS[form]) == preset("scout")


def test_a_base_model_that_names_one_end_stops_at_the_ends_of_chats_too(tmp_path: Path) -> None:
    config = read(tmp_path, FORMS["scout, saved by 4.51"])
    scaling = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192)
    assert config == replace(preset("scout"), max_positions=262_144, rope_scaling=scaling)
    assert config.special == RELEASED_IDS


def test_absent_fields_are_what_transformers_fills_in(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    filled = transformers.Llama4TextConfig().to_dict()
    assert {"hidden_size", "no_rope_layers", "rope_parameters", "layer_types"} <= filled.keys()
    (tmp_path / "filled").mkdir()
    config = read(tmp_path, {"model_type": "llama4_text"})
    assert config == read(tmp_path / "filled", filled)
    assert config.max_positions == 131_072 and config.rope_theta == 500_000.0


def test_ids_are_those_that_generation_config_ends_at(tmp_path: Path) -> None:
    raw = small(TEXT_ALONE) | {"eos_token_id": 2, "pad_token_id": [7]}
    special = read(tmp_path, raw).special
    assert (special.bos, special.stop, special.pad) == (1, (2,), 7)
    assert read(tmp_path, raw, generation_config={"eos_token_id": [2, 9]}).special.stop == (2, 9)
    with pytest.raises(HerdError, match="must name one to three tokens"):
        read(tmp_path, raw, generation_config={"eos_token_id": [2, 3, 4, 5]})
    with pytest.raises(HerdError, match="300 is no id of a token: the vocabulary has 300"):
        read(tmp_path, raw, generation_config={"eos_token_id": 300})


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": SCOUT_SCALING, "rope_parameters": LLAMA_3},
        {"rope_scaling": {**SCOUT_SCALING, "type": "llama3"}, "rope_parameters": None},
        {"rope_scaling": None, "rope_parameters": LLAMA_3 | {"partial_rotary_factor": 1.0}},
    ],
)
def test_a_rotation_that_is_given_twice_alike_counts(change: dict[str, Any], tmp_path: Path) -> None:
    assert read(tmp_path, TEXT_ALONE | change).rope_scaling == preset("scout").rope_scaling


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        ({"rope_parameters": LLAMA_3 | {"factor": 8.0}}, "rope_parameters and rope_scaling differ"),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_parameters and rope_scaling differ"),
        ({"rope_parameters": LLAMA_3 | {"rope_theta": 1e4}}, "rope_parameters and rope_theta differ"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "RoPE scaling of type 'linear'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "RoPE scaling of type 'dynamic'"),
        ({"rope_scaling": SCOUT_SCALING | {"type": "yarn"}}, "RoPE scaling of type 'llama3' and 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling lacks low_freq_factor"),
        ({"rope_scaling": {"full_attention": LLAMA_3}}, "one rotation for all layers is"),
        ({"rope_scaling": LLAMA_3 | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5 is not supported"),
        ({"rope_theta": "10000"}, "rope_theta='10000' is not a number"),
    ],
)
def test_rotations_that_differ_or_are_not_known_are_refused(
    change: dict[str, Any], reported: str, tmp_path: Path
) -> None:
    with pytest.raises(HerdError, match=reported):
        read(tmp_path, TEXT_ALONE | change)


def test_lists_of_layers_count_before_intervals_and_may_be_longer_than_the_model(tmp_path: Path) -> None:
    raw = TEXT_ALONE | {"num_hidden_layers": 6, "no_rope_layer_interval": 3, "interleave_moe_layer_step": 1}
    config = read(tmp_path, raw | LAYER_TYPES | {"moe_layers": [1, 3, 5]})
    assert [config.is_global(layer) for layer in range(6)] == [False, False, False, True, False, False]
    assert [config.is_moe(layer) for layer in range(6)] == [False, True] * 3


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        ({"no_rope_layers": [1, 0, 1, 1] * 12}, "no_rope_layers=.* is not supported"),
        ({"no_rope_layers": [1, 1, 1, 0]}, "no_rope_layers=.* is not supported"),
        ({"moe_layers": [0, 1]}, "moe_layers=.* is not supported"),
        ({"layer_types": ["chunked_attention"] * 48}, "layer_types=.* is not supported"),
        ({"layer_types": ["sliding_attention", *LAYER_TYPES["layer_types"][1:]]}, "layer_types=.* is not supported"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"hidden_size": "5120"}, "hidden_size='5120' is not a positive whole number"),
        ({"num_attention_heads": 0}, "num_attention_heads=0 is not a positive whole number"),
        ({"use_qk_norm": "yes"}, "use_qk_norm='yes' is not true or false"),
    ],
)
def test_layouts_that_the_model_has_not_are_refused(change: dict[str, Any], reported: str, tmp_path: Path) -> None:
    with pytest.raises(HerdError, match=reported):
        read(tmp_path, TEXT_ALONE | change)


@pytest.mark.parametrize("change", [{"vision_output_dim": 7680}, {"hidden_act": "quick_gelu"}, {"num_channels": 1}])
def test_encoders_that_the_model_has_not_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    raw = FORMS["scout-instruct"]
    with pytest.raises(HerdError, match=rf"vision_config\.{next(iter(change))}=.* is not supported"):
        read(tmp_path, raw | {"vision_config": raw["vision_config"] | change})


def test_image_settings_are_in_either_file(tmp_path: Path) -> None:
    raw = FORMS["scout-instruct"]
    five = PROCESSOR_5 | {"image_processor": PROCESSOR_5["image_processor"] | {"max_patches": 4}}
    vision = read(tmp_path, raw, processor_config=five).vision
    assert vision is not None and vision.max_tiles == 4
    for name, other in (("processor_config", {"patch_size": 14}), ("preprocessor_config", PREPROCESSOR)):
        write_json(tmp_path / f"{name}.json", other)
    vision = config_from_json(tmp_path).vision
    assert vision is not None and vision.max_tiles == 16


@pytest.mark.parametrize(
    "change",
    [
        {"resize_to_max_canvas": True},
        {"image_mean": [0.48, 0.46, 0.41]},
        {"rescale_factor": 1.0},
        {"resample": 3},
        {"size": {"height": 448, "width": 448}},
    ],
)
def test_pictures_that_would_be_cut_otherwise_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(HerdError, match=rf"preprocessor_config\.json: {next(iter(change))}=.* is not supported"):
        read(tmp_path, FORMS["scout-instruct"], preprocessor_config=PREPROCESSOR | change)


@pytest.mark.parametrize(
    ("form", "billions"), [("scout-instruct", 108.64), ("maverick", 401.58), ("llama-guard-4", 12.0)]
)
def test_a_config_alone_is_planned(
    form: str, billions: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "released.json"
    write_json(path, FORMS[form])
    write_json(tmp_path / "config.json", FORMS[form])
    reported = []
    for source in (path, tmp_path):
        assert main(["plan", str(source), "--json"]) == 0
        reported.append(json.loads(capsys.readouterr().out) | {"model": ""})
    assert reported[0] == reported[1]
    assert reported[0]["total_parameters"] / 1e9 == pytest.approx(billions, abs=0.01)


def test_chunks_of_no_size_are_the_whole_context(tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    raw = json.loads((folder / "config.json").read_text())
    raw["text_config"]["attention_chunk_size"] = None
    config = read(folder, raw)
    assert config.chunk_size == config.max_positions == 4096
    assert config == replace(config_from_json(tiny_folder), chunk_size=4096)
    params = params_of(preset("scout")) | {"attention_chunk_size": None}
    assert config_from_params(params, Path("params.json")).chunk_size == preset("scout").max_positions


def test_where_only_a_folder_will_do_another_format_is_named_with_the_way_to_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "meta").mkdir()
    write_json(tmp_path / "meta" / "params.json", {})
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for name, kind in (("model.gguf", "a GGUF file"), ("meta", "in Meta's layout")):
        path = tmp_path / name
        for words in (["plan", str(path)], ["sft", str(path), "--data", str(tmp_path), "--out", str(tmp_path / "out")]):
            assert main(words) == 1
            reported = capsys.readouterr().err
            assert (
                f"{path} is {kind}" in reported
                and f"herd convert {path} FOLDER" in reported
                and reported.count("\n") == 1
            )
