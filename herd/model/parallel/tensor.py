"""Tensor parallelism (Megatron, arXiv 1909.08053): each rank computes some heads and a part of every hidden width.

The first matrix of a block (q, k, v; gate and up) is split by its outputs, the second by its inputs, whose partial
results are summed: one sum forward and one backward a block. Norms, router and embedding are computed by every rank on
the same tokens. Of the tokens that are learnt each rank takes a part to the unembedding (see pieces), so the hidden
states' gradient is summed too.

PyTorch's `parallelize_module` cuts a matrix into equal runs of rows, which would give one rank the queries and another
the values of our fused matrices; so the cuts are our own (see layout).
"""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from herd.errors import HerdError
from herd.model.attention import Attention
from herd.model.moe import FeedForward
from herd.model.parallel.mesh import Mesh, copy_in, sum_out
from herd.model.transformer import Transformer


def check(model: Transformer, size: int) -> None:
    """Refuse degrees that heads and hidden widths cannot be divided by."""
    config = model.config
    for name, value in (
        ("num_kv_heads", config.num_kv_heads),
        ("moe.ffn_dim", config.moe.ffn_dim),
        ("dense_ffn_dim", config.dense_ffn_dim),
    ):
        if value % size:
            raise HerdError(f"parallel tensor={size} does not divide {name}={value}: take a degree that does")


def split_blocks(model: Transformer, mesh: Mesh) -> None:
    """Have the language model's blocks work with their parts; the parameters are cut elsewhere."""
    size = mesh.sizes["tensor"]

    def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (copy_in(inputs[0], mesh, "tensor"), *inputs[1:])

    def after(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return sum_out(output, mesh, "tensor")

    for module in model.layers.modules():
        if isinstance(module, Attention):
            heads, kv_heads = module.config.num_heads // size, module.config.num_kv_heads // size
            module.config = replace(module.config, num_heads=heads, num_kv_heads=kv_heads)
            module.qkv.register_forward_pre_hook(before)
            module.out.register_forward_hook(after)
        elif isinstance(module, FeedForward):
            module.gate_up.register_forward_pre_hook(before)
            module.down.register_forward_hook(after)
    # Not a view: FSDP hooks into what a model returns.
    model.register_forward_hook(lambda _, __, hidden_ND: copy_in(hidden_ND, mesh, "tensor").clone())
