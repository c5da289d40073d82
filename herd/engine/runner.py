"""The planned step on the model: tiles are encoded, pages copied, and all tokens computed as one packed forward.

The forward is one native call where that serves (herd.model.fused) and was found to agree with the Transformer's own
(herd.model.agreement), which serves elsewhere. The results are logits for the rows after which tokens are drawn, and
the log-probabilities of prompts that asked for them. A request whose pictures cannot be encoded fails alone.
"""

# N tokens of the pack, D width, V vocabulary, R rows of one request, J = mixture layers * top_k

import hashlib
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from herd.core.batch import Images
from herd.core.device import send
from herd.engine.model import LoadedModel, Prompt
from herd.engine.scheduler import Request, ScheduledRequest, Step
from herd.model.agreement import check_agreement
from herd.model.cache import CacheView, KVCache
from herd.model.fused import FusedForward, why_not
from herd.model.pack import Pack, pack_sequences

LOGIT_ROWS = 128
"""Rows of a prompt whose logits exist at one time."""


@dataclass(kw_only=True, eq=False)
class TokenRequest(Request):
    """A request with its tokens."""

    prompt: Prompt
    ids: list[int]
    """As `content`, but with the ids of pictures' tokens; the same list where there are no pictures."""
    patch_rows: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """Where the tokens of the pictures' tiles are in the prompt, in their order."""
    scored: bool = False
    """Whether log-probabilities of the prompt are asked for."""
    num_top: int = 0
    """Of how many likeliest tokens beside them."""

    def append(self, token: int) -> None:
        self.ids.append(token)
        if self.content is not self.ids:
            self.content.append(token)


T = TypeVar("T", bound=TokenRequest)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the forward gave for one scheduled request."""

    logits_RV: Tensor
    """Behind the last `num_logits` tokens of the request, fp32."""
    prompt_logprobs: list[float]
    """Of the prompt's tokens that follow those of the request in this step."""
    prompt_top: list[tuple[tuple[int, float], ...]]
    """The likeliest tokens at their places, where asked for."""


