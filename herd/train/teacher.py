"""A teacher's answer to each position of a batch, without keeping its distribution: tokens drawn from its full softmax,
the log-probability of the text's token, and the entropy.

K draws with replacement estimate every expectation under the teacher without bias, where its K likeliest tokens would
cut off the tail (Sparse Logit Sampling, arXiv 2503.16870). A draw is a function of the teacher and of one uniform
number, which the caller gives: the same position gets the same draws in any batch and on any rank.
"""

# N tokens, D width, V vocabulary, K draws of a token, R rows of a chunk, B blocks of the vocabulary, W tokens of one

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from herd.core.batch import Batch
from herd.core.device import send
from herd.model.transformer import Transformer
from herd.train.losses import logit_chunks, sum_precision

BLOCK = 128
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


@torch.no_grad()
def teacher_rows(model: Transformer, batch: Batch, uniforms_RK: Float[Tensor, "r k"]) -> TeacherRows:
    """Read a batch on the model's device; `uniforms_RK` in [0, 1) has a row for each token with a weight."""
    hidden_ND = model(batch.tokens_N, positions_N=batch.positions_N, starts_S=batch.starts_S, images=batch.images)
    tokens_R = torch.nonzero(batch.weights_N)[:, 0]
    places_R = send(tokens_R, hidden_ND.device)
    draws, logprobs, entropies = [], [], []
    targets_R = batch.targets_N[places_R]
    for rows, logits_RV in logit_chunks(hidden_ND[places_R], model.unembedding.weight):
        log_RV = torch.log_softmax(logits_RV, -1, dtype=sum_precision(logits_RV))
        logprobs.append(log_RV.gather(1, targets_R[rows, None])[:, 0])
        probs_RV = log_RV.exp()
        # 0 * log 0 is 0; a row's products are summed by one pass over both.
        entropies.append(-torch.linalg.vecdot(probs_RV, log_RV.clamp_min_(torch.finfo(log_RV.dtype).min)))
        draws.append(draw(probs_RV, uniforms_RK[rows]))
    if not draws:
        empty = hidden_ND.new_zeros(0, dtype=sum_precision(hidden_ND))
        return TeacherRows(
            tokens_R=tokens_R, draws_RK=uniforms_RK.new_zeros(uniforms_RK.shape, dtype=torch.int64),
            logprobs_R=empty, entropies_R=empty,
        )  # fmt: skip
    return TeacherRows(
        tokens_R=tokens_R,
        draws_RK=torch.cat(draws),
        logprobs_R=torch.cat(logprobs),
        entropies_R=torch.cat(entropies),
    )


def draw(probs_RV: Float[Tensor, "r v"], uniforms_RK: Float[Tensor, "r k"]) -> Int[Tensor, "r k"]:
    """The token at which the sum of probabilities exceeds u, for each u of a row: drawn by them where u is uniform.

    Sums are in fp64, of blocks first, so that no token of a large vocabulary is lost in the rounding of a long sum.
    """
    num_tokens = probs_RV.shape[1]
    probs_RBW = F.pad(probs_RV, (0, -num_tokens % BLOCK)).unflatten(1, (-1, BLOCK))
    sums_RB = probs_RBW.sum(-1, dtype=torch.float64).cumsum(-1)
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
