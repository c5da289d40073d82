"""A whole life on made-up packages: every folder is whole, opens here and in transformers, and names its parents."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import herd
from herd.config import NewModelConfig, PretrainConfig, SftConfig, VisionStageConfig
from herd.core.files import work_folder
from herd.core.lineage import read_lineage
from herd.core.tracker import read_metrics
from herd.stages.new_model import new_model
from herd.stages.pretrain import pretrain
from herd.stages.sft import sft
from herd.stages.vision import vision

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def life(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("life")
    new_model(NewModelConfig(), tiny_data, run / "model")
    vision(replace(VisionStageConfig(), num_views=128, batch_pictures=32), run / "model", tiny_data, run / "vision")
    small = {"num_tokens": 6000, "batch_tokens": 1000, "context": 128}
    pretrain(replace(PretrainConfig(), **small), run / "vision", tiny_data, run / "pretrain")
    sft(replace(SftConfig(), **small), run / "pretrain", tiny_data, run / "sft")
    return run


@pytest.mark.parametrize("stage", ["model", "vision", "pretrain", "sft"])
def test_every_folder_is_whole_and_opens_in_transformers(life: Path, stage: str) -> None:
    folder = life / stage
    assert not work_folder(folder).exists() and not (folder / "state").exists()
    model = herd.load(folder, dtype=torch.float32)
    theirs, info = transformers.Llama4ForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    ids = model.render([{"role": "user", "content": "What is the capital of France?"}]).token_ids
    assert transformers.AutoTokenizer.from_pretrained(folder).encode("cat") == [ids[0], *model.tokenizer.encode("cat")]
    with torch.no_grad():
        assert (model.logits(ids) - theirs(torch.tensor([ids])).logits[0]).abs().max() < 1e-4


def test_lineage_names_the_parents_by_the_hash_that_they_have(life: Path, tiny_data: Path) -> None:
    reported = read_lineage(life / "sft")["parents"]
    assert reported["model"]["hash"] == read_lineage(life / "pretrain")["hash"]
    assert reported["data"]["hash"] == read_lineage(tiny_data)["hash"]
    assert (
        read_lineage(life / "pretrain")["parameters"]["active"] < read_lineage(life / "pretrain")["parameters"]["total"]
    )


def test_metrics_have_a_line_for_every_step_and_the_load_of_every_expert(life: Path) -> None:
    lines = read_metrics(life / "pretrain" / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(len(lines)))
    for line in lines:  # every layer routes each token once
        (tokens,) = {sum(layer) for layer in line["expert_load"]}
        assert tokens > 0 and {len(layer) for layer in line["expert_load"]} == {8}
    reported = set().union(*lines)
    assert {"text_loss", "picture_loss", "lr_factor", "grad_norm", "tokens_per_s", "seconds"} <= reported
