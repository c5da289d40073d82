"""The planned step as one packed forward: the only place where requests become tensors.

What comes back are logits for the rows after which tokens are drawn, and the log-probabilities of prompts that asked.
"""

# N tokens of the pack, D width, V vocabulary, R rows of one request

import hashlib
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor

from herd.core.batch import Images
from herd.core.errors import HerdError
from herd.engine.load import Model, Prompt
from herd.engine.scheduler import Request, Step, Work
from herd.model.cache import KVCache

LOGIT_ROWS = 128
"""Rows of a prompt whose logits exist at one time."""


@dataclass(kw_only=True, eq=False)
class TokenRequest(Request):
    """A request with its tokens."""

    prompt: Prompt
    ids: list[int]
    """As `content`, but with the ids of pictures' tokens; the same list where there are no pictures."""
    features: Images | None = None
    """The pictures, encoded, while the prompt is read."""
    scored: bool = False
    """Whether log-probabilities of the prompt are asked for."""

    def append(self, token: int) -> None:
        self.ids.append(token)
        if self.content is not self.ids:
            self.content.append(token)


T = TypeVar("T", bound=TokenRequest)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one piece of work gave."""

    logits_RV: Tensor
    """Behind the last `num_logits` tokens of the work, fp32."""
    prompt_logprobs: list[float]
    """Of the prompt's tokens that follow those of the work."""


class Runner:
    """Computes steps over one cache."""

    def __init__(self, model: Model, cache: KVCache) -> None:
        self.model, self.cache = model, cache

    def run(self, step: Step[T]) -> list[Result]:
        """The results of the step's works, in their order."""
        for copy in step.copies:
            self.cache.copy_page(copy.source, copy.target, is_global=copy.is_global)
        works = list(step.works.values())
        starts = list(accumulate((work.end - work.begin for work in works), initial=0))
        positions_N = torch.cat([torch.arange(work.begin, work.end) for work in works])
        starts_S = torch.tensor(starts, dtype=torch.int32)
        hidden_ND = self.model.transformer(
            torch.tensor([token for work in works for token in tokens_of(work)]),
            positions_N=positions_N,
            starts_S=starts_S,
            images=self._images(works, starts),
            cache=self.cache.at(
                [work.request.table.pages for work in works],
                [work.request.table.local for work in works],
                positions_N,
                starts_S,
            ),
        )
        rows = [row for work, end in zip(works, starts[1:], strict=True) for row in range(end - work.num_logits, end)]
        logits_RV = self.model.transformer.unembed(hidden_ND[rows]).float()
        return [
            Result(logits_RV=part, prompt_logprobs=self._prompt_logprobs(work, hidden_ND[begin:end]))
            for work, part, begin, end in zip(
                works, logits_RV.split([work.num_logits for work in works]), starts, starts[1:], strict=False
            )
        ]

    def _images(self, works: list[Work[T]], starts: list[int]) -> Images | None:
        """Features of the pictures' tokens among the works."""
        tiles, rows = [], []
        for work, start in zip(works, starts, strict=False):
            request = work.request
            if not request.prompt.tiles or work.begin >= request.num_prompt:
                continue
            if request.features is None:
                request.features = self.model.encode([request.prompt])
            assert request.features is not None
            inside = (request.features.rows >= work.begin) & (request.features.rows < work.end)
            tiles.append(request.features.tiles[inside])
            rows.append(request.features.rows[inside] - work.begin + start)
            if work.end >= request.num_prompt:
                request.features = None
        return Images(tiles=torch.cat(tiles), rows=torch.cat(rows), encoded=True) if tiles else None

    def _prompt_logprobs(self, work: Work[T], hidden_ND: Tensor) -> list[float]:
        request = work.request
        if not request.scored:
            return []
        targets_N = torch.tensor(request.ids[work.begin + 1 : min(work.end + 1, request.num_prompt)])
        logprobs: list[float] = []
        for begin in range(0, len(targets_N), LOGIT_ROWS):
            target = targets_N[begin : begin + LOGIT_ROWS]
            logits_NV = self.model.transformer.unembed(hidden_ND[begin : begin + len(target)]).float()
            logprobs += torch.log_softmax(logits_NV, -1).gather(1, target[:, None])[:, 0].tolist()
        return logprobs


def tokens_of(work: Work[T]) -> list[int]:
    request, known = work.request, len(work.request.ids)
    return request.ids[work.begin : work.end] + request.draft[max(0, work.begin - known) : max(0, work.end - known)]


def content_of(prompt: Prompt, model: Model) -> list[int]:
    """The prompt's tokens with each patch of a picture as a number of its own, by the picture's pixels."""
    ids, vision, patch = prompt.token_ids, model.config.vision, model.config.special.patch
    if vision is None or patch is None:
        return ids
    count = ids.count(patch)
    expected = sum(len(tiles.pixels) for tiles in prompt.tiles) * vision.tokens_per_tile
    if count != expected:
        raise HerdError(f"{count} patch tokens stand in the prompt, its pictures have {expected}")
    if not count:
        return ids
    patches = (
        -(int.from_bytes(digest, "little") << 32) - index - 1
        for tiles in prompt.tiles
        for digest in [hashlib.blake2b(tiles.pixels.numpy().tobytes(), digest_size=16).digest()]
        for index in range(len(tiles.pixels) * vision.tokens_per_tile)
    )
    return [next(patches) if token == patch else token for token in ids]
