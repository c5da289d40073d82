"""LoRA (Hu et al., 2106.09685): updates of a low rank for the matrices of a plain `Transformer`, applied from outside.

`add_adapters` makes of each target `Linear` an `AdaptedLinear` and of each target mixture an `AdaptedMoE`: these have
the parameters of the plain ones under the same names, frozen, and adapters beside them, whose names begin with `lora_`.
An update is never made whole: rows are multiplied by A, then by B, those of experts grouped as the experts' own
products are. B is zero at first, so that the function is that of the model.

    y = x W^T + scale * (x A^T) B^T        q, k and v, and gate and up, have an A and a B each, as PEFT has them
    y = x W_e + scale * (x A_e) B_e        of expert e

Only training computes so: an adapter folder that is opened for anything else is merged into its base
(formats/peft.py). Left out: dropout, which PEFT refuses on experts too; bases in low bits; adapters of embeddings,
routers and the vision encoder.
"""

# N tokens, D width, E experts, F hidden width, K rank, R rows sorted by expert, P parts of a fused matrix

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from herd import native
from herd.config import LoraConfig
from herd.core.streams import seed_of
from herd.errors import HerdError
from herd.model.attention import Attention
from herd.model.formats.weights import Weights
from herd.model.moe import FeedForward, MoE, swiglu
from herd.model.precision import Linear, batch_invariant, grouped_product
from herd.model.transformer import Transformer

PREFIX = "lora_"
GROUPED_MULTIPLE = 8
"""PyTorch's grouped product in bf16 takes rows of 16 bytes: a rank is filled up to this."""


