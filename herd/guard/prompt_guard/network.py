"""The classifier: hashed character n-grams to word vectors, gated convolutions, an attention layer, pooling, logits.

A word's vector is the mean of its features' rows of one table, so the network reads characters, yet convolves over
words. Pooling takes the mean, the maximum and a learnt average, so that one sentence in a window of 512 words counts.
The energy of a text is E(x) = -logsumexp(logits) (arXiv 2010.03759); see `train`.
"""

# B windows, L words of a window, U different words of the batch, G features of a word, D width, H heads

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from herd.errors import HerdError


@dataclass(frozen=True, kw_only=True)
class PromptGuardConfig:
    """The shape of a prompt guard."""

    buckets: int = 1 << 15
    """Rows of the table of features."""
    dim: int = 64
    """Width."""
    num_layers: int = 2
    """Gated convolutions, of dilation 1, 2, 4 …"""
    kernel: int = 5
    """Words that a convolution sees."""
    num_heads: int = 4
    """Heads of the attention layer."""
    window: int = 512
    """Words that are scored at a time."""
    stride: int = 256
    """Words between the beginnings of two windows; at most half a window, so that a sentence is whole in one."""

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise HerdError(f"dim={self.dim} is not divisible by num_heads={self.num_heads}")
        if not 0 < self.stride <= self.window // 2:
            raise HerdError(f"stride={self.stride} must be from 1 to half of window={self.window}")
        if self.kernel % 2 == 0:
            raise HerdError(f"kernel={self.kernel} must be odd, so that a word is in the middle")


class GatedConvolution(nn.Module):
    """x + W₂(conv(norm x) · σ(gate))."""

    def __init__(self, config: PromptGuardConfig, dilation: int) -> None:
        super().__init__()
        dim = config.dim
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        reach = dilation * (config.kernel // 2)
        self.mix = nn.Conv1d(dim, dim, config.kernel, dilation=dilation, padding=reach, groups=dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x_BLD: Tensor, mask_BL1: Tensor) -> Tensor:
        y_BLD = self.norm(x_BLD) * mask_BL1
        y_BLD = self.mix(y_BLD.transpose(1, 2)).transpose(1, 2) + y_BLD
        value, gate = self.up(y_BLD).chunk(2, dim=-1)
        return x_BLD + self.down(value * functional.silu(gate))


class Attention(nn.Module):
    """Plain self-attention over a window, without positions: the convolutions know the order."""

    def __init__(self, config: PromptGuardConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.norm = nn.RMSNorm(config.dim, eps=1e-6)
        self.qkv, self.out = nn.Linear(config.dim, 3 * config.dim), nn.Linear(config.dim, config.dim)

    def forward(self, x_BLD: Tensor, mask_BL1: Tensor) -> Tensor:
        batch, length, dim = x_BLD.shape
        heads = self.qkv(self.norm(x_BLD)).view(batch, length, 3, self.num_heads, dim // self.num_heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        mask = mask_BL1.transpose(1, 2).unsqueeze(1) > 0
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return x_BLD + self.out(y.transpose(1, 2).reshape(batch, length, dim))


class Network(nn.Module):
    """Windows of words to logits (benign, attack)."""

    def __init__(self, config: PromptGuardConfig) -> None:
        super().__init__()
        self.config, dim = config, config.dim
        self.table = nn.Embedding(config.buckets, dim, padding_idx=0)
        self.word_norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(GatedConvolution(config, 1 << depth) for depth in range(config.num_layers))
        self.attention = Attention(config)
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.select = nn.Linear(dim, 1)
        self.hidden, self.head = nn.Linear(3 * dim, dim), nn.Linear(dim, 2)
        self.dropout = nn.Dropout(0.1)
        nn.init.normal_(self.table.weight, std=0.5)
        with torch.no_grad():
            self.table.weight[0] = 0

    def forward(self, features_UG: Int[Tensor, "u g"], index_BL: Int[Tensor, "b l"]) -> Float[Tensor, "b 2"]:
        """Row 0 of `features_UG` is padding."""
        known_UG1 = (features_UG > 0).unsqueeze(-1).float()
        sums_UD = (self.table(features_UG) * known_UG1).sum(1)
        words_UD = self.word_norm(sums_UD / known_UG1.sum(1).clamp(min=1).sqrt())
        mask_BL1 = (index_BL > 0).unsqueeze(-1).float()
        x_BLD = self.dropout(words_UD[index_BL]) * mask_BL1
        for layer in self.layers:
            x_BLD = layer(x_BLD, mask_BL1)
        x_BLD = self.norm(self.attention(x_BLD, mask_BL1))
        count_B1 = mask_BL1.sum(1).clamp(min=1)
        lowest = (1 - mask_BL1) * -1e4
        weight_BL1 = (self.select(x_BLD) + lowest).softmax(1)
        pooled = ((x_BLD * mask_BL1).sum(1) / count_B1, (x_BLD + lowest).amax(1), (x_BLD * weight_BL1).sum(1))
        return self.head(self.dropout(functional.gelu(self.hidden(torch.cat(pooled, dim=-1)))))

    @property
    def num_parameters(self) -> int:
        """All of them, the table included."""
        return sum(parameter.numel() for parameter in self.parameters())


def energy(logits_B2: Float[Tensor, "b 2"]) -> Float[Tensor, "b"]:
    """E(x) = -logsumexp(logits)."""
    return -torch.logsumexp(logits_B2, dim=-1)
