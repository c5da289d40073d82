"""Reading Hugging Face folders whose weights have few bits, as they are published for Scout and Maverick.

    compressed-tensors   `….weight_packed` (int4 or int8 in int32 words) or `….weight` (int8, e4m3), `….weight_scale`;
                         experts one by one, `experts.3.gate_proj` (llm-compressor's, and what Herd writes)
    fbgemm_fp8           e4m3 with a scale for each output row; experts fused, `experts.gate_up_proj` [E, in, out] with
                         `experts.gate_up_proj_scale` (transformers)
    modelopt (FP8)       the same with `experts.gate_up_proj_weight_scale`, one number for a tensor (NVIDIA)
    fp8                  e4m3 with a scale for each block, `….weight_scale_inv`

What is there is read from the tensors, matrix by matrix: `load` keeps one packed where the kernel multiplies by it
(int4 in groups, int8 and e4m3 with a scale for each row, of text), everything else becomes floats; `open_folder` makes
floats of all. Scales are bf16 in memory; fp32 ones are rounded. Scales of activations are passed over: Herd finds its
own for each token. Zero points and reordered inputs are refused.

Sources: compressed-tensors 0.20; transformers 5.23, integrations/fbgemm_fp8.py; vLLM's llama4.py and TensorRT-LLM's
fused_moe for the names of modelopt.
"""

# E experts, N out, K in, G scales of a row

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from herd.core.files import read_json
from herd.errors import HerdError
from herd.model.formats import huggingface
from herd.model.formats.config_json import config_from_json, is_tied
from herd.model.formats.stored import CHECKED, Stored
from herd.model.formats.weights import Weights, refuse, skeleton, wrong_names
from herd.model.quantize import GROUPS, Packed, Scheme, replace, unpack, why_kept
from herd.model.transformer import Transformer

METHODS = {
    "compressed-tensors": ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision"),
    "fbgemm_fp8": (),
    "modelopt": ("FP8",),
    "fp8": (),
}
"""`quant_method` → the formats of it that are read; none: it has one only."""
OTHERS = {
    "bitsandbytes": "give the folder that it was made from",
    "awq": "its groups have zero points: give the folder that it was made from",
    "gptq": "give the folder that it was made from, or one of compressed-tensors",
    "mlx": "give the folder that it was made from",
}
SCALES = ("weight_scale", "weight_scale_inv", "scale")
PASSED_OVER = ("input_scale", "output_scale", "k_scale", "v_scale", "weight_shape", "input_scale_ub")
"""Of activations and of the cache; and the shape that is known."""
BITS = {torch.int8: "int8", torch.float8_e4m3fn: "fp8"}


def is_quantized(folder: Path) -> bool:
    """Whether the folder's config declares weights of few bits."""
    raw = read_json(folder / "config.json")
    return bool(raw.get("quantization_config") or raw.get("quantization")) or (folder / "hf_quant_config.json").exists()


