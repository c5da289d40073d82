"""A teacher's answer to each position of a batch, without keeping its distribution: tokens drawn from its full softmax,
the log-probability of the text's token, and the entropy.

K draws with replacement estimate every expectation under the teacher without bias, where its K likeliest tokens would
cut off the tail (Sparse Logit Sampling, arXiv 2503.16870). A draw is a function of the teacher and of one uniform
number, which the caller gives: the same position gets the same draws in any batch and on any rank.
"""

# N tokens, D width, V vocabulary, K draws of a token, R rows of a chunk, B blocks of the vocabulary, W tokens of one

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from herd.core.batch import Batch
from herd.core.device import send
from herd.model.agreement import check_agreement
from herd.model.cache import KVCache
from herd.model.fused import FusedForward, why_not
from herd.model.pack import Pack
from herd.model.transformer import Transformer
from herd.train.losses import CHUNK_ROWS, logit_chunks, sum_precision

BLOCK = 32
"""Tokens of the vocabulary whose probabilities are summed at a time: a draw looks for its block, then within it."""


@dataclass(frozen=True, kw_only=True)
class TeacherRows:
    """What a teacher says of tokens, of those alone that have a weight: R rows in the order of the tokens."""

    tokens_R: Int[Tensor, "r"]
    """The tokens' places in the batch, on the host."""
    draws_RK: Int[Tensor, "r k"]
    """int64, ids drawn from the softmax, with replacement."""
    logprobs_R: Float[Tensor, "r"]
    """log p_T of the text's next token."""
    entropies_R: Float[Tensor, "r"]
    """-sum_v p_v log p_v, in nats."""


class Teacher:
    """A model that reads batches on its device; on a CPU by the engine's forward where that serves (herd.model.fused),
    but not a rank's part of a model (`shared`)."""

    def __init__(self, model: Transformer, *, shared: bool = False) -> None:
        self.model = model
        self._fused: FusedForward | None = None
        self._cache: KVCache | None = None
        self._pages = (0, 0)
        if not shared and why_not(model) is None:
            self._fused = FusedForward(model)
            check_agreement(model, self._fused)

    @torch.inference_mode()
    def rows(self, batch: Batch, uniforms_RK: Float[Tensor, "r k"]) -> TeacherRows:
        """Read a batch; `uniforms_RK` in [0, 1) has a row for each token with a weight."""
        tokens_R = torch.nonzero(batch.weights_N)[:, 0]
        places_R = send(tokens_R, batch.tokens_N.device)
        hidden_RD, targets_R = self._hidden(batch)[places_R], batch.targets_N[places_R]
        draws_RK = uniforms_RK.new_zeros(uniforms_RK.shape, dtype=torch.int64)
        logprobs_R = hidden_RD.new_zeros(len(hidden_RD), dtype=sum_precision(hidden_RD))
        entropies_R = torch.zeros_like(logprobs_R)
        for rows, logits_RV in self._logits(hidden_RD):
            logits_RV = logits_RV.to(sum_precision(logits_RV))
            logits_RV -= logits_RV.amax(-1, keepdim=True)
            masses_RV = logits_RV.exp()
            total_R = masses_RV.sum(-1)
            logprobs_R[rows] = logits_RV.gather(1, targets_R[rows, None])[:, 0] - total_R.log()
            entropies_R[rows] = total_R.log() - (masses_RV[:, None] @ logits_RV[:, :, None])[:, 0, 0] / total_R
            draws_RK[rows] = draw(masses_RV, uniforms_RK[rows])
        return TeacherRows(tokens_R=tokens_R, draws_RK=draws_RK, logprobs_R=logprobs_R, entropies_R=entropies_R)

    @torch.inference_mode()
    def logprobs(self, batch: Batch) -> Float[Tensor, "n"]:
        """Log-probability of the target of each token with a weight, by the formula of the engine: in fp32 the same
        bits as it recorded when it drew them. NaN elsewhere."""
        tokens_R = send(torch.nonzero(batch.weights_N)[:, 0], batch.tokens_N.device)
        hidden_RD, targets_R = self._hidden(batch)[tokens_R], batch.targets_N[tokens_R]
        read_N = torch.full((len(batch.tokens_N),), torch.nan, device=hidden_RD.device)
        for rows, logits_RV in self._logits(hidden_RD):
            log_RV = torch.log_softmax(logits_RV.float(), -1)
            read_N[tokens_R[rows]] = log_RV.gather(1, targets_R[rows, None])[:, 0]
        return read_N

    def _logits(self, hidden_RD: Tensor) -> Iterator[tuple[slice, Tensor]]:
        if self._fused is None:
            yield from logit_chunks(hidden_RD, self.model.unembedding.weight)
            return
        for begin in range(0, len(hidden_RD), CHUNK_ROWS):
            rows = slice(begin, begin + CHUNK_ROWS)
            yield rows, self._fused.unembed(hidden_RD[rows])

    def _hidden(self, batch: Batch) -> Tensor:
        """Hidden states [N, D]."""
        if self._fused is None:
            hidden_ND: Tensor = self.model(
                batch.tokens_N, positions_N=batch.positions_N, starts_S=batch.starts_S, images=batch.images
            )
            return hidden_ND
        config, starts = self.model.config, batch.starts_S.tolist()
        lengths = np.diff(starts)
        wide_pages, local_pages = (
            page_numbers(np.minimum(lengths, most), config.page_tokens) for most in (starts[-1], config.chunk_size)
        )
        cache = self._room(sum(map(len, wide_pages)), sum(map(len, local_pages)))
        embedded_ND = None if batch.images is None else self.model.embed(batch.tokens_N, batch.images)
        hidden_ND = torch.empty(starts[-1], config.dim)
        # A call reads no further than a chunk of local attention.
        for begin in range(0, int(lengths.max(initial=0)), config.chunk_size):
            there = np.flatnonzero(lengths > begin).tolist()
            ends = [min(starts[one] + begin + config.chunk_size, starts[one + 1]) for one in there]
            counts = [end - starts[one] - begin for one, end in zip(there, ends, strict=True)]
            rows_N = torch.from_numpy(
                np.concatenate([np.arange(end - count, end) for end, count in zip(ends, counts, strict=True)])
            )
            pack = Pack(
                tokens_N=batch.tokens_N[rows_N],
                positions_N=batch.positions_N[rows_N],
                starts_S=torch.tensor([0, *np.cumsum(counts)], dtype=torch.int32),
                lengths=tuple(counts),
            )
            view = cache.view(pack, [wide_pages[one] for one in there], [local_pages[one] for one in there])
            embedded = None if embedded_ND is None else embedded_ND[rows_N]
            hidden_ND[rows_N] = self._fused(pack, cache=view, rows_R=torch.arange(len(rows_N)), embedded_ND=embedded)
        return hidden_ND

    def _room(self, num_global: int, num_local: int) -> KVCache:
        """A cache of so many pages at least; the last one, where it has them."""
        weight, cache = self.model.embedding.weight, self._cache
        config = self.model.config
        if cache is None or self._pages[0] < num_global or self._pages[1] < num_local:
            cache = self._cache = KVCache(
                config, num_global=num_global, num_local=num_local, dtype=weight.dtype, device=weight.device
            )
            self._pages = num_global, num_local
        return cache