class AdaptedLinear(Linear):
    """`x W^T + scale * cat_p(x A_p^T B_p^T)`, p the parts of a fused matrix: q, k, v or gate, up."""

    parts: tuple[int, ...]
    """Outputs of each part of the whole matrix; along `tensor` a rank has an equal share of each."""
    scale: float
    lora_A: nn.Parameter
    """[P * K, in]"""
    lora_B: nn.Parameter
    """[out, K]"""

    def forward(self, x_ND: Tensor) -> Tensor:
        low = product(x_ND, self.lora_A) * self.scale
        own, whole = len(self.lora_B), sum(self.parts)
        outputs = self.lora_B.split([part * own // whole for part in self.parts])
        inputs = low.chunk(len(self.parts), dim=-1)
        updates = [product(low_NK, B_FK) for low_NK, B_FK in zip(inputs, outputs, strict=True)]
        return super().forward(x_ND) + torch.cat(updates, dim=-1)


def product(x_ND: Tensor, weight_FD: Tensor) -> Tensor:
    if native.why_not(x_ND, native.TRAINING) is None:
        return native.linear(x_ND, weight_FD)
    return batch_invariant(lambda x: F.linear(x, weight_FD), x_ND)


class AdaptedMoE(MoE):
    """A mixture whose routed experts have adapters; the shared expert's are its own."""

    scale: float
    lora_gate_up_A: nn.Parameter
    """[E, D, K]"""
    lora_gate_up_B: nn.Parameter
    """[E, K, 2 * F]"""
    lora_down_A: nn.Parameter
    """[E, F, K]"""
    lora_down_B: nn.Parameter
    """[E, K, D]"""

    def experts(self, rows_RD: Tensor, count_E: Tensor) -> Tensor:
        ends_E = count_E.cumsum(0).to(torch.int32)
        gate_up = grouped_product(rows_RD, self.gate_up_EDF, ends_E)
        gate_up = gate_up + self.update(rows_RD, self.lora_gate_up_A, self.lora_gate_up_B, ends_E)
        hidden_RF = swiglu(gate_up)
        down = grouped_product(hidden_RF, self.down_EFD, ends_E)
        return down + self.update(hidden_RF, self.lora_down_A, self.lora_down_B, ends_E)

    def update(self, rows_RD: Tensor, A_EDK: Tensor, B_EKF: Tensor, ends_E: Tensor) -> Tensor:
        """What the adapters add for rows that are sorted by expert."""
        if filling := -A_EDK.shape[-1] % GROUPED_MULTIPLE:
            A_EDK, B_EKF = F.pad(A_EDK, (0, filling)), F.pad(B_EKF, (0, 0, 0, filling))
        return grouped_product(grouped_product(rows_RD, A_EDK, ends_E) * self.scale, B_EKF, ends_E)


def is_adapter(name: str) -> bool:
    """Whether the parameter of this name is an adapter's."""
    return name.rpartition(".")[2].startswith(PREFIX)


def add_adapters(model: Transformer, config: LoraConfig) -> None:
    """Give a model, or a skeleton without memory, adapters of the config's rank, and freeze everything else. Their
    values are not set: see `initial`. Raises HerdError for a rank that a matrix does not have, and where the model has
    none of the targets."""
    model.requires_grad_(False)
    targets = [(name, module) for name, module in model.layers.named_modules() if target_of(name, module, config)]
    if not targets:
        raise HerdError(f"targets={config.targets}: the model has no such matrices; see LoRA's targets in docs/lora.md")
    for name, module in targets:
        if isinstance(module, MoE):
            adapt_experts(module, config, f"layers.{name}")
        else:
            assert isinstance(module, Linear)
            adapt_linear(module, parts_of(model, name, module), config, f"layers.{name}")


def target_of(name: str, module: nn.Module, config: LoraConfig) -> bool:
    """Whether a module of the layers, by its name there, is among the config's targets."""
    if isinstance(module, MoE):
        return "experts" in config.targets
    if not isinstance(module, Linear):
        return False
    place = name.split(".")[1:-1]  # of `0.ffn.shared.down`: ffn, shared
    kind = {("attention",): "attention", ("ffn", "shared"): "shared", ("ffn",): "dense"}[tuple(place)]
    return kind in config.targets


def parts_of(model: Transformer, name: str, module: Linear) -> tuple[int, ...]:
    """The outputs of each matrix that is fused in this one."""
    owner, last = model.layers.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
    if isinstance(owner, Attention) and last == "qkv":
        heads, kv_heads = owner.config.num_heads, owner.config.num_kv_heads
        return tuple(count * owner.config.head_dim for count in (heads, kv_heads, kv_heads))
    if isinstance(owner, FeedForward) and last == "gate_up":
        return (module.out_features // 2,) * 2
    return (module.out_features,)


def adapt_linear(linear: Linear, parts: tuple[int, ...], config: LoraConfig, name: str) -> None:
    rank = check_rank(config, name, linear.in_features, *parts)
    linear.__class__ = AdaptedLinear
    assert isinstance(linear, AdaptedLinear)
    linear.parts, linear.scale = parts, config.scale
    linear.lora_A = nn.Parameter(linear.weight.new_empty(len(parts) * rank, linear.in_features))
    linear.lora_B = nn.Parameter(linear.weight.new_empty(linear.out_features, rank))


def adapt_experts(moe: MoE, config: LoraConfig, name: str) -> None:
    (experts, dim, wide), hidden = moe.gate_up_EDF.shape, moe.down_EFD.shape[1]
    rank = check_rank(config, f"{name}.experts", dim, hidden)
    moe.__class__ = AdaptedMoE
    assert isinstance(moe, AdaptedMoE)
    moe.scale, new = config.scale, moe.gate_up_EDF.new_empty
    moe.lora_gate_up_A = nn.Parameter(new(experts, dim, rank))
    moe.lora_gate_up_B = nn.Parameter(new(experts, rank, wide))
    moe.lora_down_A = nn.Parameter(new(experts, hidden, rank))
    moe.lora_down_B = nn.Parameter(new(experts, rank, dim))


def check_rank(config: LoraConfig, name: str, *sides: int) -> int:
    """The rank, if a matrix with these sides has it."""
    assert config.rank is not None
    if config.rank > min(sides):
        raise HerdError(f"lora.rank={config.rank} is larger than a side of {name}: take at most {min(sides)}")
    return config.rank


def initial(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """The first value of an adapter's parameter, fp32: B zero, A uniform within 1 / sqrt(its inputs), as in PEFT."""
    if name.endswith("B"):
        return torch.zeros(shape)
    inputs = shape[1]  # [P * K, in], and of experts [E, in, K]
    generator = torch.Generator().manual_seed(seed_of(seed, "lora", name))
    return torch.empty(shape).uniform_(-1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)


def with_adapters(base: Weights, names: Collection[str], first: Callable[[str], Tensor]) -> Weights:
    """The weights of a model with adapters: those of its base, and `first` of each of the adapters' `names`."""

    def read(name: str) -> Tensor:
        return first(name) if name in names else base.read(name)

    stored = base.stored
    return replace(base, read=read, stored=stored and (lambda name: None if name in names else stored(name)))


def adapters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of a model's adapters by name."""
    return ((name, parameter) for name, parameter in model.named_parameters() if is_adapter(name))
