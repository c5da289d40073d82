"""Parts of a model as a smaller one: fewer layers, fewer experts, each part as it was.

A layer is worth what it changes: one minus the cosine between its input and its output (ShortGPT, arXiv 2403.03853).
The smaller model's layers have kinds by their place (global or local, a mixture or dense), so the choice is the
sequence of layers, in their order and of the right kinds, whose worth is largest. Experts of a mixture are kept by the
tokens that they got. Left out: narrower layers and experts, as their channels have no order that could be cut.

`dense` drops routers and routed experts altogether, as Llama Guard 4 is made from Scout.
"""

# N tokens, D width, E experts

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from herd.config import ModelConfig
from herd.core.batch import Batch
from herd.errors import HerdError
from herd.model.formats.weights import Weights
from herd.model.moe import MoE
from herd.model.transformer import Layer, Transformer

OF_EXPERTS = ("ffn.router.weight", "ffn.gate_up_EDF", "ffn.down_EFD")
"""Parameters of a mixture whose first axis is the experts'."""


@dataclass(frozen=True, kw_only=True)
class Worth:
    """What the parts of a model did on some text."""

    layers: list[float]
    """Mean of 1 - cosine(input, output)."""
    experts: list[Tensor | None]
    """Of each layer the tokens of each expert [E]; None of a dense one."""


@torch.no_grad()
def measure(model: Transformer, batches: Iterable[Batch]) -> Worth:
    """Read batches on the model's device."""
    sums = [0.0] * len(model.layers)
    counts: list[Tensor | None] = [None] * len(model.layers)
    tokens = 0
    hooks = []

    def watch(index: int) -> None:
        layer = model.layers[index]
        assert isinstance(layer, Layer)

        def change(_: object, inputs: tuple[Any, ...], output: Tensor) -> None:
            sums[index] += float((1 - F.cosine_similarity(inputs[0].float(), output.float(), dim=-1)).sum())

        def routed(moe: MoE, inputs: tuple[Any, ...], _: Tensor) -> None:
            logits_NE = F.linear(inputs[0].float(), moe.router.weight.float())
            chosen = torch.topk(logits_NE, moe.config.top_k, dim=-1).indices.flatten()
            count_E = torch.bincount(chosen, minlength=moe.config.num_experts).cpu()
            before = counts[index]
            counts[index] = count_E if before is None else before + count_E

        hooks.append(layer.register_forward_hook(change))
        if isinstance(layer.ffn, MoE):
            hooks.append(layer.ffn.register_forward_hook(routed))

    for index in range(len(model.layers)):
        watch(index)
    try:
        for batch in batches:
            model(batch.tokens_N, positions_N=batch.positions_N, starts_S=batch.starts_S, images=batch.images)
            tokens += len(batch.tokens_N)
    finally:
        for hook in hooks:
            hook.remove()
    return Worth(layers=[total / max(tokens, 1) for total in sums], experts=counts)


def choose_layers(config: ModelConfig, worth: list[float], num_layers: int) -> list[int]:
    """The teacher's layers that a model of `num_layers` keeps."""

    def kind(layer: int) -> tuple[bool, bool]:
        return config.is_global(layer), config.is_moe(layer)

    total = config.num_layers
    if not 1 <= num_layers <= total:
        raise HerdError(f"num_layers={num_layers} must be 1 to the {total} of the model")
    # best[i][j]: the most that the first i places are worth with layers before j, and the last layer taken.
    best = [[(0.0, -1)] * (total + 1)] + [[(-1.0, -1)] * (total + 1) for _ in range(num_layers)]
    for place in range(1, num_layers + 1):
        for end in range(1, total + 1):
            best[place][end] = (best[place][end - 1][0], -1)
            before = best[place - 1][end - 1][0]
            if before >= 0 and kind(end - 1) == kind(place - 1) and before + worth[end - 1] > best[place][end][0]:
                best[place][end] = (before + worth[end - 1], end - 1)
    chosen: list[int] = []
    end = total
    for place in range(num_layers, 0, -1):
        while best[place][end][1] < 0:
            end -= 1
        chosen.append(best[place][end][1])
        end = chosen[-1]
    return chosen[::-1]


def choose_experts(count_E: Tensor, num_experts: int) -> list[int]:
    """The experts that got most tokens, in their order."""
    return sorted(torch.topk(count_E, num_experts).indices.tolist())


def pruned(weights: Weights, layers: list[int], experts: dict[int, list[int]]) -> Weights:
    """The weights of the smaller model; `experts` are those that each kept layer that is a mixture keeps."""
    config, count = weights.config, {len(one) for one in experts.values()}
    moe = replace(config.moe, num_experts=count.pop()) if count else config.moe

    def read(name: str) -> Tensor:
        if not name.startswith("layers."):
            return weights.read(name)
        _, number, rest = name.split(".", 2)
        layer = layers[int(number)]
        tensor = weights.read(f"layers.{layer}.{rest}")
        return tensor[experts[layer]] if rest in OF_EXPERTS else tensor

    return Weights(config=replace(config, num_layers=len(layers), moe=moe), dtype=weights.dtype, read=read)


def dense(weights: Weights) -> Weights:
    """The weights without routers and routed experts: each shared expert becomes its layer's feed-forward. The output
    is that of the model whose routed experts give zeros.

    A folder has one width for all dense layers. Where layers that were dense before are wider (Maverick), the shared
    experts are filled up with channels of zeros, which give nothing; and the other way round.
    """
    config = weights.config
    mixtures = {layer for layer in range(config.num_layers) if config.is_moe(layer)}
    widths = {config.moe.ffn_dim if layer in mixtures else config.dense_ffn_dim for layer in range(config.num_layers)}
    width = max(widths)

    def read(name: str) -> Tensor:
        if not name.startswith("layers.") or ".ffn." not in name:
            return weights.read(name)
        _, number, _, part = name.split(".", 3)
        old = f"layers.{number}.ffn.{'shared.' if int(number) in mixtures else ''}{part}"
        tensor = weights.read(old)
        if part == "down.weight":
            return F.pad(tensor, (0, width - tensor.shape[1]))
        gate, up = tensor.chunk(2)
        return torch.cat([F.pad(half, (0, 0, 0, width - len(half))) for half in (gate, up)])

    moe = replace(config.moe, num_experts=1, top_k=1, every=config.num_layers + 1)
    return Weights(config=replace(config, dense_ffn_dim=width, moe=moe), dtype=weights.dtype, read=read)
