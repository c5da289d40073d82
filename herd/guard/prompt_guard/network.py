"""The classifier: hashed character n-grams to word vectors, gated convolutions, two logits; beside it a linear model.

A word's vector is the mean of its features' rows of one table, so the network reads characters, yet convolves over
words. The margin of a window is the sum of two terms (wide and deep, arXiv 1606.07792):

    deep: the mean of the TOP highest of the evidences that each word gets from the words around it, and
    wide: Σ votes / √(number of words), with a vote for each word and for each two and three words in a row: the highest
          of the whole window and of any SPANS words in a row, or benign words around an attack would outvote it.

The first finds one sentence of an attack in a window, the second adds up many weak signs.
The energy of a text is E(x) = -logsumexp(logits) (arXiv 2010.03759); see `train`.
"""

# B windows, L words of a window, U different words of the batch, G features of a word, D width

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from herd.errors import HerdError

TOP = 3
"""Words whose evidence is the window's."""
SPANS = (12, 36)
"""Words in a row whose votes are added up, beside those of the whole window."""
VOTE = 8.0
"""Scale of the votes of runs, which start at zero: how fast they learn beside the rest."""


@dataclass(frozen=True, kw_only=True)
class PromptGuardConfig:
    """The shape of a prompt guard."""

    buckets: int = 1 << 15
    """Rows of the table of features."""
    dim: int = 64
    """Width."""
    num_layers: int = 2
    """Gated convolutions, of dilation 1, 3, 9 …"""
    kernel: int = 5
    """Words that a convolution sees."""
    window: int = 512
    """Words that are scored at a time."""
    stride: int = 256
    """Words between the beginnings of two windows; at most half a window, so that a sentence is whole in one."""
    runs: int = 1 << 20
    """Rows of the table of votes of two and three words in a row."""

    def __post_init__(self) -> None:
        if not 0 < self.stride <= self.window // 2:
            raise HerdError(f"stride={self.stride} must be from 1 to half of window={self.window}")
        if self.kernel % 2 == 0:
            raise HerdError(f"kernel={self.kernel} must be odd, so that a word is in the middle")


