"""What a training step or a prefill computes on: flat tokens of any number of documents, and their pictures."""

# N tokens, S documents

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Images:
    """Pictures of one pack: their tiles, and where the tiles' tokens stand."""

    tiles: Tensor
    """Normalised pixels [tiles, 3, side, side]; with `encoded`, the features [rows, D] that the encoder gave."""
    rows: Tensor
    """Index in the pack of every patch token, in the order of the tiles."""
    encoded: bool = False
    kept: Tensor | None = None
    """Index of those of the tiles' tokens that stand in this pack, where it was cut within a picture; None: all."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One packed micro-batch."""

    tokens_N: Tensor
    """int64."""
    targets_N: Tensor
    """int64, the next token inside the same document."""
    weights_N: Tensor
    """float32 loss weight, 0 where nothing is learnt."""
    positions_N: Tensor
    """int64, from 0 in each document."""
    starts_S: Tensor
    """int32 cumulative document starts, last entry N."""
    images: Images | None
    kinds_N: Tensor
    """int8, what a token belongs to, for reporting losses apart; see KINDS."""

    @property
    def size(self) -> int:
        """What the rate counts: tokens."""
        return len(self.tokens_N)


KINDS = ("text", "picture", "chat", "planted")
"""Names of the values of `Batch.kinds_N`."""
