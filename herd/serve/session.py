"""What terminal and server share: sampling defaults, the room in the context, and answers that can be stopped."""

import dataclasses
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from typing import TYPE_CHECKING

from herd.core.errors import HerdError
from herd.core.files import read_json
from herd.engine.answer import Piece
from herd.engine.engine import Engine
from herd.engine.sampler import SamplingParams, choice_seeds

if TYPE_CHECKING:
    from herd.engine.load import Prompt


def defaults(folder: Path) -> SamplingParams:
    """The sampling that the folder's generation_config.json asks for; greedy where it says nothing, as transformers."""
    path = folder / "generation_config.json"
    config = read_json(path) if path.exists() else {}
    if not config.get("do_sample"):
        return SamplingParams()
    fields = {"temperature": float, "top_p": float, "top_k": int, "min_p": float, "repetition_penalty": float}
    said = {name: kind(config[name]) for name, kind in fields.items() if config.get(name) is not None}
    return SamplingParams(**{"temperature": 1.0, **said})


def fitted(prompt: "Prompt", params: SamplingParams, *, max_tokens: int | None, context: int) -> SamplingParams:
    """`params` for an answer of at most `max_tokens` (None: as many as the context of the model has room for).

    Raises HerdError when the prompt, or the prompt and `max_tokens` more, do not fit into `context` tokens.
    """
    num_tokens = len(prompt.token_ids)
    room = context - num_tokens
    if room < 1:
        raise HerdError(
            f"the conversation has {num_tokens} tokens, the model's context {context}: leave out earlier messages"
        )
    if max_tokens is not None and max_tokens > room:
        raise HerdError(
            f"{num_tokens} tokens of conversation and max_tokens={max_tokens} are more than the model's context of "
            f"{context}: lower max_tokens to {room} or leave out earlier messages"
        )
    return dataclasses.replace(params, max_tokens=max_tokens or room)


def choices(params: SamplingParams, count: int) -> list[SamplingParams]:
    """Params of several answers to one request; under a seed each has one that is derived from it."""
    if params.seed is None:
        return [params] * count
    return [dataclasses.replace(params, seed=seed) for seed in choice_seeds(params.seed, count)]


def answering(
    engine: Engine, prompt: "Prompt", params: SamplingParams, *, caller: str = "", salt: str = ""
) -> AbstractAsyncContextManager[AsyncIterator[Piece]]:
    """The pieces of an answer, for `async with`: leaving the block cancels the generation."""
    return aclosing(engine.generate(prompt, params, caller=caller, salt=salt))
