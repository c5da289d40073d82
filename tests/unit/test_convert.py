"""`herd convert`: the direction from what is there, everything beside the weights, whole or absent."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import herd
from herd.cli import main
from herd.core.files import read_json, write_json
from herd.model.formats import huggingface
from herd.model.formats.config_json import config_from_json
from herd.model.formats.gguf import read_gguf
from herd.model.transformer import Transformer


@pytest.fixture
def source(tiny_folder: Path, tmp_path: Path) -> Path:
    """A whole folder whose head width Meta's code can have: that of the tiny shape is its own."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "hf"))
    config = replace(config_from_json(folder), head_dim=48)
    model = Transformer(config).requires_grad_(False)
    for number, parameter in enumerate(model.parameters()):
        parameter.fill_(0.01 * number)
    huggingface.save(model, folder, dtype=torch.float32)
    return folder


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    assert main(["convert", *map(str, args)]) == 1
    reported = capsys.readouterr().err.splitlines()
    assert len(reported) == 1, reported
    return reported[0]


def test_to_meta_and_back_every_file_is_the_same(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(source), str(tmp_path / "meta"), "--shards", "1"]) == 0
    assert f"wrote {tmp_path / 'meta'}" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "meta").glob("c*.pth")} == {"consolidated.00.pth"}
    ids = list(range(40))
    assert torch.equal(herd.load(tmp_path / "meta").logits(ids), herd.load(source).logits(ids))
    assert main(["convert", str(tmp_path / "meta"), str(tmp_path / "again")]) == 0
    names = {path.name for path in source.iterdir()}
    assert {path.name for path in (tmp_path / "again").iterdir()} == names
    for name in names - {"herd.json"}:
        assert (source / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    reported = read_json(tmp_path / "again" / "herd.json")
    assert reported["stage"] == "convert" and reported["config"]["direction"] == "meta to huggingface"
    assert reported["parents"]["model"]["hash"] == read_json(tmp_path / "meta" / "herd.json")["hash"]
    assert herd.load(tmp_path / "again").tokenizer.encode("the cat") == herd.load(source).tokenizer.encode("the cat")
    assert not list(tmp_path.glob("*.partial"))


def test_sampling_and_image_settings_come_back_from_meta_whichever_files_hold_them(
    source: Path, tmp_path: Path
) -> None:
    settings = read_json(source / "preprocessor_config.json") | {"max_patches": 3}
    (source / "preprocessor_config.json").unlink()
    write_json(source / "processor_config.json", {"image_processor": settings, "patch_size": 16})
    write_json(source / "generation_config.json", {"do_sample": True, "temperature": 0.6})
    assert main(["convert", str(source), str(tmp_path / "meta"), "--shards", "1"]) == 0
    assert main(["convert", str(tmp_path / "meta"), str(tmp_path / "again")]) == 0
    assert read_json(tmp_path / "again" / "generation_config.json") == {"do_sample": True, "temperature": 0.6}
    assert config_from_json(tmp_path / "again") == config_from_json(source)
    assert config_from_json(source).vision.max_tiles == 3


def test_a_folder_of_meta_without_our_files_gets_a_processor(source: Path, tmp_path: Path) -> None:
    assert main(["convert", str(source), str(tmp_path / "meta"), "--shards", "1"]) == 0
    for name in ("herd.json", "preprocessor_config.json", "processor_config.json", "generation_config.json"):
        (tmp_path / "meta" / name).unlink()
    assert main(["convert", str(tmp_path / "meta"), str(tmp_path / "again"), "--dtype", "bfloat16"]) == 0
    assert herd.load(tmp_path / "again").transformer.embedding.weight.dtype == torch.bfloat16
    assert len(read_json(tmp_path / "again" / "herd.json")["parents"]["model"]["hash"]) == 64


def test_to_gguf_and_back(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gguf")
    out = tmp_path / "model.gguf"
    assert "give --text-only" in refused(capsys, source, out)
    assert main(["convert", str(source), str(out), "--text-only", "--dtype", "bfloat16"]) == 0
    reported = capsys.readouterr().out
    # Chunks of 256 would go on as one of 8192 there, and the temperature begins with the position 255.
    assert "model.gguf is limited to 255 tokens: beyond that llama.cpp computes otherwise" in reported
    metadata, tensors = read_gguf(out)
    assert metadata["general.file_type"] == 32 and "token_embd.weight" in dict(tensors)
    assert metadata["llama4.context_length"] == 255
    assert '"stage": "convert"' in metadata["herd.lineage"]
    assert "is GGUF already" in refused(capsys, out, tmp_path / "again.gguf")
    assert [path.name for path in tmp_path.glob("*.partial")] == []
    assert main(["convert", str(out), str(tmp_path / "back")]) == 0
    lineage = read_json(tmp_path / "back" / "herd.json")
    assert lineage["config"]["direction"] == "gguf to huggingface" and len(lineage["parents"]["model"]["hash"]) == 64
    folder, back = herd.load(source, dtype=torch.bfloat16), herd.load(tmp_path / "back")
    ids = list(range(200))
    assert torch.equal(folder.logits(ids), back.logits(ids)) and back.config.max_positions == 255


def test_a_low_bit_folder_becomes_one_of_floats(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed, floats = tmp_path / "int8", tmp_path / "floats"
    assert main(["convert", str(tiny_folder), str(packed), "--quantize", "int8"]) == 0
    assert main(["convert", str(packed), str(floats), "--dtype", "float32"]) == 0
    assert "quantization_config" not in read_json(floats / "config.json")
    name = "layers.1.ffn.gate_up_EDF"
    before, after = (dict(huggingface.load(folder).named_parameters())[name] for folder in (tiny_folder, floats))
    step = before.abs().amax(1, keepdim=True) / 127
    assert (before - after).abs().max() > 0 and ((before - after).abs() <= 0.51 * step + 1e-6).all()


def test_mistakes_are_reported_in_one_line(
    source: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert "is not a folder" in refused(capsys, tmp_path / "nowhere", out)
    assert "is not a folder" in refused(capsys, tmp_path / "nowhere.gguf", out)
    (tmp_path / "empty").mkdir()
    assert "neither config.json nor params.json" in refused(capsys, tmp_path / "empty", out)
    assert "num_kv_heads=2 cannot be cut for 8 shards: take --shards 1" in refused(capsys, source, out)
    assert "head_dim=64 has no place in params.json" in refused(capsys, tiny_folder, out, "--shards", 1)
    assert "dtype='int4' is none of" in refused(capsys, source, out, "--dtype", "int4")
    assert "is there already" in refused(capsys, source, tmp_path / "empty")
    write_json(source / "params.json", {})
    assert "both config.json and params.json" in refused(capsys, source, out)
    assert not out.exists() and not list(tmp_path.glob("*.partial"))
