"""Low-bit weights: schemes, and the module that multiplies by them without unpacking the model.

    int8  a scale for each output row, amax / 127; activations int8, a dynamic scale for each token
    int4  a scale for each 32, 64 or 128 inputs of a row, amax / 8, codes clamped to [-8, 7] (Meta's scheme, group 128);
          activations int8, a dynamic scale for each token and 128 inputs, as llama.cpp does; Meta and vLLM keep bf16
    fp8   e4m3, a scale for each output row, amax / 448; activations e4m3, a dynamic scale for each token, capped at
          1200; routed experts only, first and last layer left out, as Meta does (`everywhere` takes every product)

All are symmetric and need no data. Scales are bf16 and codes are rounded against the *stored* scale. Codes lie
[out, in], as compressed-tensors stores them, in memory as in the file. Source: llama-models 0.3.0 (quantize_impls),
compressed-tensors 0.20. The other choice of scales, `fit="search"`, is Herd's own; docs/quantize.md has its figures.
"""

# R rows, K in, N out, E experts, G scales of a row

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from herd import native
from herd.config import ModelConfig
from herd.errors import HerdError, unknown
from herd.model.precision import LowBit

SCHEMES = ("int4", "int8", "fp8")
GROUPS = (32, 64, 128)
FITS = ("amax", "search")
ACTIVATION_CAP = 1200
"""Largest activation that fp8 keeps apart, Meta's `activation_scale_ub`."""
ACTIVATION_BLOCK = 128
"""Inputs that share a scale of int4's activations."""
FP8_MAX = 448.0
STORED = {"int4": torch.uint8, "int8": torch.int8, "fp8": torch.float8_e4m3fn}


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How weights are stored and multiplied."""

    name: str
    group: int | None = None
    """int4: inputs that share a scale, 128 if not given."""
    everywhere: bool = False
    """fp8: every product and not the routed experts alone; the others always are."""
    keep_head: bool = False
    """Leave the unembedding in bf16."""
    fit: str = "amax"
    """int4: `search` tries several scales of both signs for each group and keeps the one of least squared error."""

    def __post_init__(self) -> None:
        if self.name not in SCHEMES:
            raise unknown("scheme", self.name, SCHEMES)
        if self.fit not in FITS:
            raise unknown("fit", self.fit, FITS)
        if self.name != "int4" and self.group is not None:
            raise HerdError(f"group={self.group} is for int4; {self.name} has one scale for each output row")
        if self.name != "int4" and self.fit != "amax":
            raise HerdError(f"fit={self.fit!r} is for int4")
        if self.name != "fp8" and self.everywhere:
            raise HerdError(f"everywhere is for fp8: {self.name} takes every product anyway")
        if self.name == "int4":
            object.__setattr__(self, "group", self.group or 128)
            if self.group not in GROUPS:
                raise HerdError(f"group={self.group} is not one of {', '.join(map(str, GROUPS))}")

    @property
    def bits(self) -> int:
        return 4 if self.name == "int4" else 8

    def row_shape(self, width: int) -> tuple[int, int]:
        """Bytes and scales of a row of `width` inputs."""
        return width * self.bits // 8, width // self.group if self.group else 1


KEPT = {
    "embedding.weight": "a table that is looked up, never multiplied",
    "*.router.weight": "near ties would pick other experts, and it is a ten-thousandth of the bytes",
    "vision.*": "under a hundredth of Scout's bytes, read once a picture; Meta leaves it in bf16 too",
}
"""Matrices that no scheme takes, by our parameters' names, and why. Vectors (norms, biases) are no matrices."""
KEPT_HEAD = {
    "unembedding.weight": "keep_head: for vLLM, whose compressed-tensors loader packs linear layers but no head"
}


def why_kept(name: str, scheme: Scheme, config: ModelConfig) -> str | None:
    """Why the matrix `name` of the transformer stays as it is; None where the scheme takes it."""
    reasons = KEPT | (KEPT_HEAD if scheme.keep_head else {})
    for pattern, reason in reasons.items():
        if fnmatch.fnmatchcase(name, pattern):
            return reason
    if scheme.name == "fp8" and not scheme.everywhere:
        if not name.endswith(("gate_up_EDF", "down_EFD")):
            return "fp8 takes routed experts only, as Meta does"
        if int(name.split(".")[1]) in (0, config.num_layers - 1):
            return "fp8 leaves out the first and the last layer, as Meta does"
    return None


