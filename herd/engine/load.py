"""`herd.load(folder)`: a model folder as an object that scores, renders and generates."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from herd.config import EngineConfig
from herd.core.device import choose_device, naming_out_of_memory
from herd.data.media.image import ImageProcessor
from herd.engine.conversation import Conversation
from herd.engine.engine import Engine
from herd.engine.model import LoadedModel
from herd.engine.pipeline import AnswerPipeline, ReplyRequest
from herd.engine.reply import Reply, join_reply
from herd.engine.sampler import SamplingParams
from herd.errors import HerdError
from herd.model.formats.source import find_source


@dataclass(frozen=True, kw_only=True)
class Model(LoadedModel):
    """An opened folder."""

    def chat(
        self,
        messages: Conversation | Sequence[Mapping[str, Any]],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Reply:
        """The assistant's reply to a conversation, or to messages as herd.engine.conversation has them; greedy if
        `params` are not given. Calls of `tools` (OpenAI's objects) come in its `tool_calls`."""
        return join_reply(self.chat_stream(messages, params, tools=tools))

    def chat_stream(
        self,
        messages: Conversation | Sequence[Mapping[str, Any]],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Iterator[Reply]:
        """As `chat`, in parts as they come; closing the iterator ends the generation."""
        if not isinstance(messages, Conversation):
            messages = Conversation(messages, tools=tools)
        elif tools:
            raise HerdError("the conversation has its own tools: leave out tools=, or set conversation.tools")
        request = self.pipeline.request(messages, params or SamplingParams())
        return self.pipeline.iterate(self.pipeline.fit(request))

    def generate(self, text: str, params: SamplingParams | None = None) -> Reply:
        """The continuation of `text`, without the chat format; greedy if `params` are not given."""
        request = ReplyRequest(prompt=self.prompt_of_text(text), params=params or SamplingParams())
        return join_reply(self.pipeline.iterate(self.pipeline.fit(request)))

    @cached_property
    def pipeline(self) -> AnswerPipeline:
        """What `chat` and `generate` use: an engine with the default options, started here, for as long as the program
        runs. Servers and the like start an engine of their own."""
        return AnswerPipeline(self, self.engine())

    def engine(self, *, draft_model: LoadedModel | None = None, record_routes: bool = False, **options: Any) -> Engine:
        """Start an engine; the options are the fields of herd.config.EngineConfig.

        `draft_model`: a smaller model of the same tokenizer, which drafts `num_speculative_tokens`. `record_routes`:
        outputs have the experts of each token.
        """
        return Engine(self, EngineConfig(**options), draft_model=draft_model, record_routes=record_routes)


def load(
    folder: Path | str,
    *,
    base: Path | str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Model:
    """Open a model in any format (herd/model/formats/source.py); `dtype` None keeps the stored precision.

    `base`: of a LoRA adapter, if that is not where the adapter says. `device`: "auto", "cpu", "cuda", "cuda:1", "mps"
    or a torch.device; what HERD_DEVICE names, else auto, if not given (herd.core.device).
    """
    source, there = find_source(Path(folder), base=None if base is None else Path(base)), choose_device(device)
    with naming_out_of_memory("take a quantised folder, a lower dtype, or another device"):
        transformer = source.transformer(dtype=dtype, device=there)
    tokenizer = source.tokenizer(transformer.config.special)
    # The embedding of other models may have spare rows, for round numbers.
    rows, spare = transformer.config.vocab_size, tokenizer.template is not None
    if tokenizer.vocab_size > rows or (tokenizer.vocab_size < rows and not spare):
        raise HerdError(f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model {rows}")
    config = transformer.config
    return Model(config=config, transformer=transformer, tokenizer=tokenizer, processor=ImageProcessor(config.vision))
