"""Quantised folders as others publish them, small: by the names, shapes and types of their headers.

What compressed-tensors writes is made by its own compressors; the fused layouts by the formulas of transformers'
integrations/fbgemm_fp8.py and of NVIDIA's exports.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import herd
from herd.core.files import read_json, write_json
from herd.errors import HerdError
from herd.model.formats import huggingface, lowbit
from herd.model.formats.config_json import config_from_json
from herd.model.formats.weights import Weights, assemble
from herd.model.quantize import Packed
from herd.model.transformer import Transformer

IDS = [9, 50, 60, 70, 80] * 6
EXPERTS = ".feed_forward.experts."
IGNORED = ["re:.*lm_head", "re:.*self_attn", "re:.*router", "re:.*vision_model.*", "re:.*multi_modal_projector.*"]
"""What llm-compressor's recipe for Llama 4 leaves out."""


@pytest.fixture(scope="module")
def plain(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in bf16 whose widths are multiples of a group of 128."""
    folder = tmp_path_factory.mktemp("plain") / "model"
    folder.mkdir()
    shape = config_from_json(tiny_folder)
    config = replace(shape, dim=256, num_layers=2, moe=replace(shape.moe, num_experts=3, ffn_dim=128, every=2))
    torch.manual_seed(0)
    model = Transformer(config).requires_grad_(False)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if name.endswith("norm.weight") else 0.0, 0.05)
    huggingface.save(model, folder)
    for path in tiny_folder.iterdir():
        if path.suffix != ".safetensors" and path.name not in {"config.json", "model.safetensors.index.json"}:
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


Made = tuple[dict[str, Tensor], Tensor]
"""The tensors that stand for a matrix, by name, and the values that they stand for."""
Change = Callable[[str, Tensor], Made | None]


def published(plain: Path, folder: Path, method: dict[str, Any], change: Change) -> Weights:
    """Write `folder`: `plain` with the matrices that `change` takes; gives the weights that it stands for."""
    folder.mkdir()
    [shard] = plain.glob("*.safetensors")
    held: dict[str, Tensor] = {}
    meant: dict[str, Tensor] = {}
    for name, tensor in load_file(shard).items():
        made = change(name, tensor)
        held |= {name: tensor} if made is None else made[0]
        meant[name] = (tensor if made is None else made[1]).float()
    save_file({name: tensor.contiguous() for name, tensor in held.items()}, folder / "model.safetensors")
    for path in plain.iterdir():
        if path.suffix != ".safetensors" and path.name != "model.safetensors.index.json":
            (folder / path.name).write_bytes(path.read_bytes())
    write_json(folder / "config.json", read_json(plain / "config.json") | {"quantization_config": method})
    config = config_from_json(plain)
    table = huggingface.rules(config)
    read = lambda name: table[name].join([meant[theirs] for theirs in table[name].names])  # noqa: E731
    return Weights(config=config, dtype=torch.float32, read=read)


def opens_as(folder: Path, meant: Weights) -> Transformer:
    """The floats are those meant, up to scales in bf16; the model that runs is packed, and close."""
    read = lowbit.open_folder(folder, torch.float32).read
    for name in huggingface.rules(meant.config):
        assert torch.allclose(read(name), meant.read(name), rtol=1e-6, atol=1e-7), name
    opened = herd.load(folder, dtype=torch.float32)
    ours, theirs = opened.logits(IDS), herd_logits(assemble(meant))
    assert float((ours - theirs).norm() / theirs.norm()) < 0.15
    assert float(opened.logits(IDS).isfinite().all())
    return opened.transformer


def herd_logits(model: Transformer) -> Tensor:
    with torch.inference_mode():
        starts = torch.tensor([0, len(IDS)], dtype=torch.int32)
        return model.unembed(model(torch.tensor(IDS), positions_N=torch.arange(len(IDS)), starts_S=starts))


def packed_names(model: Transformer) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, Packed)}


def compressed(name: str, weight: Tensor, arguments: dict[str, Any], form: str, scale_type: torch.dtype) -> Made:
    """A matrix [out, in] as compressed-tensors' own compressor writes it."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(**arguments)
    groups = weight.float().unflatten(-1, (-1, args.group_size or weight.shape[-1]))
    if args.strategy == "tensor":
        groups = weight.float().reshape(1, 1, -1)
    scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    scale = scale.to(scale_type).reshape(-1, 1) if args.strategy != "group" else scale.to(scale_type)
    scale = scale.reshape(1) if args.strategy == "tensor" else scale
    state = {"weight": weight, "weight_scale": scale}
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.get_value_from_registry(form)
    made = compressor.compress(dict(state), scheme)
    values = compressor.decompress({**made, "weight_scale": made["weight_scale"].float()}, scheme)["weight"]
    base = name.removesuffix("weight")
    return {f"{base}{end}": tensor for end, tensor in made.items()}, values


def one_by_one(arguments: dict[str, Any], form: str, scale_type: torch.dtype = torch.bfloat16) -> Change:
    """llm-compressor's layout: linears apart, experts one by one, attention and router left."""

    def change(name: str, tensor: Tensor) -> Made | None:
        if EXPERTS in name:
            held: dict[str, Tensor] = {}
            meant = torch.empty(tensor.shape)
            for expert in range(len(tensor)):
                leaves = ["gate_proj", "up_proj"] if name.endswith("gate_up_proj") else ["down_proj"]
                parts = tensor[expert].T.chunk(len(leaves))
                values = []
                for leaf, part in zip(leaves, parts, strict=True):
                    there = f"{name.rpartition('.')[0]}.{expert}.{leaf}.weight"
                    made = compressed(there, part.contiguous(), arguments, form, scale_type)
                    held |= made[0]
                    values.append(made[1])
                meant[expert] = torch.cat(values).T
            return held, meant
        if ".feed_forward." in name and "router" not in name:
            return compressed(name, tensor, arguments, form, scale_type)
        return None

    return change


def method(arguments: dict[str, Any], form: str, activations: dict[str, Any] | None) -> dict[str, Any]:
    """quantization_config as llm-compressor writes it."""
    group = {"targets": ["Linear"], "weights": arguments, "input_activations": activations, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": form,
        "global_compression_ratio": None,
        "config_groups": {"group_0": group},
        "ignore": IGNORED,
        "kv_cache_scheme": None,
    }


def weights_of(bits: int, kind: str, strategy: str, **more: Any) -> dict[str, Any]:
    given = {"num_bits": bits, "type": kind, "symmetric": True, "strategy": strategy, "dynamic": False}
    return given | {"observer": "minmax"} | more


DYNAMIC = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}
W4A16 = weights_of(4, "int", "group", group_size=128, actorder="weight")
FP8 = weights_of(8, "float", "channel")