def check_weight(weight: Tensor, scheme: Scheme, name: str) -> None:
    """Refuse what cannot be quantised, by name."""
    if not torch.isfinite(weight).all():
        raise HerdError(f"{name} holds NaN or infinity: fix the model before quantising it")
    width = weight.shape[-1]
    if scheme.group and width % scheme.group:
        fitting = [str(group) for group in GROUPS if width % group == 0]
        fix = f"set the group to {' or '.join(fitting)}" if fitting else "use int8"
        raise HerdError(f"{name}: group={scheme.group} does not divide its {width} inputs, {fix}")


def quantize(weight: Float[Tensor, "... k"], scheme: Scheme, name: str = "weight") -> tuple[Tensor, Tensor]:
    """Codes and bf16 scales [..., G] of rows [..., K]: int8, e4m3, or for int4 two codes a byte [..., K / 2]."""
    check_weight(weight, scheme, name)
    groups = weight.float().unflatten(-1, (-1, scheme.group or weight.shape[-1]))
    if scheme.name == "fp8":
        scale = amax_scale(groups, FP8_MAX)
        # PyTorch's cast rounds to nearest, ties to even; past 448 it would give NaN.
        codes = (groups / scale.float()).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
        return codes.flatten(-2), scale.squeeze(-1)
    if scheme.name == "int8":
        scale = amax_scale(groups, 127.0)
        return (groups / scale.float()).round().clamp(-127, 127).to(torch.int8).flatten(-2), scale.squeeze(-1)
    scale = amax_scale(groups, 8.0)
    if scheme.fit == "search":
        scale = search_scale(groups, scale)
    codes = (groups / scale.float()).round().clamp(-8, 7).to(torch.int8).flatten(-2)
    return pack(codes), scale.squeeze(-1)


def amax_scale(groups: Tensor, bound: float) -> Tensor:
    """amax / bound in bf16, 1 for a group of zeros; [..., 1]. Never so small that a code would overflow."""
    amax = groups.abs().amax(-1, keepdim=True)
    smallest = torch.finfo(torch.bfloat16).tiny
    return torch.where(amax > 0, (amax / bound).clamp_min(smallest), 1.0).bfloat16()


def search_scale(groups: Tensor, scale: Tensor) -> Tensor:
    """Of scales around amax / 8, of both signs as -8 reaches further than 7, that of least squared error."""
    best, least = scale, torch.full_like(scale, torch.inf, dtype=torch.float32)
    for ratio in (1.0, 8 / 7, 0.95, 0.9, 0.85, 0.8):
        for sign in (1, -1):
            trial = (scale.float() * ratio * sign).bfloat16()
            near = (groups / trial.float()).round_().clamp_(-8, 7).mul_(trial.float())
            error = near.sub_(groups).square_().sum(-1, keepdim=True)
            best, least = torch.where(error < least, trial, best), torch.minimum(error, least)
    return best


def pack(codes: Tensor) -> Tensor:
    """int4 codes [..., K] two to a byte [..., K / 2], the even one in the low half, each with 8 added.

    Four such bytes are a little-endian int32 word of compressed-tensors' `pack-quantized`.
    """
    raised = (codes + 8).to(torch.uint8)
    return raised[..., 0::2] | raised[..., 1::2] << 4


def unpack(packed: Tensor) -> Tensor:
    """The inverse of `pack`."""
    return torch.stack([packed & 15, packed >> 4], -1).flatten(-2).to(torch.int8) - 8


def dequantize(codes: Tensor, scale: Tensor, scheme: Scheme) -> Tensor:
    """The weights in fp32 that codes and scales stand for."""
    values = (unpack(codes) if scheme.name == "int4" else codes).float()
    return (values.unflatten(-1, (scale.shape[-1], -1)) * scale.float().unsqueeze(-1)).flatten(-2)


def round_activations(x_RK: Tensor, scheme: Scheme) -> Tensor:
    """What the products see of activations, in fp32: rounded to the scheme's codes, scales applied."""
    x = x_RK.float()
    width = x.shape[-1]
    if scheme.name == "int4":
        x = F.pad(x, (0, -width % ACTIVATION_BLOCK)).unflatten(-1, (-1, ACTIVATION_BLOCK))
    amax = x.abs().amax(-1, keepdim=True)
    if scheme.name == "fp8":
        amax = torch.where(amax.isinf(), torch.nan, amax.clamp_max(ACTIVATION_CAP))
        codes = (x * inverse(FP8_MAX, amax)).clamp(-FP8_MAX, FP8_MAX)
        return codes.to(torch.float8_e4m3fn).float() * (amax / FP8_MAX)
    amax = torch.where(amax.isinf(), torch.nan, amax)
    codes = (x * inverse(127.0, amax)).round()
    x = codes * (amax / 127)
    return x.flatten(-2)[..., :width] if scheme.name == "int4" else x