class GatedConvolution(nn.Module):
    """x + W₂(conv(norm x) · σ(gate))."""

    def __init__(self, config: PromptGuardConfig, dilation: int) -> None:
        super().__init__()
        dim = config.dim
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        reach = dilation * (config.kernel // 2)
        self.mix = nn.Conv1d(dim, dim, config.kernel, dilation=dilation, padding=reach, groups=dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x_BLD: Tensor, mask_BL1: Tensor) -> Tensor:
        y_BLD = self.norm(x_BLD) * mask_BL1
        y_BLD = self.mix(y_BLD.transpose(1, 2)).transpose(1, 2) + y_BLD
        value, gate = self.up(y_BLD).chunk(2, dim=-1)
        return x_BLD + self.down(value * functional.silu(gate))


class Network(nn.Module):
    """Windows of words to logits (benign, attack)."""

    def __init__(self, config: PromptGuardConfig) -> None:
        super().__init__()
        self.config, dim = config, config.dim
        self.table = nn.Embedding(config.buckets, dim, padding_idx=0)
        self.word_norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(GatedConvolution(config, 3**depth) for depth in range(config.num_layers))
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.hidden, self.head = nn.Linear(dim, dim), nn.Linear(dim, 1)
        self.vote, self.run_votes = nn.Linear(dim, 1, bias=False), nn.Embedding(config.runs, 1)
        self.dropout, self.run_dropout = nn.Dropout(0.1), nn.Dropout(0.3)
        nn.init.zeros_(self.run_votes.weight)
        nn.init.normal_(self.table.weight, std=1.0)
        with torch.no_grad():
            self.table.weight[0] = 0

    def forward(self, features_UG: Int[Tensor, "u g"], index_BL: Int[Tensor, "b l"]) -> Float[Tensor, "b 2"]:
        """Row 0 of `features_UG` is padding."""
        margin_B = self.margin(*self.evidence(features_UG, index_BL))
        return torch.stack((-margin_B / 2, margin_B / 2), dim=-1)

    def evidence(self, features_UG: Tensor, index_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(evidence_BL, votes_BL, mask_BL) of the words; mask_BL is 1 where there is one."""
        words_UD = self.word_norm(self.embed(features_UG))
        mask_BL1 = (index_BL > 0).unsqueeze(-1).float()
        x_BLD = self.dropout(words_UD[index_BL]) * mask_BL1
        for layer in self.layers:
            x_BLD = layer(x_BLD, mask_BL1)
        evidence_BL = self.head(self.dropout(functional.gelu(self.hidden(self.norm(x_BLD)))))[..., 0]
        votes_BL = self.vote(words_UD)[index_BL][..., 0] + VOTE * self.votes_of_runs(features_UG[:, 0][index_BL])
        mask_BL = mask_BL1[..., 0]
        return evidence_BL + (mask_BL - 1) * 1e4, votes_BL, mask_BL

    def margin(self, evidence_BL: Tensor, votes_BL: Tensor, mask_BL: Tensor) -> Float[Tensor, "b"]:
        """How much of an attack there is in windows."""
        # A window of fewer words has fewer places to average; those of padding have no weight.
        best_BK = evidence_BL.topk(min(TOP, evidence_BL.shape[1]), dim=1).values
        real_BK = (best_BK > -5e3).float()
        margin_B = (best_BK * real_BK).sum(1) / real_BK.sum(1).clamp(min=1)
        return margin_B + highest(votes_BL, mask_BL)

    def embed(self, features_UG: Int[Tensor, "u g"]) -> Float[Tensor, "u d"]:
        """The mean of the rows of each word's features; of padding zero."""
        return functional.embedding_bag(features_UG, self.table.weight, mode="mean", padding_idx=0)

    def votes_of_runs(self, names_BL: Int[Tensor, "b l"]) -> Float[Tensor, "b l"]:
        """The votes of the runs of two and three words that begin at each; `names_BL` has each word's first feature, or
        0."""
        padded_BL = functional.pad(names_BL, (0, 2))
        next_BL, third_BL = padded_BL[:, 1:-1], padded_BL[:, 2:]
        two_BL = names_BL * 40_503 + next_BL
        three_BL = (two_BL * 69_069 + third_BL) % (1 << 31)
        both_BL = ((names_BL > 0) & (next_BL > 0)).float()
        votes_BL = self._run_votes(two_BL) * both_BL
        return votes_BL + self._run_votes(three_BL) * both_BL * (third_BL > 0).float()

    def _run_votes(self, runs_BL: Tensor) -> Tensor:
        # The product's high bits depend on all words of a run, its low ones mostly on the last.
        rows_BL = runs_BL * 2_654_435_761 % (1 << 32) * self.config.runs // (1 << 32)
        return self.run_dropout(self.run_votes(rows_BL)[..., 0])


def highest(votes_BL: Float[Tensor, "b l"], mask_BL: Float[Tensor, "b l"]) -> Float[Tensor, "b"]:
    """The highest sum of votes over the square root of its number of words, of the window and of each of its spans."""
    votes_BL = votes_BL * mask_BL
    best_B = votes_BL.sum(1) / mask_BL.sum(1).clamp(min=1).sqrt()
    for span in SPANS:
        # Padded so that there is a span however short the window is; one that does not end at a word has no weight.
        sums_BL = functional.pad(votes_BL, (1, span)).cumsum(1)
        ends_BL = functional.pad(mask_BL, (0, span))[:, span - 1 :]
        means_BL = (sums_BL[:, span:] - sums_BL[:, :-span]) / span**0.5
        best_B = best_B.maximum((means_BL + (ends_BL - 1) * 1e4).amax(1))
    return best_B


def suspicious(
    evidence_BL: Float[Tensor, "b l"],
    votes_BL: Float[Tensor, "b l"],
    mask_BL: Float[Tensor, "b l"],
    *,
    length: int,
    count: int,
) -> list[list[int]]:
    """Where the runs of `length` words begin that are most of an attack by the highest evidence and the sum of the
    votes in them: in each window `count` at most, which do not overlap, the first one first."""
    rest = max(length - evidence_BL.shape[1], 0)
    evidence_BL = functional.pad(evidence_BL, (0, rest), value=-1e4)
    sums_BL = functional.pad(votes_BL * mask_BL, (1, rest)).cumsum(1)
    scores_BP = functional.max_pool1d(evidence_BL[:, None], length, stride=1)[:, 0]
    scores_BP = scores_BP + (sums_BL[:, length:] - sums_BL[:, :-length]) / length**0.5
    places_P = torch.arange(scores_BP.shape[1])
    scores_BP = scores_BP.masked_fill(places_P > (mask_BL.sum(1, keepdim=True) - length).clamp(min=0), -torch.inf)
    found: list[list[int]] = [[] for _ in evidence_BL]
    for _ in range(count):
        best_B, begins_B = scores_BP.max(1)
        for row, (best, begin) in enumerate(zip(best_B.tolist(), begins_B.tolist(), strict=True)):
            if best > -torch.inf:
                found[row].append(begin)
        scores_BP = scores_BP.masked_fill((places_P - begins_B[:, None]).abs() < length, -torch.inf)
    return found


def energy(logits_B2: Float[Tensor, "b 2"]) -> Float[Tensor, "b"]:
    """E(x) = -logsumexp(logits)."""
    return -torch.logsumexp(logits_B2, dim=-1)