@pytest.mark.parametrize(
    ("arguments", "form", "scale_type"),
    [
        pytest.param(W4A16, "pack-quantized", torch.bfloat16, id="w4a16"),
        pytest.param(FP8, "float-quantized", torch.bfloat16, id="FP8-dynamic"),
        pytest.param(weights_of(8, "int", "channel"), "int-quantized", torch.bfloat16, id="w8a8"),
        pytest.param(weights_of(8, "float", "tensor"), "float-quantized", torch.float32, id="FP8, a scale a tensor"),
    ],
)
def test_folders_of_llm_compressor_open_packed(
    arguments: dict[str, Any], form: str, scale_type: torch.dtype, plain: Path, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors", reason="pip install 'herd-lm[oracle]'")
    reported = method(arguments, form, None if form == "pack-quantized" else DYNAMIC)
    folder = tmp_path / "model"
    meant = published(plain, folder, reported, one_by_one(arguments, form, scale_type))
    if form == "float-quantized" and scale_type == torch.float32:  # static scales of activations stand beside
        held = load_file(folder / "model.safetensors")
        extra = {name.replace("weight_scale", "input_scale"): torch.ones(1) for name in held if "weight_scale" in name}
        save_file(held | extra, folder / "model.safetensors")
    model = opens_as(folder, meant)
    assert packed_names(model) >= {"layers.1.ffn.gate_up_EDF", "layers.1.ffn.shared.down", "layers.0.ffn.gate_up"}
    assert not {name for name in packed_names(model) if "attention" in name or "vision" in name}


def per_row(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """fbgemm's quantize_fp8_per_row: e4m3 and a scale for each row, fp32."""
    scale = matrix.float().abs().amax(-1) / 448
    return (matrix.float() / scale[:, None]).to(torch.float8_e4m3fn), scale


def fbgemm(name: str, tensor: Tensor) -> Made | None:
    """transformers' FbgemmFp8Llama4TextExperts and FbgemmFp8Linear."""
    if EXPERTS in name:
        codes, scale = per_row(tensor.mT.reshape(-1, tensor.shape[1]))
        codes = codes.reshape(tensor.mT.shape).mT
        per_out = scale.reshape(len(tensor), 1, -1)
        stored = per_out if name.endswith("gate_up_proj") else per_out.mT
        return {name: codes, f"{name}_scale": stored}, codes.float() * per_out
    if ".feed_forward.shared_expert." in name:
        codes, scale = per_row(tensor)
        return {name: codes, f"{name}_scale": scale[:, None]}, codes.float() * scale[:, None]
    return None


def modelopt(name: str, tensor: Tensor) -> Made | None:
    """NVIDIA's export: one scale a tensor, and those of inputs and of the cache beside."""
    if "vision" in name or "multi_modal" in name or tensor.dim() < 2 or "embed" in name or "lm_head" in name:
        return None
    if "router" in name:
        return None
    scale = tensor.float().abs().amax() / 448
    codes = (tensor.float() / scale).to(torch.float8_e4m3fn)
    base = f"{name}_" if EXPERTS in name else name.removesuffix("weight")
    held = {name: codes, f"{base}weight_scale": scale, f"{base}input_scale": torch.tensor(0.5)}
    if name.endswith(("k_proj.weight", "v_proj.weight")):
        held[f"{base}{name.split('.')[-2][0]}_scale"] = torch.tensor(1.0)
    return held, codes.float() * scale


def blockwise(name: str, tensor: Tensor) -> Made | None:
    """transformers' FineGrainedFP8: a scale for each 128 x 128, called `weight_scale_inv`."""
    if (".feed_forward.shared_expert." not in name and ".self_attn." not in name) or "vision" in name:
        return None
    blocks = tensor.float().unflatten(0, (-1, 128)).unflatten(-1, (-1, 128))
    scale = blocks.abs().amax((1, 3)) / 448
    codes = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    values = (codes.float() * scale[:, None, :, None]).reshape(tensor.shape)
    return {name: codes.reshape(tensor.shape), f"{name}_scale_inv": scale}, values


@pytest.mark.parametrize(
    ("reported", "change", "kept"),
    [
        pytest.param(
            {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]},
            fbgemm,
            {"layers.1.ffn.gate_up_EDF", "layers.1.ffn.down_EFD", "layers.1.ffn.shared.down"},
            id="fbgemm_fp8",
        ),
        pytest.param(
            {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "ignore": ["lm_head"]},
            modelopt,
            {"layers.1.ffn.gate_up_EDF", "layers.1.ffn.down_EFD", "layers.0.attention.out"},
            id="modelopt",
        ),
        pytest.param(
            {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
            blockwise,
            set(),
            id="blocks become floats",
        ),
    ],
)
def test_fused_and_blockwise_fp8_opens(
    reported: dict[str, Any], change: Change, kept: set[str], plain: Path, tmp_path: Path
) -> None:
    model = opens_as(tmp_path / "model", published(plain, tmp_path / "model", reported, change))
    assert packed_names(model) >= kept and bool(packed_names(model)) == bool(kept)


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quantization 'bitsandbytes' is not supported"),
        ({"quant_method": "awq", "bits": 4}, "quantization 'awq' is not supported, .*zero points"),
        ({"quant_method": "gptq", "bits": 4}, "quantization 'gptq' is not supported"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "quantization 'modelopt NVFP4' is not supported"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "'compressed-tensors nvfp4-pack"),
    ],
)
def test_other_quantisations_are_named(change: dict[str, Any], reported: str, plain: Path, tmp_path: Path) -> None:
    published(plain, tmp_path / "model", change, lambda name, tensor: None)
    with pytest.raises(HerdError, match=reported) as caught:
        herd.load(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_mlx_is_named(plain: Path, tmp_path: Path) -> None:
    published(plain, tmp_path / "model", {}, lambda name, tensor: None)
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(read_json(path) | {"quantization": {"group_size": 64, "bits": 4}}))
    with pytest.raises(HerdError, match="quantization 'mlx' is not supported"):
        herd.load(tmp_path / "model")