def inverse(bound: float, amax: Tensor) -> Tensor:
    """bound / amax, 0 for zeros. A true division, as the kernel's: `float / tensor` multiplies by a reciprocal."""
    return (torch.full_like(amax, bound) / amax).nan_to_num(posinf=0.0)


class Packed(LowBit):
    """One matrix [N, K], or one for each expert [E, N, K], as codes and scales; no gradient passes."""

    weight: Tensor
    scale: Tensor

    def __init__(self, scheme: Scheme, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.scheme = scheme
        codes, scales = scheme.row_shape(shape[-1])
        self.register_buffer("weight", torch.empty(*shape[:-1], codes, dtype=STORED[scheme.name]))
        self.register_buffer("scale", torch.empty(*shape[:-1], scales, dtype=torch.bfloat16))

    def forward(self, x_RK: Tensor, ends_E: Tensor | None = None) -> Tensor:
        if torch.is_grad_enabled() and x_RK.requires_grad:
            raise HerdError("a quantised model cannot be trained: train the folder that it was made from")
        weight, scale = self.weight, self.scale
        if ends_E is None:
            weight, scale, ends_E = weight[None], scale[None], torch.tensor([len(x_RK)])
        if native.why_not(x_RK, native.FLOATS) is None:
            detail = {"int4": self.scheme.group or 0, "int8": 0, "fp8": ACTIVATION_CAP}[self.scheme.name]
            return native.lowbit_product(x_RK, weight, scale, ends_E.long(), bits=self.scheme.bits, detail=detail)
        return product(x_RK, weight, scale, ends_E, self.scheme)


def product(x_RK: Tensor, weight: Tensor, scale: Tensor, ends_E: Tensor, scheme: Scheme) -> Tensor:
    """The kernel's twin: fp32 products with one unpacked matrix at a time."""
    x = round_activations(x_RK, scheme)
    parts, begin = [], 0
    for group, end in enumerate(ends_E.tolist()):
        if end > begin:
            parts.append(x[begin:end] @ dequantize(weight[group], scale[group], scheme).T)
        begin = end
    return torch.cat(parts).to(x_RK.dtype) if parts else x_RK.new_zeros(0, weight.shape[1])


def quantizable(model: nn.Module, scheme: Scheme, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The parameters that the scheme takes → their shape as products see it: [N, K] or [E, N, K]."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and why_kept(name, scheme, config) is None:
            shape = tuple(parameter.shape)
            # Experts are stored [E, in, out] in a Transformer.
            found[name] = (shape[0], shape[2], shape[1]) if len(shape) == 3 else shape
    return found


def replace(model: nn.Module, name: str, packed: Packed) -> None:
    """Put `packed` where the parameter `name` (`….weight` of a linear, or an expert matrix of its mixture) was."""
    path, _, leaf = name.rpartition(".")
    if leaf == "weight":
        owner, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(owner), leaf, packed)
    else:
        mixture = model.get_submodule(path)
        delattr(mixture, leaf)
        mixture.add_module(leaf, packed)


def quantize_tensors(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], scheme: Scheme
) -> dict[str, Tensor]:
    """The state of a model that `quantize_model` has made, from that of the model before; `shapes` as `quantizable`
    has them."""
    found = {}
    for name, tensor in tensors.items():
        if name in shapes:
            path = name.removesuffix(".weight")
            codes, scale = quantize(tensor.mT if tensor.ndim == 3 else tensor, scheme, name)
            found[f"{path}.weight"], found[f"{path}.scale"] = codes.contiguous(), scale.contiguous()
        else:
            found[name] = tensor
    return found


def quantize_model(model: nn.Module, scheme: Scheme, config: ModelConfig) -> None:
    """Quantise a transformer in place."""
    parameters = dict(model.named_parameters())
    for name, shape in quantizable(model, scheme, config).items():
        weight = parameters.pop(name).detach()
        packed = Packed(scheme, shape)
        codes, scale = quantize(weight.mT if weight.ndim == 3 else weight, scheme, name)
        packed.weight, packed.scale = codes.contiguous(), scale.contiguous()
        replace(model, name, packed)
