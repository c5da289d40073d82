"""A yardstick: Llama 4's decoder in as few lines of plain PyTorch as make it sparse, trained in pure bf16.

Experts by one sorted `grouped_mm`, attention by SDPA on batches of documents of one length, one cross-entropy over all
logits. It shows what a minimal implementation reaches: no router in fp32, no master weights, no packing, no balance, no
cache.
"""

# B documents, T tokens of each, D width, H query heads, K key heads, C head width, E experts, R = B * T rows

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from herd.config import ModelConfig


def matrix(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * 0.02)


class LeanLayer(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.rotates, self.is_moe = config, not config.is_global(layer), config.is_moe(layer)
        dim, heads = config.dim, config.num_heads * config.head_dim
        hidden = config.moe.ffn_dim if self.is_moe else config.dense_ffn_dim
        self.norms = nn.Parameter(torch.ones(2, dim))
        self.qkv, self.out = matrix(heads + 2 * config.num_kv_heads * config.head_dim, dim), matrix(dim, heads)
        self.gate_up, self.down = matrix(2 * hidden, dim), matrix(dim, hidden)
        if self.is_moe:
            experts = config.moe.num_experts
            self.router = matrix(experts, dim)
            self.gate_up_EDF, self.down_EFD = matrix(experts, dim, 2 * hidden), matrix(experts, hidden, dim)

    def forward(self, x_BTD: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
        size, eps = x_BTD.shape[-1:], self.config.norm_eps
        x_BTD = x_BTD + self.attention(F.rms_norm(x_BTD, size, self.norms[0], eps), cos_TC, sin_TC)
        normed_BTD = F.rms_norm(x_BTD, size, self.norms[1], eps)
        gate, up = F.linear(normed_BTD, self.gate_up).chunk(2, -1)
        x_BTD = x_BTD + F.linear(F.silu(gate) * up, self.down)
        return x_BTD + self.routed(normed_BTD.flatten(0, 1)).view_as(x_BTD) if self.is_moe else x_BTD

    def attention(self, x_BTD: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
        config = self.config
        heads, kv_heads, width = config.num_heads, config.num_kv_heads, config.head_dim
        qkv = F.linear(x_BTD, self.qkv).unflatten(-1, (-1, width)).transpose(1, 2)
        qk, v = qkv.split([heads + kv_heads, kv_heads], dim=1)
        if self.rotates:
            one, two = qk.chunk(2, -1)
            qk = torch.cat([one * cos_TC - two * sin_TC, two * cos_TC + one * sin_TC], -1)
            qk = F.rms_norm(qk, (width,), None, config.norm_eps)
        q, k = qk.split([heads, kv_heads], dim=1)
        count, length = x_BTD.shape[0], x_BTD.shape[1]
        if self.rotates and length > config.chunk_size:  # chunks as documents of their own
            fold = (-1, config.chunk_size)
            q, k, v = (x.unflatten(2, fold).transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        if len(out) > count:
            out = out.unflatten(0, (count, -1)).transpose(1, 2).flatten(2, 3)
        return F.linear(out.transpose(1, 2).flatten(2), self.out)

    def routed(self, x_RD: Tensor) -> Tensor:
        chosen_R, expert_R = F.linear(x_RD, self.router).float().max(-1)
        order_R = torch.argsort(expert_R, stable=True)
        ends_E = torch.bincount(expert_R, minlength=len(self.router)).cumsum(0).int()
        rows_RD = (x_RD * torch.sigmoid(chosen_R)[:, None].to(x_RD.dtype))[order_R]
        gate, up = F.grouped_mm(rows_RD, self.gate_up_EDF, offs=ends_E).chunk(2, -1)
        y_RD = F.grouped_mm(F.silu(gate) * up, self.down_EFD, offs=ends_E)
        return torch.zeros_like(y_RD).index_copy(0, order_R, y_RD)


class Lean(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding, self.unembedding = (matrix(config.vocab_size, config.dim) for _ in range(2))
        self.layers = nn.ModuleList([LeanLayer(config, layer) for layer in range(config.num_layers)])
        self.norm = nn.Parameter(torch.ones(config.dim))

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        config, x_BTD = self.config, F.embedding(tokens_BT, self.embedding)
        frequency_C = config.rope_theta ** -(torch.arange(0, config.head_dim, 2).float() / config.head_dim)
        angle_TC = torch.outer(torch.arange(tokens_BT.shape[1]).float(), frequency_C)
        cos_TC, sin_TC = angle_TC.cos().to(x_BTD.dtype), angle_TC.sin().to(x_BTD.dtype)
        for layer in self.layers:
            x_BTD = layer(x_BTD, cos_TC, sin_TC)
        x_BTD = F.rms_norm(x_BTD, x_BTD.shape[-1:], self.norm, config.norm_eps)
        return F.cross_entropy(F.linear(x_BTD.flatten(0, 1), self.unembedding), targets_BT.flatten())
