"""Interpolated modified Kneser-Ney n-gram model in numpy: the counting baseline that a neural model has to beat.

Chen & Goodman 1999 (three discounts an order, from the counts of counts), as in KenLM: the highest order holds
counts, every lower order the number of different tokens seen before the gram, and the unigrams are interpolated with
the uniform distribution, so every token of the vocabulary has a probability and they sum to 1. A document is read as
if endlessly many BEGIN stood before it; its end is not predicted, as the model's losses do not count it either.

The grams of an order are one sorted int64 array, each key being `rank of the gram without its last token *
(vocabulary + 1) + last token`: five tokens of any vocabulary fit, contexts are ranks, and lookup is searchsorted.
"""

# T positions of the text, G grams of an order, C contexts (the grams of the order below)

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
"""Used where the counts of counts give none in 0 ≤ D_k ≤ k (orders with few grams), as KenLM's --discount_fallback."""


@dataclass(frozen=True, kw_only=True)
class _Order:
    keys_G: Ints
    """Sorted keys of the grams seen."""
    share_G: Floats
    """Discounted count over the count of the context."""
    backoff_C: Floats
    """Weight of the lower order after each context; 1 where nothing was seen after it."""


class KneserNey:
    """The model of `documents`, arrays of tokens in [0, vocab_size)."""

    def __init__(self, documents: Sequence[NDArray[np.integer]], *, vocab_size: int, order: int = 5) -> None:
        assert order >= 1 and any(len(document) for document in documents), "nothing to count"
        self.vocab_size, self.order = vocab_size, order
        self._base = vocab_size + 1
        self._orders: list[_Order] = []
        tokens_T = self._stream(documents)
        self._train(tokens_T)

    def losses(self, documents: Sequence[NDArray[np.integer]]) -> list[Floats]:
        """Nats of each token of each document, read from its beginning."""
        tokens_T = self._stream(documents)
        begin_T = tokens_T == self.vocab_size
        probability_T = np.full(len(tokens_T), 1.0 / self.vocab_size)
        rank_T = np.zeros(len(tokens_T), np.int64)  # of the gram that ends here, one order below; -1: never seen
        begin_rank = 0
        for order in self._orders:
            context_T = _before(rank_T, begin_T, begin_rank)
            key_T = np.where(context_T >= 0, context_T * self._base + tokens_T, -1)
            place_T = np.minimum(np.searchsorted(order.keys_G, key_T), len(order.keys_G) - 1)
            seen_T = order.keys_G[place_T] == key_T
            backoff_T = np.where(context_T >= 0, order.backoff_C[context_T], 1.0)
            probability_T = np.where(seen_T, order.share_G[place_T], 0.0) + backoff_T * probability_T
            begin_rank = int(np.searchsorted(order.keys_G, begin_rank * self._base + self.vocab_size))
            rank_T = np.where(seen_T, place_T, -1)
        loss_T = -np.log(probability_T)
        ends = np.cumsum([len(document) + 1 for document in documents])
        return [loss_T[end - len(document) : end] for end, document in zip(ends, documents, strict=True)]

    def _stream(self, documents: Sequence[NDArray[np.integer]]) -> Ints:
        """All documents in a row, each after one BEGIN (the token past the vocabulary)."""
        begin = np.array([self.vocab_size])
        parts = [part for document in documents for part in (begin, document)]
        return np.concatenate(parts).astype(np.int64)

    def _train(self, tokens_T: Ints) -> None:
        begin_T = tokens_T == self.vocab_size
        rank_T = np.zeros(len(tokens_T), np.int64)
        levels: list[tuple[Ints, Ints]] = []  # keys and counts of each order
        for _ in range(self.order):
            key_T = _before(rank_T, begin_T, int(rank_T[0])) * self._base + tokens_T
            sorting_T = np.argsort(key_T)
            key_T = key_T[sorting_T]
            first_T = np.concatenate(([True], key_T[1:] != key_T[:-1]))
            start_G = np.flatnonzero(first_T)
            keys_G = key_T[start_G]
            count_G = np.diff(start_G, append=len(key_T))
            event_G = keys_G % self._base != self.vocab_size  # BEGIN is a context only, never predicted
            if levels:
                # A gram without its first token is the gram, one order below, that ends at the same position.
                shorter_G = rank_T[sorting_T[start_G]]
                below, _ = levels[-1]
                levels[-1] = below, np.bincount(shorter_G[event_G], minlength=len(below))
            levels.append((keys_G, np.where(event_G, count_G, 0)))
            rank_T = np.empty_like(key_T)
            rank_T[sorting_T] = np.cumsum(first_T) - 1
        num_contexts = 1
        for keys_G, count_G in levels:
            self._orders.append(_smooth(keys_G, count_G, keys_G // self._base, num_contexts))
            num_contexts = len(keys_G)


def _before(rank_T: Ints, begin_T: NDArray[np.bool_], begin_rank: int) -> Ints:
    """The rank at the position before; before a BEGIN stand only BEGINs."""
    before_T = np.concatenate((rank_T[:1], rank_T[:-1]))
    before_T[begin_T] = begin_rank
    return before_T


def _smooth(keys_G: Ints, count_G: Ints, context_G: Ints, num_contexts: int) -> _Order:
    """Discount the counts of one order and give what was taken to the order below."""
    discount_G = discounts(count_G)[np.minimum(count_G, 3)]
    total_C = np.bincount(context_G, weights=count_G, minlength=num_contexts)
    taken_C = np.bincount(context_G, weights=discount_G, minlength=num_contexts)
    seen_C = total_C > 0
    backoff_C = np.where(seen_C, taken_C / np.where(seen_C, total_C, 1.0), 1.0)
    share_G = (count_G - discount_G) / np.where(count_G > 0, total_C[context_G], 1.0)
    return _Order(keys_G=keys_G, share_G=share_G, backoff_C=backoff_C)


def discounts(count_G: Ints) -> Floats:
    """What to take from a gram with count 0, 1, 2 and 3 or more: 0 and D_k = k - (k + 1) Y n_{k+1} / n_k,
    where n_k grams have count k and Y = n_1 / (n_1 + 2 n_2)."""
    n = np.bincount(np.minimum(count_G, 5), minlength=6)[1:5].astype(np.float64)
    if np.all(n > 0):
        k = np.arange(1.0, 4.0)
        found = k - (k + 1) * n[0] / (n[0] + 2 * n[1]) * n[1:] / n[:3]
        if np.all((found >= 0) & (found <= k)):
            return np.concatenate(([0.0], found))
    return np.array((0.0, *FALLBACK_DISCOUNTS))
