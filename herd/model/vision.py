"""The vision encoder of Llama 4: one tile in, a few tokens of the text model's width out.

Patches + a class token appended *last*, learned positions, pre-norm transformer with 2-D rotary positions (the class
token unturned), post-norm, class token dropped; pixel shuffle joins 2 x 2 patches; adapter (GELU after both layers);
projector to the text width. Biases in the encoder, none after it. Source: llama-models 0.3.0, transformers 5.23.
"""

# T tiles, P patches + 1, D width, H heads, C head width, Q tokens a tile, R tokens of all tiles

from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from herd.config import VisionConfig
from herd.model.precision import batch_invariant

FEWEST_ADAPTER_ROWS = 32
"""Rows of the adapter's products, for `batch_invariant`: a small tile has four, and the library was seen to change its
kernel between 12 and 16."""


def rotations_2d(config: VisionConfig) -> Tensor:
    """Rotations by column and row (counted from 1), [P, C / 2] complex; zero for the class token."""
    width = config.dim // config.num_heads // 2
    frequency = 1.0 / config.rope_theta ** (torch.arange(0, width, 2).float() / width)
    index = torch.arange(config.grid**2)
    columns = (index % config.grid + 1)[:, None] * frequency
    rows = (index // config.grid + 1)[:, None] * frequency
    angle = torch.cat([columns, rows], dim=-1)
    angle = torch.cat([angle, torch.zeros(1, angle.shape[1])])
    return torch.polar(torch.ones_like(angle), angle)


@lru_cache(maxsize=16)
def rotations_on(config: VisionConfig, device: torch.device) -> Tensor:
    """`rotations_2d` on a device, sent there once."""
    with torch.inference_mode(False):
        return rotations_2d(config).to(device)


class VisionLayer(nn.Module):
    """Pre-norm attention and GELU feed-forward, with biases."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.attention_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.mlp_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.up = nn.Linear(config.dim, config.mlp_dim)
        self.down = nn.Linear(config.mlp_dim, config.dim)

    def forward(self, x_TPD: Tensor, turn_PC: Tensor) -> Tensor:
        qkv = self.qkv(self.attention_norm(x_TPD)).unflatten(-1, (3, self.num_heads, -1))
        qk = torch.view_as_complex(qkv[:, :, :2].float().unflatten(-1, (-1, 2)))
        qk = torch.view_as_real(qk * turn_PC[:, None, None]).flatten(-2).to(x_TPD.dtype)
        q, k, v = (x.transpose(1, 2) for x in (qk[:, :, 0], qk[:, :, 1], qkv[:, :, 2]))
        if torch.is_grad_enabled() and q.device.type == "cpu":
            # Seven times as fast as the fused CPU kernel with its backward, at 65 patches (docs/LOG.md).
            out = torch.softmax((q * q.shape[-1] ** -0.5) @ k.mT, dim=-1) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        out = out.transpose(1, 2).flatten(2)
        x_TPD = x_TPD + self.out(out)
        return x_TPD + self.down(F.gelu(self.up(self.mlp_norm(x_TPD))))


class VisionEncoder(nn.Module):
    """Normalised tiles to features of the text model's width."""

    def __init__(self, config: VisionConfig, text_dim: int) -> None:
        super().__init__()
        self.config = config
        num_positions = config.grid**2 + 1
        self.patches = nn.Linear(3 * config.patch_size**2, config.dim, bias=False)
        self.class_token = nn.Parameter(torch.empty(config.dim))
        self.positions = nn.Parameter(torch.empty(num_positions, config.dim))
        self.norm_before = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.layers = nn.ModuleList([VisionLayer(config) for _ in range(config.num_layers)])
        self.norm_after = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.adapter_in = nn.Linear(4 * config.dim, config.adapter_dim, bias=False)
        self.adapter_out = nn.Linear(config.adapter_dim, config.adapter_dim, bias=False)
        self.projector = nn.Linear(config.adapter_dim, text_dim, bias=False)

    def encode(self, tiles: Float[Tensor, "t 3 side side"]) -> Float[Tensor, "t p d"]:
        """Patch states after the last norm, the class token dropped."""
        config = self.config
        x_TPD = self.patches(cut_patches(tiles, config.patch_size))
        x_TPD = torch.cat([x_TPD, self.class_token.expand(len(tiles), 1, -1)], dim=1)
        x_TPD = self.norm_before(x_TPD + self.positions)
        turn_PC = rotations_on(config, tiles.device)
        for layer in self.layers:
            x_TPD = layer(x_TPD, turn_PC)
        return self.norm_after(x_TPD)[:, :-1]

    def forward(self, tiles: Float[Tensor, "t 3 side side"]) -> Float[Tensor, "t q d"]:
        x_TQD = pixel_shuffle(self.encode(tiles), self.config.grid)
        # A tile's features are the same to the bit whatever number of tiles is encoded with it.
        x_RD = batch_invariant(self.adapt, x_TQD.flatten(0, 1), fewest=FEWEST_ADAPTER_ROWS)
        return x_RD.unflatten(0, x_TQD.shape[:2])

    def adapt(self, x_RD: Tensor) -> Tensor:
        """Joined patches to features of the text model's width."""
        features_RD: Tensor = self.projector(F.gelu(self.adapter_out(F.gelu(self.adapter_in(x_RD)))))
        return features_RD


def cut_patches(tiles: Float[Tensor, "t 3 side side"], size: int) -> Float[Tensor, "t p pixels"]:
    """Squares row by row, each as channel, row, column. One run of memory: of F.unfold's transposed view, a product
    would copy the weights for every tile."""
    grid = tiles.shape[-1] // size
    x = tiles.view(len(tiles), 3, grid, size, grid, size)  # tile, channel, row, within, column, within
    return x.permute(0, 2, 4, 1, 3, 5).reshape(len(tiles), grid * grid, 3 * size * size)


def pixel_shuffle(x_TPD: Float[Tensor, "t p d"], grid: int) -> Float[Tensor, "t q d4"]:
    """Join each 2 x 2 square of patches into one token of four times the width."""
    half, width = grid // 2, x_TPD.shape[-1]
    x = x_TPD.view(len(x_TPD), half, 2, half, 2, width)  # tile, row, within row, column, within column, width
    return x.permute(0, 1, 3, 2, 4, 5).reshape(len(x_TPD), half * half, 4 * width)