def test_what_is_missing_or_does_not_fit_is_named(plain: Path, tmp_path: Path) -> None:
    reported = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}
    published(plain, tmp_path / "model", reported, fbgemm)
    path = tmp_path / "model" / "model.safetensors"
    whole = load_file(path)
    scale = next(name for name in whole if name.endswith("experts.down_proj_scale"))
    save_file({name: tensor for name, tensor in whole.items() if name != scale}, path)
    with pytest.raises(HerdError, match=r"experts\.down_proj_weight_scale is missing"):
        herd.load(tmp_path / "model")
    save_file(whole | {"stray.weight_scale": torch.ones(1)}, path)
    with pytest.raises(HerdError, match=r"stray\.weight_scale is not a tensor of this model"):
        herd.load(tmp_path / "model")
    short = next(name for name in whole if name.endswith("shared_expert.up_proj.weight"))
    save_file(whole | {short: whole[short][:-4].contiguous(), f"{short}_scale": whole[f"{short}_scale"][:-4]}, path)
    with pytest.raises(HerdError, match=r"have 252 rows, the configuration asks for 256"):
        herd.load(tmp_path / "model")
    zero = short.replace("weight", "weight_zero_point")
    save_file(whole | {zero: torch.zeros(4, 1)}, path)
    with pytest.raises(HerdError, match=r"zero points, reordered inputs .* are not supported"):
        herd.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("files", "reported"),
    [
        (["config.json", "pytorch_model-00001-of-00002.bin"], "PyTorch pickles, which could run code: open it in"),
        (["config.json", "flax_model.msgpack"], "Flax weights"),
        (["config.json", "model.onnx"], "ONNX"),
        (["weights.npz"], "MLX weights"),
        (["adapter_config.json", "adapter_model.safetensors"], "an adapter of the kind None, only LoRA"),
        (["model.safetensors"], "safetensors without a config.json"),
        (["a.gguf", "b.gguf"], "several GGUF files: name one"),
        (["consolidated.00.pth"], "without Meta's params.json"),
        ([], "neither config.json nor params.json"),
    ],
)
def test_a_folder_that_cannot_be_opened_is_named_by_what_it_is(files: list[str], reported: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(HerdError, match=reported) as caught:
        herd.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reported"), [("model.safetensors", "safetens"), ("x.bin", "pickles"), ("x", "unknown")]
)
def test_a_file_that_is_no_model_is_named(name: str, reported: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(HerdError, match=f"{reported}.*a model is a folder, or a .gguf file"):
        herd.load(tmp_path / name)