class Runner:
    """Computes steps over one cache."""

    def __init__(self, model: LoadedModel, cache: KVCache) -> None:
        self.model, self.cache = model, cache
        self._fused = None
        if why_not(model.transformer, cache) is None:
            self._fused = FusedForward(model.transformer)
            check_agreement(model.transformer, self._fused)

    def encode(self, step: Step[T]) -> dict[T, Exception]:
        """Encode the step's tiles; the requests for which that failed."""
        failed: dict[T, Exception] = {}
        for request, tiles in step.tiles.items():
            try:
                features = self.model.encode_tiles(request.prompt.pixels(tiles)).chunk(len(tiles))
                request.features.update(zip(tiles, features, strict=True))
            except Exception as error:
                failed[request] = error
        return failed

    def run(self, step: Step[T]) -> list[Result]:
        """The results of the step's scheduled requests, in their order."""
        for copy in step.copies:
            self.cache.copy_page(copy.source, copy.target, is_global=copy.is_global)
        scheduled = list(step.scheduled.values())
        pack = pack_sequences(
            [tokens_of(one) for one in scheduled],
            num_cached=[one.begin for one in scheduled],
            device=self.model.device,
        )
        view = self.cache.view(
            pack,
            [one.request.table.global_pages for one in scheduled],
            [one.request.table.local_pages for one in scheduled],
        )
        # Of requests whose prompt is scored all rows are read, of the others those before a token that is drawn. Where
        # routes are recorded, the last layer is computed for all rows.
        ends = pack.starts_S.tolist()[1:]
        kept = [
            range(end - length if one.request.scored or self.cache.routes is not None else end - one.num_logits, end)
            for one, length, end in zip(scheduled, pack.lengths, ends, strict=True)
        ]
        rows_R = send(torch.tensor([row for rows in kept for row in rows], dtype=torch.int64), self.model.device)
        routes_NJ = None
        if self.cache.routes is not None:
            routes_NJ = torch.zeros(len(pack.tokens_N), self.cache.routes.shape[-1], dtype=torch.uint8)
        hidden_RD = self._forward(pack, self._images(scheduled, ends), view, rows_R, routes_NJ)
        if routes_NJ is not None and self.cache.routes is not None:
            self.cache.routes[view.global_pages.page_N.cpu(), view.global_pages.slot_N.cpu()] = routes_NJ
        parts = hidden_RD.split([len(rows) for rows in kept])
        counts = [one.num_logits for one in scheduled]
        drawn = [part[len(part) - count :] for part, count in zip(parts, counts, strict=True)]
        logits_RV = self._unembed(torch.cat(drawn))
        scores = [self._prompt_logprobs(one, part) for one, part in zip(scheduled, parts, strict=True)]
        return [
            Result(logits_RV=logits, prompt_logprobs=logprobs, prompt_top=top)
            for logits, (logprobs, top) in zip(logits_RV.split(counts), scores, strict=True)
        ]

    def _forward(
        self, pack: Pack, images: Images | None, view: CacheView, rows_R: Tensor, routes_NJ: Tensor | None
    ) -> Tensor:
        """Hidden states of the rows that are read; `routes_NJ` is filled with the experts of all."""
        transformer = self.model.transformer
        if self._fused is not None:
            embedded = None if images is None else transformer.embed(pack.tokens_N, images)
            return self._fused(pack, cache=view, rows_R=rows_R, embedded_ND=embedded, routes_NJ=routes_NJ)
        hidden_ND = transformer.forward_packed(pack, images=images, cache=view)
        if routes_NJ is not None:
            routes_NJ.copy_(transformer.routers_choice())
        return hidden_ND[rows_R]

    def routes(self, request: T, length: int) -> np.ndarray:
        """The experts [length, J], uint8, of the first tokens of a request, which must be computed."""
        assert self.cache.routes is not None and length <= request.table.length
        places, size = torch.arange(length), self.cache.page_tokens
        pages = torch.tensor(request.table.global_pages)[places // size]
        found: np.ndarray = self.cache.routes[pages, places % size].numpy()
        return found

    def _unembed(self, hidden_RD: Tensor) -> Tensor:
        if self._fused is not None:
            return self._fused.unembed(hidden_RD)
        return self.model.transformer.unembed(hidden_RD).float()

    def _images(self, scheduled: list[ScheduledRequest[T]], ends: list[int]) -> Images | None:
        """Features of the pictures' tokens in this step; those of tiles that are then read are dropped."""
        features, rows = [], []
        for one, end in zip(scheduled, ends, strict=True):
            request = one.request
            for tile in [tile for tile in sorted(request.features) if request.tiles[tile][0] < one.end]:
                encoded = request.features[tile]
                patches = request.patch_rows[tile * len(encoded) : (tile + 1) * len(encoded)]
                inside = (patches >= one.begin) & (patches < one.end)
                features.append(encoded[send(torch.nonzero(inside)[:, 0], encoded.device)])
                rows.append(patches[inside] + (end - one.end))
                if request.tiles[tile][1] <= one.end:
                    del request.features[tile]
        if not features:
            return None
        return Images(tiles=torch.cat(features), rows=send(torch.cat(rows), self.model.device), encoded=True)

    def _prompt_logprobs(
        self, one: ScheduledRequest[T], hidden_ND: Tensor
    ) -> tuple[list[float], list[tuple[tuple[int, float], ...]]]:
        request = one.request
        if not request.scored:
            return [], []
        target_ids = request.ids[one.begin + 1 : min(one.end + 1, request.num_prompt)]
        targets_N = send(torch.tensor(target_ids, dtype=torch.int64), hidden_ND.device)
        logprobs: list[Tensor] = []
        top: list[tuple[tuple[int, float], ...]] = []
        for begin in range(0, len(targets_N), LOGIT_ROWS):
            target = targets_N[begin : begin + LOGIT_ROWS]
            logits_NV = self._unembed(hidden_ND[begin : begin + len(target)])
            log_NV = torch.log_softmax(logits_NV, -1)
            logprobs.append(log_NV.gather(1, target[:, None])[:, 0])
            if request.num_top:
                values, ids = (one.tolist() for one in log_NV.topk(min(request.num_top, log_NV.shape[1])))
                top += [tuple(zip(*row, strict=True)) for row in zip(ids, values, strict=True)]
        return torch.cat(logprobs).tolist() if logprobs else [], top


def tokens_of(one: ScheduledRequest[T]) -> list[int]:
    request, known = one.request, len(one.request.ids)
    return request.ids[one.begin : one.end] + request.draft[max(0, one.begin - known) : max(0, one.end - known)]


def content_of(prompt: Prompt, model: LoadedModel, patch_rows: Tensor) -> list[int]:
    """The prompt's tokens with each patch of a picture as a number of its own, by the picture's pixels."""
    if not len(patch_rows):
        return prompt.token_ids
    assert model.config.vision is not None
    patches = (
        -(int.from_bytes(digest, "little") << 32) - index - 1
        for tiles in prompt.tiles
        for digest in [hashlib.blake2b(tiles.pixels.numpy().tobytes(), digest_size=16).digest()]
        for index in range(len(tiles.pixels) * model.config.vision.tokens_per_tile)
    )
    content = list(prompt.token_ids)
    for row in patch_rows.tolist():
        content[row] = next(patches)
    return content
