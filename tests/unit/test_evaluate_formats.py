"""`herd evaluate` takes whatever `herd.load` opens: a Hugging Face folder, Meta's, a GGUF file."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from herd.cli import main
from herd.config import EvaluateConfig, MoEConfig, VisionConfig, preset
from herd.core.files import read_json, write_json
from herd.core.lineage import hash_of
from herd.data.tokens.tokenizer import Tokenizer
from herd.evaluate.harness import evaluate
from herd.evaluate.report import report
from herd.model.formats import huggingface
from herd.model.init import initialise
from herd.model.transformer import Transformer

pytestmark = pytest.mark.usefixtures("one_thread")

FEW = EvaluateConfig(
    heldout_bytes=200, pictures=2, closed_pictures=1, candidates=2, languages=("en",), kinds=("capital", "flag"),
    chats=2, answer_tokens=2, sample_tokens=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of four narrow layers that reads pictures."""
    out = tmp_path_factory.mktemp("models") / "minute"
    out.mkdir()
    tokenizer = Tokenizer.load(tiny_data / "tokenizer")
    config = replace(
        preset("tiny", vocab_size=tokenizer.vocab_size, special=tokenizer.ids), dim=32, num_heads=2, num_kv_heads=1,
        head_dim=16, dense_ffn_dim=32, moe=MoEConfig(num_experts=2, ffn_dim=32),
        vision=VisionConfig(image_size=32, patch_size=8, dim=32, num_layers=1, num_heads=2, adapter_dim=32),
    )  # fmt: skip
    model = Transformer(config)
    initialise(model, torch.Generator().manual_seed(0))
    huggingface.save(model, out, dtype=torch.float32)
    huggingface.save_processor(config, out)
    tokenizer.save(out)
    write_json(out / "herd.json", {"stage": "random", "hash": "0"})
    return out


@pytest.fixture(scope="module")
def results_of(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], dict[str, Any]]:
    """Evaluate a model, report on it, and give results.json."""

    def work(model: Path) -> dict[str, Any]:
        out = evaluate(FEW, model, tiny_data, tmp_path_factory.mktemp("out") / "evaluate")
        assert read_json(out / "herd.json")["parents"]["model"]["hash"] == hash_of(model)
        assert "Held-out text" in (report(out) / "report.html").read_text()
        results: dict[str, Any] = read_json(out / "results.json")
        return results

    return work


@pytest.fixture(scope="module")
def ours(folder: Path, results_of: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    return results_of(folder)


def test_a_folder_in_metas_format_has_the_same_figures(
    folder: Path, tmp_path: Path, ours: dict[str, Any], results_of: Callable[[Path], dict[str, Any]]
) -> None:
    assert main(["convert", str(folder), str(tmp_path / "meta"), "--shards", "1"]) == 0
    metas = results_of(tmp_path / "meta")
    assert ours["left_out"] == {} and ours["naming"]["splits"].keys() == {"styles", "subjects"}
    assert {**ours, "seconds": None} == {**metas, "seconds": None}


def test_a_gguf_file_is_evaluated_as_the_model_of_text_alone_that_it_holds(
    folder: Path, tmp_path: Path, ours: dict[str, Any], results_of: Callable[[Path], dict[str, Any]]
) -> None:
    pytest.importorskip("gguf")
    path = tmp_path / "minute.gguf"
    assert main(["convert", str(folder), str(path), "--text-only"]) == 0
    ggufs = results_of(path)
    assert ggufs["bits_per_byte"] == ours["bits_per_byte"]
    assert ggufs["left_out"]["naming"] == "the model reads text alone"
    assert "naming" not in ggufs and ggufs["samples"]["continuations"] == ours["samples"]["continuations"]
    assert [row["kind"] for row in ggufs["tasks"]["rows"]] == ["capital"]
