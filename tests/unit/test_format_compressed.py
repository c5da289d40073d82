"""Quantised folders: what is written is what multiplies; they run, are refused by name, and stay small in memory."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import herd
from herd import native
from herd.core.files import read_json, write_json
from herd.engine.model import Prompt
from herd.engine.sampler import SamplingParams
from herd.errors import HerdError
from herd.evaluate.quantized import measure, quantize_folder
from herd.model.formats import compressed, huggingface
from herd.model.formats.config_json import config_from_json
from herd.model.precision import LowBit
from herd.model.quantize import Packed, Scheme, dequantize, quantize_model, round_activations
from herd.model.transformer import Transformer

SCHEMES = {
    "int8": Scheme(name="int8"),
    "int4": Scheme(name="int4", group=64),
    "int4 of 32, searched": Scheme(name="int4", group=32, fit="search"),
    "int4 without head": Scheme(name="int4", group=32, keep_head=True),
    "fp8": Scheme(name="fp8"),
    "fp8 everywhere": Scheme(name="fp8", everywhere=True),
}
TEXT = "the cat sat on the mat, der Hund und die Katze, ねこ. " * 60


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "held.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=SCHEMES)
def made(request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("quantised") / "model"
    return quantize_folder(tiny_folder, target, SCHEMES[request.param], max_bytes=2000)


@pytest.fixture(scope="module")
def int4(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize_folder(tiny_folder, tmp_path_factory.mktemp("int4") / "model", SCHEMES["int4"], max_bytes=2000)


def scheme_of(folder: Path) -> Scheme:
    reported = read_json(folder / "herd.json")["config"]
    reported.pop("max_bytes")
    return Scheme(**reported)


def test_a_folder_opens_bit_for_bit_as_the_model_quantised_in_memory(made: Path, tiny_folder: Path) -> None:
    scheme, ours = scheme_of(made), herd.load(made).transformer
    wanted = huggingface.load(tiny_folder)
    quantize_model(wanted, scheme, wanted.config)
    pairs = list(zip(ours.state_dict().items(), wanted.state_dict().items(), strict=True))
    assert any(isinstance(part, Packed) for part in ours.modules())
    for (name, one), (other_name, other) in pairs:
        assert name == other_name
        assert torch.equal(one.view(torch.uint8), other.to(one.dtype).view(torch.uint8)), name


class Compared(LowBit):
    """A packed matrix that is compared with explicit fp32 products of dequantised weights at every call."""

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.packed, self.scheme, self.calls = packed, packed.scheme, 0
        self.matrices = dequantize(packed.weight, packed.scale, packed.scheme)

    def forward(self, x: Tensor, ends_E: Tensor | None = None) -> Tensor:
        self.calls += 1
        rounded = round_activations(x, self.scheme)
        if ends_E is None:
            exact = rounded @ self.matrices.T
        else:
            counts = torch.diff(ends_E, prepend=torch.zeros(1, dtype=ends_E.dtype)).tolist()
            exact = torch.cat(
                [part @ matrix.T for part, matrix in zip(rounded.split(counts), self.matrices, strict=True)]
            )
        ours = self.packed(x, ends_E)
        assert float((ours - exact).norm()) <= 1e-5 * float(exact.norm())
        return ours


def test_every_product_of_a_forward_equals_that_of_dequantised_weights(made: Path) -> None:
    ids = [9, 50, 60, 70, 80] * 12
    model = herd.load(made, dtype=torch.float32)
    names = [name for name, part in model.transformer.named_modules() if isinstance(part, Packed)]
    for name in names:
        model.transformer.set_submodule(name, Compared(model.transformer.get_submodule(name)))
    ours = model.logits(ids)
    assert all(model.transformer.get_submodule(name).calls == 1 for name in names)
    # The same weights under activations that are not rounded: what that rounding costs in all, from layer to layer.
    plain = Transformer(model.config)
    state = dict(model.transformer.named_parameters())
    for name in names:
        matrices = model.transformer.get_submodule(name).matrices
        state |= {name: matrices.mT} if matrices.ndim == 3 else {f"{name}.weight": matrices}
    plain.load_state_dict(state)
    exact = replace(model, transformer=plain.eval()).logits(ids)
    assert float((ours - exact).norm() / exact.norm()) < 0.2


def test_the_engine_answers(made: Path) -> None:
    model = herd.load(made)
    engine = model.engine(max_num_seqs=2, max_model_len=200)
    prompts = [Prompt(token_ids=[9, 50, 60]), Prompt(token_ids=[9, *range(40, 140)])]
    answers = engine.generate_batch(prompts, SamplingParams(max_tokens=8))
    assert answers == engine.generate_batch(prompts, SamplingParams(max_tokens=8))
    engine.close()


def test_the_folder_says_what_it_is(made: Path, tiny_folder: Path) -> None:
    reported, scheme = read_json(made / "config.json")["quantization_config"], scheme_of(made)
    weights = reported["config_groups"]["group_0"]["weights"]
    assert (reported["quant_method"], weights["num_bits"], weights.get("group_size")) == (
        "compressed-tensors",
        scheme.bits,
        scheme.group,
    )
    assert "vision_model.patch_embedding.linear" in reported["ignore"]
    assert ("language_model.lm_head" in reported["ignore"]) == (
        scheme.keep_head or (scheme.name == "fp8" and not scheme.everywhere)
    )
    stored = read_json(made / "model.safetensors.index.json")["weight_map"]
    assert not any(name.removesuffix(".weight") in reported["ignore"] and f"{name}_scale" in stored for name in stored)
    assert (made / "tokenizer.json").read_bytes() == (tiny_folder / "tokenizer.json").read_bytes()
    assert "Nothing was measured" in (made / "README.md").read_text()
    assert not made.with_name("model.partial").exists()


def test_what_is_lost_is_measured_and_unseen_experts_are_named(tiny_folder: Path, tmp_path: Path, text: Path) -> None:
    source = Path(shutil.copytree(tiny_folder, tmp_path / "source"))
    [shard] = source.glob("*.safetensors")
    tensors = load_file(shard)
    # Expert 5 of layer 2 is never chosen: all its inputs' logits lie below another's.
    router = tensors["language_model.model.layers.2.feed_forward.router.weight"]
    router[5] = 0
    router[4], router[3] = 100 * router[4], -100 * router[4]
    save_file(tensors, shard)
    made = quantize_folder(source, tmp_path / "out", SCHEMES["int8"], text=text, max_bytes=2000)
    found = read_json(made / "herd.json")["measured"]
    assert "layer 2, expert 5" in found["unseen_experts"]
    assert "layer 2, expert 5" in (made / "README.md").read_text()
    assert all(
        sum(counts) == found["tokens"] + math.ceil(found["tokens"] / 512)
        for counts in found["tokens_of_experts"].values()
    )
    assert 0 < found["kl_nats"] < 0.01
    assert 0 < found["mean_logit_error"] < found["max_logit_error"]
    assert found["top1_agreement"] > 0.9
    assert found["bits_per_byte"] == pytest.approx(found["bits_per_byte_reference"], rel=0.01)
    more = found["bits_per_byte_more"]
    assert more["mean"] == pytest.approx(found["bits_per_byte"] - found["bits_per_byte_reference"], abs=1e-9)
    assert more["interval"] is None  # of one document


def test_the_loss_beside_the_reference_has_an_interval_over_documents(int4: Path, tiny_folder: Path) -> None:
    reference, quantized = herd.load(tiny_folder, dtype=torch.bfloat16), herd.load(int4)
    texts = ["the cat sat on the mat", "der Hund " * 30, "an owl"]
    low, high = measure(reference, quantized, texts)["bits_per_byte_more"]["interval"]
    assert low < high
    same = measure(reference, reference, texts)["bits_per_byte_more"]
    assert same == {"mean": 0.0, "interval": (0.0, 0.0)}


def test_a_quantised_folder_is_not_quantised_again_nor_trained(int4: Path, tmp_path: Path) -> None:
    with pytest.raises(HerdError, match="is quantised already"):
        quantize_folder(int4, tmp_path / "again", SCHEMES["int8"], max_bytes=1)
    assert not (tmp_path / "again").exists()
    with pytest.raises(HerdError, match="but not trained"):
        huggingface.load(int4)


def test_an_existing_target_is_left_alone(int4: Path, tiny_folder: Path) -> None:
    with pytest.raises(HerdError, match="is there already"):
        quantize_folder(tiny_folder, int4, SCHEMES["int8"], max_bytes=1)


def test_missing_extra_and_damaged_parts_are_named(int4: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(int4, tmp_path / "model"))
    index = read_json(copy / "model.safetensors.index.json")
    gone = "language_model.model.layers.1.feed_forward.experts.3.up_proj.weight_scale"
    file = index["weight_map"].pop(gone)
    index["weight_map"]["stray.weight"] = file
    write_json(copy / "model.safetensors.index.json", index)
    with pytest.raises(HerdError, match=r"stray\.weight is missing, .*up_proj\.weight_scale is not in the index"):
        herd.load(copy)
    shutil.copyfile(int4 / "model.safetensors.index.json", copy / "model.safetensors.index.json")
    whole = (copy / file).read_bytes()
    (copy / file).write_bytes(whole[:-100])
    with pytest.raises(HerdError, match=f"{file} is damaged"):
        herd.load(copy)


@pytest.mark.parametrize("change", [{"format": "nvfp4-pack-quantized"}, {"quant_method": "gptq"}])
def test_other_quantisations_are_refused(int4: Path, tmp_path: Path, change: dict[str, str]) -> None:
    copy = Path(shutil.copytree(int4, tmp_path / "model"))
    raw = json.loads((copy / "config.json").read_text())
    raw["quantization_config"] |= change
    write_json(copy / "config.json", raw)
    with pytest.raises(HerdError, match="is not supported, only compressed-tensors"):
        herd.load(copy)


MEASURED = """
import sys, torch
from pathlib import Path
from herd.core.lineage import peak_memory_bytes
from herd.model.formats import lowbit
from herd.model.formats.config_json import config_from_json
import herd.model.transformer, herd.engine.score
with torch.device("meta"):  # what torch imports at first use is not the model's
    herd.model.transformer.Transformer(config_from_json(Path(sys.argv[1])))
