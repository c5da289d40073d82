"""An opened model folder: what scoring, reading and the engine compute on; `herd.load` adds the engine (load.py)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from herd.config import ModelConfig
from herd.core.batch import Images
from herd.core.device import send
from herd.data.media.image import ImageProcessor, Tiles, normalise
from herd.data.tokens.chat import render_messages
from herd.data.tokens.tokenizer import Tokenizer
from herd.engine.structure import Structures
from herd.errors import HerdError
from herd.model.pack import pack_sequences
from herd.model.transformer import Transformer

TILES_AT_ONCE = 256
"""Tiles that are encoded at one time."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a request begins with: token ids, and a cut picture for each run of image tokens among them."""

    token_ids: list[int]
    tiles: tuple[Tiles, ...] = ()

    def pixels(self, tiles: Sequence[int]) -> Tensor:
        """Of the tiles with these numbers, over all pictures."""
        flat = [one for part in self.tiles for one in part.pixels]
        return torch.stack([flat[tile] for tile in tiles])


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A transformer with its tokenizer and its processor of pictures."""

    config: ModelConfig
    transformer: Transformer
    tokenizer: Tokenizer
    processor: ImageProcessor

    @property
    def device(self) -> torch.device:
        return self.transformer.embedding.weight.device

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
    ) -> Prompt:
        """OpenAI-style messages and tools as a prompt; see herd.data.tokens.chat for the parts."""
        rendered = render_messages(
            self.tokenizer, self.processor, messages, tools=tools, add_generation_prompt=add_generation_prompt
        )
        return Prompt(token_ids=rendered.ids, tiles=tuple(rendered.tiles))

    @torch.inference_mode()
    def logits(self, token_ids: list[int], images: Sequence[Image.Image] | None = None) -> Tensor:
        """Logits [N, V] of one document whose image tokens are already in `token_ids`."""
        prompt = Prompt(token_ids=token_ids, tiles=tuple(self.processor.tiles(image) for image in images or ()))
        pack = pack_sequences([token_ids], device=self.device)
        hidden_ND = self.transformer.forward_packed(pack, images=self.encode([prompt]))
        return self.transformer.unembed(hidden_ND)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[Prompt]) -> Images | None:
        """Vision features of all pictures of prompts that are packed one after another; None without pictures."""
        tiles, rows, begin = [], [], 0
        for prompt in prompts:
            rows.append(self.patch_rows(prompt) + begin)
            tiles += [part.pixels for part in prompt.tiles]
            begin += len(prompt.token_ids)
        if not tiles:
            return None
        features = [self.encode_tiles(part) for part in torch.cat(tiles).split(TILES_AT_ONCE)]
        return Images(tiles=torch.cat(features), rows=send(torch.cat(rows), self.device), encoded=True)

    @torch.inference_mode()
    def encode_tiles(self, pixels: Tensor) -> Tensor:
        """Features [tiles * tokens of a tile, D] of tiles [_, 3, side, side] as the processor cuts them."""
        vision = self.transformer.vision
        assert vision is not None, "ImageProcessor refuses pictures for a model of text alone"
        weight = vision.projector.weight
        features: Tensor = vision(normalise(send(pixels, weight.device)).to(weight.dtype)).flatten(0, 1)
        return features

    def patch_rows(self, prompt: Prompt) -> Tensor:
        """Where the tokens of the prompt's tiles are, in their order. Raises HerdError where their number is wrong."""
        vision, patch = self.config.vision, self.config.special.patch
        if vision is None or patch is None:
            return torch.zeros(0, dtype=torch.int64)  # the processor has refused pictures
        rows = torch.nonzero(torch.tensor(prompt.token_ids) == patch)[:, 0]
        expected = sum(len(part.pixels) for part in prompt.tiles) * vision.tokens_per_tile
        if len(rows) != expected:
            raise HerdError(f"the prompt has {len(rows)} patch tokens, its pictures have {expected}")
        return rows

    def prompt_of_text(self, text: str) -> Prompt:
        """A text to be continued as it is, without the chat format."""
        return Prompt(token_ids=[self.config.special.bos, *self.tokenizer.encode(text)])

    @cached_property
    def structures(self) -> Structures:
        """The forms that answers may be asked to have."""
        return Structures(self.tokenizer, vocab_size=self.config.vocab_size, stop=self.config.special.stop)