def check_method(folder: Path) -> None:
    """Refuse kinds of quantisation that are not read, by name."""
    path = folder / "config.json"
    raw = read_json(path)
    given: dict[str, Any] = raw.get("quantization_config") or {}
    if "quant_method" not in given and raw.get("quantization"):
        given = {"quant_method": "mlx"}
    elif not given:  # NVIDIA's first exports have it in a separate file
        quantization = read_json(folder / "hf_quant_config.json").get("quantization", {})
        given = {"quant_method": "modelopt", "quant_algo": quantization.get("quant_algo")}
    method = str(given.get("quant_method"))
    form = given.get("quant_algo") if method == "modelopt" else given.get("format")
    if method not in METHODS or (METHODS[method] and form not in METHODS[method]):
        name = f"{method} {form}" if form else method
        known = ", ".join(f"{one} ({', '.join(forms)})" if forms else one for one, forms in METHODS.items())
        advice = OTHERS.get(method, "give the folder that it was made from")
        raise HerdError(f"{path}: quantization {name!r} is not supported, only {known}; {advice}")


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """One stored matrix of N outputs and K inputs."""

    codes: Stored
    scale: Stored | None
    """None: the codes are the values."""
    transposed: bool = False
    """It is stored [in, out], as fused experts are."""

    @property
    def kind(self) -> str:
        """int4, int8, fp8, float, or another descriptive name."""
        if self.scale is None:
            return "float"
        if self.codes.dtype == torch.int32:
            return "packed"
        return BITS.get(self.codes.dtype, str(self.codes.dtype).removeprefix("torch."))

    def read_codes(self) -> Tensor:
        codes = self.codes.read()
        return codes.T.contiguous() if self.transposed else codes

    def read_scale(self, rows: int) -> Tensor:
        """[rows, G], or [rows / m, K / n] where blocks of m rows and n inputs share one."""
        assert self.scale is not None
        scale = self.scale.read().float()
        if scale.numel() == 1:
            return scale.reshape(1, 1).expand(rows, 1)
        if scale.numel() == rows:
            return scale.reshape(rows, 1)
        return scale.T if self.transposed else scale

    def values(self, width: int) -> Tensor:
        """The matrix [N, K] in fp32, for `width` inputs."""
        codes = self.read_codes()
        if self.scale is None:
            return codes
        if self.kind == "packed":
            codes = unpack_words(codes, width)
        rows, columns = codes.shape
        scale = self.read_scale(rows)
        scale = scale.repeat_interleave(-(-rows // scale.shape[0]), 0)[:rows]
        return codes.float() * scale.repeat_interleave(-(-columns // scale.shape[1]), 1)[:, :columns]


def unpack_words(words: Tensor, width: int) -> Tensor:
    """Codes [N, width] of `pack-quantized` int32 words: 4 or 8 bits each, half their range added."""
    as_bytes = words.contiguous().view(torch.uint8)
    if as_bytes.shape[1] == width:
        return as_bytes.short() - 128
    return unpack(as_bytes)[:, :width]


class Folder:
    """A folder's tensors as the matrices that make each parameter."""

    def __init__(self, folder: Path) -> None:
        check_method(folder)
        self.path, self.config = folder, config_from_json(folder)
        self.stored = huggingface.stored_tensors(folder)
        self.shapes = {name: tuple(parameter.shape) for name, parameter in skeleton(self.config).named_parameters()}
        self.used: set[str] = set()
        self.missing: list[str] = []
        rules = huggingface.rules(self.config)
        if is_tied(folder) and rules["unembedding.weight"].names[0] not in self.stored:
            rules["unembedding.weight"] = rules["embedding.weight"]
        self.matrices = {name: list(self.find(name, rule)) for name, rule in rules.items()}
        left = {name for name in self.stored.keys() - self.used if name.rpartition(".")[2] not in PASSED_OVER}
        left = {name for name in left if not name.endswith(("_input_scale", "_output_scale"))}
        refuse(folder, [f"{name} is missing" for name in self.missing] + wrong_names(left, ()))
        refuse(folder, [problem for name in self.matrices for problem in self.problems(name)])

    def find(self, name: str, rule: huggingface.Rule) -> Iterator[Matrix]:
        """The matrices whose rows make our parameter `name`, in order; of experts, expert by expert."""
        if not name.endswith(("_EDF", "_EFD")):
            for theirs in rule.names:
                yield from self.linear(theirs)
            return
        [theirs] = rule.names
        base = theirs.rpartition(".")[0]
        if theirs not in self.stored and f"{theirs}.weight" not in self.stored:
            leaves = ("gate_proj", "up_proj") if name.endswith("gate_up_EDF") else ("down_proj",)
            for expert in range(self.config.moe.num_experts):
                for leaf in leaves:
                    yield from self.linear(f"{base}.{expert}.{leaf}.weight")
            return
        codes = self.take(theirs, f"{theirs}.weight")
        scale = self.scale(f"{theirs}_", f"{theirs}.") if codes and codes.dtype not in CHECKED else None
        for expert in range(codes.shape[0] if codes and codes.shape else 0):
            assert codes is not None
            own = scale.at(expert) if scale and scale.shape and scale.shape[0] == codes.shape[0] else scale
            yield Matrix(codes=codes.at(expert), scale=own, transposed=True)

    def linear(self, theirs: str) -> Iterator[Matrix]:
        """The matrix, vector or bias that is called `theirs` where it is not packed."""
        module = theirs.removesuffix("weight")
        if module != theirs:
            for end in ("weight_zero_point", "weight_g_idx", "weight_global_scale"):
                if f"{module}{end}" in self.stored:
                    raise HerdError(
                        f"{self.path}: {module}{end}: zero points, reordered inputs and scales of scales "
                        "are not supported; give the folder that it was made from"
                    )
        codes = self.take(theirs, f"{module}weight_packed")
        if codes is None:
            self.missing.append(theirs)
            return
        yield Matrix(codes=codes, scale=None if codes.dtype in CHECKED else self.scale(module))

    def take(self, *names: str) -> Stored | None:
        """The first of these tensors that is there."""
        for name in names:
            if name in self.stored:
                self.used.add(name)
                return self.stored[name]
        return None

    def scale(self, *prefixes: str) -> Stored | None:
        """The scale of what begins so."""
        found = self.take(*(f"{prefix}{end}" for prefix in prefixes for end in SCALES))
        if found is None:
            self.missing.append(f"{prefixes[0]}{SCALES[0]}")
        return found

    def problems(self, name: str) -> Iterator[str]:
        """What does not fit about a parameter's tensors."""
        shape = as_rows(self.shapes[name])
        rows = 0
        for one in self.matrices[name]:
            held = one.codes.shape[::-1] if one.transposed else one.codes.shape
            if one.kind not in {"float", "packed", "int8", "fp8"}:
                yield f"{one.codes.name} is stored as {one.kind}, which is not read"
                return
            inputs = shape[-1:] if len(shape) > 1 else ()
            # A packed word has 4 or 8 codes.
            fitting = [inputs] if one.kind != "packed" else [(-(-shape[-1] // count),) for count in (8, 4)]
            if len(held) != len(inputs) + 1 or held[1:] not in fitting:
                yield f"{one.codes.name} has shape {one.codes.shape}, the configuration asks for {shape}"
                return
            rows += held[0]
        wanted = prod(shape[:-1]) if len(shape) > 1 else shape[0]
        if rows != wanted:
            names = re.sub(r"[.\[]0[.\]]", ".*.", self.matrices[name][0].codes.name)
            yield f"{names} and what belongs to it have {rows} rows, the configuration asks for {wanted}"

    def floats(self, name: str, dtype: torch.dtype) -> Tensor:
        """A parameter as the numbers that its tensors encode."""
        out = torch.empty(self.shapes[name], dtype=dtype)
        if out.dim() == 1:
            return out.copy_(torch.cat([one.codes.read() for one in self.matrices[name]]))
        rows = out.mT if out.dim() == 3 else out[None]
        width, expert, begin = rows.shape[2], 0, 0
        for matrix in self.matrices[name]:
            values = matrix.values(width)
            rows[expert, begin : begin + len(values)] = values.to(dtype)
            begin += len(values)
            if begin == rows.shape[1]:
                expert, begin = expert + 1, 0
        return out

    def scheme(self, name: str) -> Scheme | None:
        """The scheme by which `Packed` holds this parameter; None where it becomes floats."""
        matrices, shape = self.matrices[name], as_rows(self.shapes[name])
        kinds = {matrix.kind for matrix in matrices}
        if len(shape) < 2 or len(kinds) != 1 or kinds == {"float"}:
            return None
        if kinds == {"packed"}:
            scales = {matrix.scale.shape[-1] for matrix in matrices if matrix.scale and len(matrix.scale.shape) == 2}
            group = shape[-1] // scales.pop() if len(scales) == 1 else 0
            if group not in GROUPS or shape[-1] % group or matrices[0].codes.shape[-1] * 8 != shape[-1]:
                return None
            scheme = Scheme(name="int4", group=group)
        else:
            for matrix in matrices:
                rows = matrix.codes.shape[-1] if matrix.transposed else matrix.codes.shape[0]
                if matrix.scale is None or matrix.scale.num_values not in {1, rows}:
                    return None
            [kind] = kinds
            scheme = Scheme(name=kind, everywhere=kind == "fp8")
        return None if why_kept(name, scheme, self.config) else scheme

    def packed(self, name: str, scheme: Scheme) -> Packed:
        """A parameter as codes and scales."""
        made = Packed(scheme, as_rows(self.shapes[name]))
        codes, scales = made.weight.flatten(0, -2), made.scale.flatten(0, -2)
        row = 0
        for matrix in self.matrices[name]:
            if matrix.transposed:
                part = matrix.read_codes()
                codes[row : row + len(part)] = part
                count = len(part)
            else:
                count = matrix.codes.shape[0]
                matrix.codes.read(codes[row : row + count].view(matrix.codes.dtype))
            scales[row : row + count] = matrix.read_scale(count)
            row += count
        return made


def as_rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A parameter's shape as products see it: rows before inputs, of each expert."""
    return (shape[0], shape[2], shape[1]) if len(shape) == 3 else shape


def float_type(stored: Mapping[str, Stored]) -> torch.dtype:
    """What the folder's floats are: of the embedding, or bf16 where that is packed too."""
    kinds = {one.dtype for name, one in stored.items() if "embed_tokens" in name}
    return kinds.pop() if len(kinds) == 1 and kinds <= set(CHECKED) else torch.bfloat16


def open_folder(folder: Path, dtype: torch.dtype | None = None) -> Weights:
    """The folder's weights as floats of `dtype`, None being that of its embedding."""
    held = Folder(folder)
    target = dtype or float_type(held.stored)
    return Weights(config=held.config, dtype=target, read=lambda name: held.floats(name, target))


def load(folder: Path, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Transformer:
    """The model, packed where Herd multiplies by it; `dtype` is that of what is not, and of the activations."""
    held = Folder(folder)
    target = dtype or float_type(held.stored)
    model: Transformer = skeleton(held.config)
    state: dict[str, Tensor] = {}
    for name in held.matrices:
        if scheme := held.scheme(name):
            replace(model, name, held.packed(name, scheme).to(device or "cpu"))
        else:
            state[name] = held.floats(name, target).to(device or "cpu")
    model.load_state_dict(state, assign=True, strict=False)
    return model.eval().requires_grad_(False)