before = peak_memory_bytes()
model = lowbit.load(Path(sys.argv[1]))
tokens = torch.arange(8)
with torch.inference_mode():
    hidden = model(tokens, positions_N=tokens, starts_S=torch.tensor([0, 8], dtype=torch.int32))
    assert model.unembed(hidden).isfinite().all()
print(peak_memory_bytes() - before)
"""


def test_a_model_of_half_a_gigabyte_stays_packed_in_memory(tiny_folder: Path, tmp_path: Path) -> None:
    config = config_from_json(tiny_folder)
    config = replace(config, dim=1024, moe=replace(config.moe, ffn_dim=2048), num_layers=5)
    model = Transformer(config).to(torch.bfloat16)
    for parameter in model.parameters():
        flat = parameter.data.view(-1)
        flat.copy_((torch.arange(len(flat), dtype=torch.int32) * 7919 % 251).bfloat16() * 1e-4)
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    huggingface.save(model, source)
    huggingface.save_processor(config, source)
    del model
    sizes = compressed.write(source, target, Scheme(name="int4"))
    packed = sizes["packed"] + sizes["kept"]
    assert sizes["before"] > 5e8
    assert packed < 0.28 * sizes["before"]
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, str(target)],
        env={
            "PYTHONPATH": ":".join(sys.path),
            "PATH": "/usr/bin:/bin",
            "OMP_NUM_THREADS": "2",
            "HOME": str(Path.home()),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    # Without the kernels, a matrix of an expert is unpacked while it multiplies: 17 MB, and as much for what makes it.
    unpacked = 0 if native.why_not() is None else 3 * 4 * 2 * config.moe.ffn_dim * config.dim
    assert int(run.stdout) < 1.1 * packed + 2e7 + unpacked, (run.stdout, packed)
