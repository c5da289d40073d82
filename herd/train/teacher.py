"""A teacher's answer to each position of a batch, without keeping its distribution: tokens drawn from its full softmax,
the log-probability of the text's token, and the entropy.

K draws with replacement estimate every expectation under the teacher without bias, where its K likeliest tokens would
cut off the tail (Sparse Logit Sampling, arXiv 2503.16870). A draw is a function of the teacher and of one uniform
number, which the caller gives: the same position gets the same draws in any batch and on any rank.
"""

# N tokens, D width, V vocabulary, K draws of a token, R rows of a chunk, B blocks of the vocabulary, W tokens of one

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from herd.config import ModelConfig
from herd.core.batch import Batch, slice_images
from herd.core.device import send
from herd.model.agreement import check_agreement
from herd.model.attention import Sharing
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
    but not a rank's part of a model (`shared`). `as_drawn`: in fp32 on a CPU by what the engine uses in its place too,
    the Transformer's forward with a cache, which is slower than that without and has the engine's bits."""

    def __init__(self, model: Transformer, *, shared: bool = False, as_drawn: bool = False) -> None:
        weight = model.embedding.weight
        self.model = model
        self._fused: FusedForward | None = None
        self._cache: KVCache | None = None
        self._room_for = (0, 0, 0)
        if not shared and why_not(model) is None:
            self._fused = FusedForward(model)
            check_agreement(model, self._fused)
        exact = as_drawn and weight.device.type == "cpu" and weight.dtype == torch.float32
        self._reads_pages = self._fused is not None or exact

    @torch.inference_mode()
    def rows(self, batch: Batch, uniforms_RK: Float[Tensor, "r k"]) -> TeacherRows:
        """Read a batch; `uniforms_RK` in [0, 1) has a row for each token with a weight."""
        tokens_R = torch.nonzero(batch.weights_N)[:, 0]
        places_R = send(tokens_R, batch.tokens_N.device)
        hidden_RD, targets_R = self._hidden(batch), batch.targets_N[places_R]
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
    def logprobs(self, batch: Batch, sharing: Sharing | None = None) -> Float[Tensor, "n"]:
        """Log-probability of the target of each token with a weight, by the formula of the engine: in fp32 the same
        bits as it recorded when it drew them. NaN elsewhere. What `sharing` says of documents is read once."""
        tokens_R = send(torch.nonzero(batch.weights_N)[:, 0], batch.tokens_N.device)
        hidden_RD, targets_R = self._hidden(batch, sharing), batch.targets_N[tokens_R]
        read_N = torch.full((len(batch.tokens_N),), torch.nan, device=hidden_RD.device)
        for rows, logits_RV in self._logits(hidden_RD):
            log_RV = torch.log_softmax(logits_RV.float(), -1)
            read_N[tokens_R[rows]] = log_RV.gather(1, targets_R[rows, None])[:, 0]
        return read_N

    def _logits(self, hidden_RD: Tensor) -> Iterator[tuple[slice, Tensor]]:
        if not self._reads_pages:
            yield from logit_chunks(hidden_RD, self.model.unembedding.weight)
            return
        unembed = self.model.unembed if self._fused is None else self._fused.unembed
        for begin in range(0, len(hidden_RD), CHUNK_ROWS):
            rows = slice(begin, begin + CHUNK_ROWS)
            yield rows, unembed(hidden_RD[rows])

    def _hidden(self, batch: Batch, sharing: Sharing | None = None) -> Tensor:
        """Hidden states [R, D] of the tokens with a weight, in their order."""
        has_weight_N = batch.weights_N != 0
        if not self._reads_pages:
            hidden_ND: Tensor = self.model(
                batch.tokens_N,
                positions_N=batch.positions_N,
                starts_S=batch.starts_S,
                images=batch.images,
                sharing=sharing,
            )
            return hidden_ND[send(torch.nonzero(has_weight_N)[:, 0], hidden_ND.device)]
        pages = Pages(batch, self.model.config, sharing)
        cache = self._room(pages)
        images = batch.images
        if images is not None:
            features_RD = self.model.embed(batch.tokens_N, images)[images.rows]
            images = replace(images, tiles=features_RD, encoded=True, kept=None)
        # A token that is several documents' is read in the first of them, and may be wanted in any.
        places_R = pages.source_N[has_weight_N]
        is_wanted_N = torch.zeros_like(has_weight_N)
        is_wanted_N[places_R] = True
        row_N = torch.cumsum(is_wanted_N, 0) - 1
        hidden_RD = torch.empty(int(is_wanted_N.sum()), self.model.config.dim)
        for rows_N, counts, tables in pages.forwards():
            pack = Pack(
                tokens_N=batch.tokens_N[rows_N],
                positions_N=batch.positions_N[rows_N],
                starts_S=torch.tensor([0, *np.cumsum(counts)], dtype=torch.int32),
                lengths=tuple(counts),
            )
            view = cache.view(pack, *tables)
            wanted_R = torch.nonzero(is_wanted_N[rows_N])[:, 0]
            shown = None if images is None else slice_images(images, rows_N, len(batch.tokens_N))
            if self._fused is None:
                read_RD = self.model.forward_packed(pack, images=shown, cache=view)[wanted_R]
            else:
                embedded_ND = None if shown is None else self.model.embed(pack.tokens_N, shown)
                read_RD = self._fused(pack, cache=view, rows_R=wanted_R, embedded_ND=embedded_ND)
            hidden_RD[row_N[rows_N[wanted_R]]] = read_RD
        return hidden_RD if sharing is None else hidden_RD[row_N[places_R]]

    def _room(self, pages: "Pages") -> KVCache:
        """A cache that has so many pages at least; the last one, where it does."""
        weight, cache = self.model.embedding.weight, self._cache
        size, num_global, num_local = self._room_for
        if cache is None or size != pages.size or num_global < pages.num_global or num_local < pages.num_local:
            cache = self._cache = KVCache(
                self.model.config,
                num_global=pages.num_global,
                num_local=pages.num_local,
                dtype=weight.dtype,
                device=weight.device,
                page_tokens=pages.size,
            )
            self._room_for = pages.size, pages.num_global, pages.num_local
        return cache


class Pages:
    """Where the documents of a batch have their keys and values. Where they share beginnings a page is a token, so that
    these end anywhere: what documents share are pages, which are written once."""

    def __init__(self, batch: Batch, config: ModelConfig, sharing: Sharing | None) -> None:
        self.size = config.page_tokens if sharing is None else 1
        self._chunk, self._starts = config.chunk_size, batch.starts_S.numpy()
        lengths = np.diff(self._starts)
        self._longest = int(lengths.max(initial=0))
        self._document_N = np.repeat(np.arange(len(lengths)), lengths)
        self._positions_N = batch.positions_N.numpy()
        own_N = torch.arange(len(self._positions_N))
        self.source_N = own_N if sharing is None else sharing.pick_M[sharing.expand_N]
        """In whose place each token is read."""
        self._is_own_N = (self.source_N == own_N).numpy()

        def page_N(most: int) -> tuple[np.ndarray, int]:
            """The page of each token, of documents that keep `most` tokens; and how many there are."""
            ends_S = np.cumsum(-(-np.minimum(lengths, most) // self.size))
            first_S = np.concatenate([[0], ends_S[:-1]]).astype(np.int64)
            page_N = first_S[self._document_N] + self._positions_N % max(most, 1) // self.size
            return page_N[self.source_N.numpy()], int(ends_S[-1]) if len(ends_S) else 0

        self._global_N, self.num_global = page_N(self._longest)
        self._local_N, self.num_local = page_N(self._chunk)

    def forwards(self) -> Iterator[tuple[Tensor, list[int], tuple[list[np.ndarray], list[np.ndarray]]]]:
        """Of each forward the rows, how many each document has, and the documents' global and local pages. A forward
        reads no further than a chunk of local attention."""
        for begin in range(0, self._longest, self._chunk):
            rows_N = np.flatnonzero(self._is_own_N & (self._positions_N // self._chunk == begin // self._chunk))
            documents, counts = np.unique(self._document_N[rows_N], return_counts=True)
            spans = list(zip(self._starts[documents], rows_N[np.cumsum(counts) - 1] + 1, strict=True))
            wide = [self._global_N[start : end : self.size] for start, end in spans]
            local = [self._local_N[start + begin : end : self.size] for start, end in spans]
            yield torch.from_numpy(rows_N), counts.tolist(), (wide, local)


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
