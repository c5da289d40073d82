"""The planned step as one packed forward: the only place where requests become tensors.

The forward is one native call where that serves (herd.model.fused) and was found to agree with the Transformer's own
(herd.model.agreement), which serves elsewhere. What
comes back are logits for the rows after which tokens are drawn, and the log-probabilities of prompts that asked.
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
from herd.model.agreement import check_agreement
from herd.model.cache import CacheView, KVCache
from herd.model.fused import FusedForward, why_not

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
        self._fused = None
        if why_not(model.transformer, cache) is None:
            self._fused = FusedForward(model.transformer)
            check_agreement(model.transformer, self._fused)

    def run(self, step: Step[T]) -> list[Result]:
        """The results of the step's works, in their order."""
        for copy in step.copies:
            self.cache.copy_page(copy.source, copy.target, is_global=copy.is_global)
        works = list(step.works.values())
        starts = list(accumulate((work.end - work.begin for work in works), initial=0))
        positions_N = torch.cat([torch.arange(work.begin, work.end) for work in works])
        starts_S = torch.tensor(starts, dtype=torch.int32)
        # Of works whose prompt is scored all rows are read, of the others those before a token that is drawn.
        kept = [
            range(begin if work.request.scored else end - work.num_logits, end)
            for work, begin, end in zip(works, starts, starts[1:], strict=False)
        ]
        hidden_RD = self._forward(
            torch.tensor([token for work in works for token in tokens_of(work)]),
            self._images(works, starts),
            positions_N,
            self.cache.at(
                [work.request.table.pages for work in works],
                [work.request.table.local for work in works],
                positions_N,
                starts_S,
            ),
            torch.tensor([row for rows in kept for row in rows], dtype=torch.int64),
        )
        parts = hidden_RD.split([len(rows) for rows in kept])
        counts = [work.num_logits for work in works]
        drawn = [part[len(part) - count :] for part, count in zip(parts, counts, strict=True)]
        logits_RV = self._unembed(torch.cat(drawn))
        return [
            Result(logits_RV=logits, prompt_logprobs=self._prompt_logprobs(work, part))
            for work, logits, part in zip(works, logits_RV.split(counts), parts, strict=True)
        ]

    def _forward(
        self, tokens_N: Tensor, images: Images | None, positions_N: Tensor, view: CacheView, rows_R: Tensor
    ) -> Tensor:
        """Hidden states of the rows that are read."""
        transformer = self.model.transformer
        if self._fused is not None:
            embedded = None if images is None else transformer.embed(tokens_N, images)
            return self._fused(tokens_N, positions_N=positions_N, cache=view, rows_R=rows_R, embedded_ND=embedded)
        hidden_ND = transformer(tokens_N, positions_N=positions_N, starts_S=view.starts_S, images=images, cache=view)
        return hidden_ND[rows_R]

    def _unembed(self, hidden_RD: Tensor) -> Tensor:
        if self._fused is not None:
            return self._fused.unembed(hidden_RD)
        return self.model.transformer.unembed(hidden_RD).float()

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
            logits_NV = self._unembed(hidden_ND[begin : begin + len(target)])
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
