"""LoRA in the stages: folders of adapters that were trained on a frozen base, and who opens them."""

import io
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from parallel_world import SHAPE, adapted
from safetensors.torch import load_file, save_file
from torch import Tensor

import herd
from herd.cli import main
from herd.config import (
    CheckpointConfig,
    LoraConfig,
    MidtrainConfig,
    OptimizerConfig,
    PretrainConfig,
    SftConfig,
)
from herd.core.files import read_json, write_json
from herd.core.lineage import hash_of, read_lineage
from herd.core.tracker import Tracker
from herd.errors import HerdError, Stopped
from herd.model.formats import huggingface, peft
from herd.model.formats.config_json import config_from_json
from herd.model.formats.source import find_source
from herd.model.lora import adapters, add_adapters, is_adapter
from herd.model.transformer import Transformer
from herd.stages.convert import ConvertConfig, convert
from herd.stages.merge import MergeConfig, merge
from herd.stages.midtrain import midtrain
from herd.stages.pretrain import pretrain
from herd.stages.sft import sft
from herd.train.checkpoint import _SafeReader, newest

CONFIG = SftConfig(
    num_tokens=3000,
    batch_tokens=1000,
    context=128,
    dtype="float32",
    lora=LoraConfig(rank=4),
    optimizer=OptimizerConfig(adamw_lr=0.01),
)