def page_numbers(lengths: np.ndarray, page_tokens: int) -> list[np.ndarray]:
    """The pages of each sequence, one after the other."""
    ends = np.cumsum(-(-lengths // page_tokens))
    return [np.arange(begin, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def draw(probs_RV: Float[Tensor, "r v"], uniforms_RK: Float[Tensor, "r k"]) -> Int[Tensor, "r k"]:
    """The token at which the sum of probabilities exceeds u, for each u of a row: drawn by them where u is uniform.
    The probabilities need not sum to 1.

    Long sums are in fp64, of blocks first, so that no token of a large vocabulary is lost in their rounding.
    """
    num_tokens = probs_RV.shape[1]
    probs_RBW = F.pad(probs_RV, (0, -num_tokens % BLOCK)).unflatten(1, (-1, BLOCK))
    sums_RB = probs_RBW.sum(-1).to(torch.float64).cumsum(-1)
    wanted_RK = uniforms_RK.to(torch.float64) * sums_RB[:, -1:]
    block_RK = torch.searchsorted(sums_RB, wanted_RK, right=True).clamp_max_(sums_RB.shape[1] - 1)
    before_RK = F.pad(sums_RB, (1, 0)).gather(1, block_RK)
    of_block_RK = sums_RB.gather(1, block_RK) - before_RK
    rows_R1 = torch.arange(len(probs_RV), device=probs_RV.device)[:, None]
    within_RKW = probs_RBW[rows_R1, block_RK].to(torch.float64).cumsum(-1)
    # As a share of the block, below 1: rounding never leaves its last token that has a probability.
    share_RK = ((wanted_RK - before_RK) / of_block_RK).clamp_(0, 1 - 2**-53)
    place_RK = (within_RKW <= (share_RK * within_RKW[..., -1])[..., None]).sum(-1)
    return block_RK * BLOCK + place_RK
