"""`herd.load(folder)`: a model folder as an object that scores, renders and generates."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from herd.config import ModelConfig
from herd.core.batch import Images
from herd.core.errors import HerdError
from herd.data.chat import render_messages
from herd.data.image import ImageProcessor, Tiles, normalise
from herd.data.tokenizer import Tokenizer
from herd.engine.structure import Structures
from herd.model.formats.source import find_source
from herd.model.transformer import Transformer

if TYPE_CHECKING:
    from herd.engine.conversation import Conversation
    from herd.engine.engine import Engine
    from herd.engine.pipeline import AnswerPipeline
    from herd.engine.reply import Reply
    from herd.engine.sampler import SamplingParams


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a request begins with: token ids, and a cut picture for each run of image tokens among them."""

    token_ids: list[int]
    tiles: tuple[Tiles, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Model:
    """An opened folder."""

    config: ModelConfig
    transformer: Transformer
    tokenizer: Tokenizer
    processor: ImageProcessor

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
    ) -> Prompt:
        """OpenAI-style messages and tools as a prompt; see herd.data.chat for the parts."""
        rendered = render_messages(
            self.tokenizer, self.processor, messages, tools=tools, add_generation_prompt=add_generation_prompt
        )
        return Prompt(token_ids=rendered.ids, tiles=tuple(rendered.tiles))

    @torch.inference_mode()
    def logits(self, token_ids: list[int], images: Sequence[Image.Image] | None = None) -> Tensor:
        """Logits [N, V] of one document whose image tokens are already in `token_ids`."""
        prompt = Prompt(token_ids=token_ids, tiles=tuple(self.processor.tiles(image) for image in images or ()))
        count = len(token_ids)
        hidden_ND = self.transformer(
            torch.tensor(token_ids),
            positions_N=torch.arange(count),
            starts_S=torch.tensor([0, count], dtype=torch.int32),
            images=self.encode([prompt]),
        )
        return self.transformer.unembed(hidden_ND)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[Prompt]) -> Images | None:
        """Vision features of all pictures of prompts that lie end to end in a pack; None without pictures."""
        pixels = [tiles.pixels for prompt in prompts for tiles in prompt.tiles]
        vision, patch = self.transformer.vision, self.config.special.patch
        if vision is None or patch is None:
            return None  # the processor has refused pictures
        ids = torch.tensor([token for prompt in prompts for token in prompt.token_ids])
        rows = torch.nonzero(ids == patch)[:, 0]
        expected = sum(map(len, pixels)) * vision.config.tokens_per_tile
        if len(rows) != expected:
            raise HerdError(f"{len(rows)} patch tokens stand in the prompt, its pictures have {expected}")
        if not pixels:
            return None
        dtype = vision.projector.weight.dtype
        parts = [vision(normalise(part).to(dtype)).flatten(0, 1) for part in torch.cat(pixels).split(256)]
        return Images(tiles=torch.cat(parts), rows=rows, encoded=True)

    @cached_property
    def structures(self) -> Structures:
        """The forms that answers may be asked to have."""
        return Structures(self.tokenizer, vocab_size=self.config.vocab_size, stop=self.config.special.stop)

    def prompt_of_text(self, text: str) -> Prompt:
        """A text to be continued as it is, without the chat format."""
        return Prompt(token_ids=[self.config.special.bos, *self.tokenizer.encode(text)])

    def chat(
        self,
        messages: "Conversation | Sequence[Mapping[str, Any]]",
        params: "SamplingParams | None" = None,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> "Reply":
        """The assistant's reply to a conversation, or to messages as herd.engine.conversation has them; greedy if
        `params` are not given. Calls of `tools` (OpenAI's objects) come in its `tool_calls`."""
        from herd.engine.reply import join_reply

        return join_reply(self.chat_stream(messages, params, tools=tools))

    def chat_stream(
        self,
        messages: "Conversation | Sequence[Mapping[str, Any]]",
        params: "SamplingParams | None" = None,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> "Iterator[Reply]":
        """As `chat`, in parts as they come; to close the iterator ends the generation."""
        from herd.engine.conversation import Conversation
        from herd.engine.sampler import SamplingParams

        if not isinstance(messages, Conversation):
            messages = Conversation(messages, tools=tools)
        elif tools:
            raise HerdError("the conversation has its own tools: leave out tools=, or set conversation.tools")
        request = self.pipeline.request(messages, params or SamplingParams())
        return self.pipeline.iterate(self.pipeline.fit(request))

    def generate(self, text: str, params: "SamplingParams | None" = None) -> "Reply":
        """How `text` goes on, without the chat format; greedy if `params` are not given."""
        from herd.engine.pipeline import ReplyRequest
        from herd.engine.reply import join_reply
        from herd.engine.sampler import SamplingParams

        request = ReplyRequest(prompt=self.prompt_of_text(text), params=params or SamplingParams())
        return join_reply(self.pipeline.iterate(self.pipeline.fit(request)))

    @cached_property
    def pipeline(self) -> "AnswerPipeline":
        """What `chat` and `generate` use: an engine with the default options, started here, for as long as the program
        runs. Servers and the like start an engine of their own."""
        from herd.engine.pipeline import AnswerPipeline

        return AnswerPipeline(self, self.engine())

    def engine(self, **options: Any) -> "Engine":
        """Start an engine; the options are the fields of herd.engine.engine.EngineConfig."""
        from herd.engine.engine import Engine, EngineConfig

        return Engine(self, EngineConfig(**options))


def load(folder: Path | str, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Model:
    """Open a model in any format (herd/model/formats/source.py); `dtype` None keeps the stored precision."""
    source = find_source(Path(folder))
    transformer = source.transformer(dtype=dtype, device=device)
    tokenizer = source.tokenizer(transformer.config.special)
    # A kin's embedding may have rows to spare, for the sake of round numbers.
    rows, spare = transformer.config.vocab_size, tokenizer.template is not None
    if tokenizer.vocab_size > rows or (tokenizer.vocab_size < rows and not spare):
        raise HerdError(f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model {rows}")
    config = transformer.config
    return Model(config=config, transformer=transformer, tokenizer=tokenizer, processor=ImageProcessor(config.vision))