@pytest.fixture(scope="module")
def adapter(tiny_folder: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter folder of a short fine-tuning."""
    return sft(CONFIG, tiny_folder, tiny_data, tmp_path_factory.mktemp("run") / "lora")


def logits(model: Transformer) -> Tensor:
    ids = torch.arange(10, 60)
    with torch.no_grad():
        return model.unembed(model(ids, positions_N=torch.arange(50), starts_S=torch.tensor([0, 50])))


def test_a_stage_writes_an_adapter_that_opens_merged(adapter: Path, tiny_folder: Path, tmp_path: Path) -> None:
    assert not (adapter / "config.json").exists() and not list(adapter.glob("model*"))
    lineage = read_lineage(adapter)
    assert lineage["adapter"]["base"]["hash"] == hash_of(tiny_folder)
    tensors = load_file(adapter / peft.FILE)
    assert lineage["adapter"]["parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert all(tensor.any() for tensor in tensors.values()), "all were trained"
    opened = herd.load(adapter).transformer
    assert (logits(opened) - logits(herd.load(tiny_folder).transformer)).abs().max() > 1e-3
    out = merge(MergeConfig(), adapter, tmp_path / "merged")
    assert torch.equal(logits(herd.load(out).transformer), logits(opened))
    assert {path.name for path in out.iterdir()} >= {path.name for path in tiny_folder.iterdir()}
    assert read_lineage(out)["parents"]["base"]["hash"] == hash_of(tiny_folder)
    # Unmerged, as it was trained:
    model = huggingface.load(tiny_folder)
    add_adapters(model, CONFIG.lora)
    wanted = {name: tuple(parameter.shape) for name, parameter in adapters(model)}
    values = peft.to_parameters(model.config, peft.read_pairs(adapter, model.config), wanted, CONFIG.lora.scale)
    assert values is not None
    model.load_state_dict(values, strict=False)
    assert (logits(model) - logits(opened)).abs().max() <= 1e-5
    with pytest.raises(HerdError, match="is a model, no adapter"):
        merge(MergeConfig(), out, tmp_path / "again")
    with pytest.raises(HerdError, match=r"is an adapter: herd merge .* --out"):
        convert(ConvertConfig(), adapter, tmp_path / "converted")


def test_a_chat_with_an_adapter(adapter: Path) -> None:
    model = herd.load(adapter)
    try:
        assert model.chat([{"role": "user", "content": "hello"}], herd.SamplingParams(max_tokens=3)).finish_reason
    finally:
        model.pipeline.engine.close()


def test_the_checkpoint_holds_adapters_alone_and_resuming_is_exact(
    adapter: Path, tiny_folder: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, out = Tracker.log, tmp_path / "out"

    def stop_after_the_first(tracker: Tracker, step: int, **metrics: object) -> None:
        log(tracker, step, **metrics)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Tracker, "log", stop_after_the_first)
    with pytest.raises(Stopped):
        sft(replace(CONFIG, checkpoint=CheckpointConfig(every_s=0.0)), tiny_folder, tiny_data, out)
    saved = newest(tmp_path / "out.partial" / "state")
    assert saved is not None
    held = [name for name in _SafeReader(saved).read_metadata().state_dict_metadata if name.startswith("optimizer.w")]
    assert held and all(is_adapter(name) for name in held)
    monkeypatch.setattr(Tracker, "log", log)
    resumed = sft(CONFIG, tiny_folder, tiny_data, out)
    one, other = (load_file(folder / peft.FILE) for folder in (adapter, resumed))
    assert one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.slow
def test_an_adapter_is_trained_on_and_merged_where_no_adapters_are_asked_for(
    adapter: Path, tiny_data: Path, tmp_path: Path
) -> None:
    still = replace(CONFIG, num_tokens=1000, bias_update_rate=0.0, optimizer=OptimizerConfig(lr_scale=0.0))
    again = sft(still, adapter, tiny_data, tmp_path / "again")
    one, other = (load_file(folder / peft.FILE) for folder in (adapter, again))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert read_lineage(again)["adapter"]["base"] == read_lineage(adapter)["adapter"]["base"]
    with pytest.raises(HerdError, match="adapters of another rank or on other matrices than rank=2"):
        sft(replace(still, lora=LoraConfig(rank=2)), adapter, tiny_data, tmp_path / "other")
    whole = sft(replace(still, lora=LoraConfig()), adapter, tiny_data, tmp_path / "whole")
    wanted = huggingface.load(whole, dtype=torch.bfloat16)
    found = find_source(adapter).transformer(dtype=torch.bfloat16)
    assert all(torch.equal(p, q) for p, q in zip(found.parameters(), wanted.parameters(), strict=True))


def test_the_base_is_found_beside_the_adapter_or_where_it_is_given_and_refused_if_it_changed(
    adapter: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(adapter, tmp_path / "moved" / "lora")
    config = read_json(moved / peft.CONFIG)
    write_json(moved / peft.CONFIG, {**config, "base_model_name_or_path": f"/gone/{tiny_folder.name}"})
    with pytest.raises(HerdError, match=r"/gone/random, which is not here: name its folder, with --base"):
        herd.load(moved)
    assert find_source(moved, base=tiny_folder).base is not None
    beside = shutil.copytree(tiny_folder, tmp_path / "moved" / tiny_folder.name)
    assert find_source(moved).base.path == beside  # type: ignore[union-attr]
    (beside / "config.json").write_text((beside / "config.json").read_text() + " ")
    with pytest.raises(HerdError, match=r"was trained on .* with the hash .* it has changed since"):
        find_source(moved)
    with pytest.raises(HerdError, match="is no adapter"):
        find_source(tiny_folder, base=beside)


def test_an_adapter_without_a_lineage_takes_the_tokenizer_and_settings_of_its_base(
    adapter: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    from herd.serve.generation_config import default_params

    bare = tmp_path / "bare"
    bare.mkdir()
    for name in (peft.CONFIG, peft.FILE):
        shutil.copy(adapter / name, bare)
    assert torch.equal(logits(herd.load(bare).transformer), logits(herd.load(adapter).transformer))
    assert default_params(bare) == default_params(tiny_folder)


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        ({"use_dora": True}, r"use_dora=true \(DoRA\) is not read"),
        ({"bias": "all"}, r'bias="all" \(biases\) is not read'),
        ({"modules_to_save": ["lm_head"]}, r'modules_to_save=\["lm_head"\] \(modules saved whole\) is not read'),
        ({"init_lora_weights": "pissa"}, "'pissa', which changes the base"),
        ({"peft_type": "IA3"}, "an adapter of the kind 'IA3', only LoRA is read"),
        ({"some_variant": {"x": 1}}, "some_variant=.* is not read"),
        ({"r": 0}, "r=0 must be a number above 0"),
        ({"r": 8}, r"does not fit \(\d+, \d+\) and the rank in adapter_config.json"),
        ({"alpha_pattern": {"(": 1}}, r"alpha_pattern=.* must be patterns with numbers above 0"),
        ({"rank_pattern": [4]}, r"rank_pattern=\[4\] must be patterns with numbers above 0"),
    ],
)
def test_what_herd_does_not_do_is_refused_by_name(
    change: dict[str, Any], reported: str, adapter: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(adapter, tmp_path / "lora")
    write_json(folder / peft.CONFIG, {**read_json(folder / peft.CONFIG), **change})
    with pytest.raises(HerdError, match=reported):
        herd.load(folder)


def rename(tensors: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {name.replace(old, new): tensor for name, tensor in tensors.items()}


FIRST = "base_model.model.language_model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (lambda t: rename(t, "q_proj", "wq_proj"), "wq_proj.lora_A.weight has no place in the base"),
        (lambda t: {n: x for n, x in t.items() if n != f"{FIRST}.lora_B.weight"}, "q_proj.weight has lora_A only"),
        (lambda t: {**t, f"{FIRST}.lora_A.weight": torch.ones(4, 5)}, r"\(4, 5\) and .* it is of another base"),
        (lambda t: {**t, f"{FIRST}.lora_magnitude_vector": torch.ones(4)}, "lora_magnitude_vector has no place"),
        (lambda t: {n: x for n, x in t.items() if n == "none"}, "holds no adapters"),
        (lambda t: {**t, f"{FIRST}.lora_B.weight": t[f"{FIRST}.lora_B.weight"] * torch.inf}, "not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], reported: str, adapter: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(adapter, tmp_path / "lora")
    save_file(change(load_file(folder / peft.FILE)), folder / peft.FILE)
    with pytest.raises(HerdError, match=reported):
        herd.load(folder)


def test_files_that_are_missing_or_cut_are_named(adapter: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(adapter, tmp_path / "lora")
    data = (folder / peft.FILE).read_bytes()
    (folder / peft.FILE).write_bytes(data[:-100])
    with pytest.raises(HerdError, match=r"adapter_model.safetensors is damaged"):
        herd.load(folder)
    (folder / peft.FILE).unlink()
    with pytest.raises(HerdError, match=r"adapter_model.safetensors is missing: copy the folder again"):
        herd.load(folder)
    (folder / "adapter_model.bin").touch()
    with pytest.raises(HerdError, match=r"its weights are a pickle"):
        herd.load(folder)
    (folder / peft.CONFIG).write_text("{")
    with pytest.raises(HerdError, match=r"adapter_config.json is not valid JSON"):
        herd.load(folder)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    lora = LoraConfig(rank=3, alpha=5.0, rslora=True)
    values = {name: parameter.detach() for name, parameter in adapters(adapted(lora))}
    pairs = peft.from_parameters(SHAPE, values, lora.scale)
    peft.write(tmp_path, pairs, lora, base=tmp_path, vision=True)
    found = peft.read_pairs(tmp_path, SHAPE)
    assert found.keys() == pairs.keys()
    for name, pair in found.items():
        assert pair.scale == pairs[name].scale
        assert torch.equal(pair.left, pairs[name].left) and torch.equal(pair.right, pairs[name].right)


@pytest.mark.parametrize(("version", "turned"), [(None, False), ("0.18.1", False), ("0.19.0", True), ("0.21.2", True)])
def test_square_stacks_are_read_by_the_version_that_wrote_them(version: str | None, turned: bool) -> None:
    config = {"r": 2, "lora_alpha": 2, "peft_version": version}
    left, right = torch.randn(3, 4, 2), torch.randn(3, 2, 4)  # of experts' matrices [3, 4, 4]
    A, B = (right, left) if turned else (left.mT, right.mT)
    flat = A.flatten(0, 1), B.permute(1, 2, 0).flatten(1)
    pair = peft.orient(config, "layers.0.feed_forward.experts.down_proj", (3, 4, 4), *flat)
    assert pair is not None and torch.equal(pair.left, left) and torch.equal(pair.right, right)


def test_experts_of_an_older_peft_are_read_too(adapter: Path, tiny_folder: Path, tmp_path: Path) -> None:
    folder, config = shutil.copytree(adapter, tmp_path / "lora"), config_from_json(tiny_folder)
    tensors, experts = load_file(folder / peft.FILE), config.moe.num_experts
    for name in [name for name in tensors if ".experts." in name and "lora_A" in name]:
        a, b = tensors[name], tensors[other := name.replace("lora_A", "lora_B")]
        a = a.reshape(experts, -1, a.shape[1])
        b = b.reshape(b.shape[0], -1, experts).permute(2, 0, 1)
        tensors[name] = b.mT.flatten(0, 1).contiguous()  # [E * K, in]
        tensors[other] = a.mT.permute(1, 2, 0).flatten(1).contiguous()  # [out, K * E]
    save_file(tensors, folder / peft.FILE)
    found, wanted = (peft.read_pairs(place, config) for place in (folder, adapter))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(pair.left, wanted[name].left) for name, pair in found.items())
    assert all(torch.equal(pair.right, wanted[name].right) for name, pair in found.items())


@pytest.mark.slow
def test_pretraining_and_midtraining_write_adapters_and_gguf_has_them_merged(
    tiny_folder: Path, tiny_data: Path, tmp_path: Path
) -> None:
    small = {"batch_tokens": 1000, "context": 128, "lora": CONFIG.lora, "optimizer": CONFIG.optimizer}
    first = pretrain(PretrainConfig(num_tokens=2000, **small), tiny_folder, tiny_data, tmp_path / "one")
    second = midtrain(MidtrainConfig(num_tokens=4000, lengths=(256,), **small), first, tiny_data, tmp_path / "two")
    assert read_lineage(second)["adapter"]["base"]["hash"] == hash_of(tiny_folder)
    assert read_lineage(second)["short_text"]["after"] > 0
    one, other = (herd.load(folder) for folder in (first, second))
    assert not torch.equal(logits(one.transformer), logits(other.transformer))
    assert main(["convert", str(second), str(tmp_path / "two.gguf"), "--text-only"]) == 0
    from_file = herd.load(tmp_path / "two.gguf").transformer
    assert (logits(from_file) - logits(other.transformer)).abs().max() <= 1e-5


def test_the_commands_of_an_adapter(
    adapter: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", str(adapter), "--out", str(tmp_path / "merged"), "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {tmp_path / 'merged'}"
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    assert main(["merge", str(adapter), "--out", str(tmp_path / "merged")]) == 1
    assert "is there already" in capsys.readouterr().err
    assert main(["merge", str(adapter), "--out", str(tmp_path / "x"), "--dtype", "bfloat"]) == 1
    assert "did you mean 'bfloat16'" in capsys.readouterr().err
    assert main(["merge", str(adapter), "--out", str(tmp_path / "x"), "--base", str(tmp_path / "none")]) == 1
    assert "which is not here" in capsys.readouterr().err
    assert main(["convert", str(adapter), str(tmp_path / "x"), "--quantize", "int8"]) == 1
    assert "is an adapter: herd merge" in capsys.readouterr().err


def test_chat_generate_serve_and_evaluate_open_an_adapter_on_a_base_that_is_named(
    adapter: Path,
    tiny_folder: Path,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from herd.serve import server as api

    moved = shutil.copytree(adapter, tmp_path / "moved")
    write_json(moved / peft.CONFIG, {**read_json(moved / peft.CONFIG), "base_model_name_or_path": "/gone/away"})
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"text": "the cat sat"}\n')

    class NoServer:
        def __init__(self, app: Any, engine: Any, **_: Any) -> None:
            engine.close()

        def run(self, sockets: Any) -> None: ...

    monkeypatch.setattr(api, "Server", NoServer)
    sizes = {
        "heldout-bytes": 60,
        "pictures": 1,
        "closed-pictures": 1,
        "chats": 1,
        "answer-tokens": 2,
        "sample-tokens": 2,
    }
    few = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    few += ["--languages", "en", "--kinds", "flag", "--data", str(tiny_data)]

    def answers(*args: str) -> list[str]:
        """Standard output of chat, the answers that generate wrote, and the bits per byte of evaluate."""
        monkeypatch.setattr("sys.stdin", io.StringIO("the cat\n"))
        assert main(["chat", *args, "--max-tokens", "5"]) == 0
        assert main(["serve", *args, "--port", "0"]) == 0
        out = tmp_path / args[0].replace("/", "-")
        assert main(["generate", args[0], str(prompts), *args[1:], "--out", f"{out}.jsonl", "--max-tokens", "5"]) == 0
        assert main(["evaluate", *args, *few, "--out", str(out)]) == 0
        printed = capsys.readouterr().out.replace(f"{out}", "OUT").splitlines()
        bits = read_json(out / "results.json")["bits_per_byte"]["all"]["model"]
        return [printed[0], json.loads(Path(f"{out}.jsonl").read_text())["text"], bits]

    assert answers(str(moved), "--base", str(tiny_folder)) == answers(str(adapter))
    lineage = read_lineage(tmp_path / str(moved).replace("/", "-"))
    assert lineage["parents"]["base"]["hash"] == hash_of(tiny_folder)
    for command in (["chat"], ["serve"], ["evaluate", *few, "--out", str(tmp_path / "none")]):
        assert main([command[0], str(moved), *command[1:]]) == 1
        assert "which is not here: name its folder, with --base" in capsys.readouterr().err
