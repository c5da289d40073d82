"""How many tokens each source and language gives to a run: weights, temperature by language, caps on epochs."""

# G groups of documents: those of one source in one language

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Group:
    """The documents of one source in one language."""

    source: str
    language: str
    tokens: int
    """Of one epoch."""
    weight: float = 1.0
    max_epochs: float = 0.0
    """0: no limit."""

    @property
    def most_tokens(self) -> float:
        """What it can give in all."""
        return self.max_epochs * self.tokens if self.max_epochs else np.inf


def token_shares(groups: Sequence[Group], temperature: float) -> np.ndarray:
    """float64 [G], shares that sum to 1. Within a language by tokens * weight, of languages by its sum to the power of
    1 / temperature.

    A temperature above 1 raises small languages (Devlin et al. 2018, multilingual BERT; Conneau et al. 2020, XLM-R).
    """
    own_G = np.array([group.tokens * group.weight for group in groups], dtype=np.float64)
    by_language: dict[str, float] = {}
    for group, own in zip(groups, own_G, strict=True):
        by_language[group.language] = by_language.get(group.language, 0.0) + own
    of_language_G = np.array([by_language[group.language] for group in groups])
    within_G = own_G / np.where(of_language_G > 0, of_language_G, 1)
    shares_G = of_language_G ** (1 / temperature) * within_G
    return shares_G / max(shares_G.sum(), 1e-300)


def allot_tokens(groups: Sequence[Group], shares_G: np.ndarray, wanted: int) -> np.ndarray:
    """float64 [G], tokens of each group: `wanted` in all by their shares, but no group more than it can give. What one
    cannot give the others do; the sum is below `wanted` where none is left that can."""
    most_G = np.array([group.most_tokens for group in groups])
    given_G = np.zeros(len(groups))
    open_G = shares_G > 0
    while open_G.any():
        left = wanted - given_G[~open_G].sum()
        asked_G = np.where(open_G, left * shares_G / shares_G[open_G].sum(), 0.0)
        full_G = open_G & (asked_G > most_G)
        given_G = np.where(full_G, most_G, np.where(open_G, asked_G, given_G))
        if not full_G.any():
            break
        open_G &= ~full_G
    return given_G


def shortfalls(groups: Sequence[Group], shares_G: np.ndarray, wanted: int) -> Mapping[str, int]:
    """Tokens of each source's share that its cap on epochs leaves out, in words and numbers."""
    short: dict[str, int] = {}
    for group, share in zip(groups, shares_G, strict=True):
        if (missing := round(wanted * share - group.most_tokens) if group.max_epochs else 0) > 0:
            what = (
                f"tokens of {group.source}'s share, after max_epochs={group.max_epochs:g}"
                if group.source
                else (f"tokens asked for, after max_epochs={group.max_epochs:g}")
            )
            short[what] = short.get(what, 0) + missing
    return short
