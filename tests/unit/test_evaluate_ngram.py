"""The n-gram baseline against a slow reference in dictionaries, and as a distribution."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.evaluate.ngram import FALLBACK_DISCOUNTS, KneserNey, discounts

VOCABULARY = 5
documents_strategy = st.lists(st.lists(st.integers(0, VOCABULARY - 1), max_size=25), min_size=1, max_size=8).filter(
    lambda documents: any(documents)
)


class SlowKneserNey:
    """The textbook recursion over tuples, with explicit padding."""

    def __init__(self, documents: list[list[int]], vocab_size: int, order: int) -> None:
        self.vocab_size, self.order = vocab_size, order
        raw: Counter[tuple] = Counter()
        for document in documents:
            padded = ["<s>"] * (order - 1) + document
            for end in range(order - 1, len(padded)):
                raw[tuple(padded[end - order + 1 : end + 1])] += 1
        self.counts: dict[int, dict[tuple, int]] = {order: dict(raw)}
        for n in range(order - 1, 0, -1):
            left: dict[tuple, set] = defaultdict(set)
            for gram in self.counts[n + 1]:
                left[gram[1:]].add(gram[0])
            self.counts[n] = {gram: len(tokens) for gram, tokens in left.items()}
        self.discount = {n: self._discounts(counts) for n, counts in self.counts.items()}

    @staticmethod
    def _discounts(counts: dict[tuple, int]) -> tuple[float, float, float]:
        n = Counter(counts.values())
        if all(n[k] for k in (1, 2, 3, 4)):
            y = n[1] / (n[1] + 2 * n[2])
            found = (1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3])
            if all(0 <= d <= k for k, d in enumerate(found, 1)):
                return found
        return FALLBACK_DISCOUNTS

    def probability(self, gram: tuple) -> float:
        if not gram:
            return 1 / self.vocab_size
        n = len(gram)
        lower = self.probability(gram[1:])
        followers = {g: c for g, c in self.counts[n].items() if g[:-1] == gram[:-1]}
        total = sum(followers.values())
        if not total:
            return lower
        take = lambda count: self.discount[n][min(count, 3) - 1]  # noqa: E731
        own = followers.get(gram, 0)
        share = (own - take(own)) / total if own else 0.0
        return share + sum(take(c) for c in followers.values()) / total * lower

    def losses(self, document: list[int]) -> list[float]:
        padded = ["<s>"] * (self.order - 1) + document
        return [-math.log(self.probability(tuple(padded[end : end + self.order]))) for end in range(len(document))]


def arrays(documents: list[list[int]]) -> list[np.ndarray]:
    return [np.array(document, dtype=np.int64) for document in documents]


@settings(max_examples=60, deadline=None)
@given(documents_strategy, documents_strategy, st.integers(1, 5))
def test_losses_equal_the_slow_reference(train: list[list[int]], held: list[list[int]], order: int) -> None:
    slow = SlowKneserNey(train, VOCABULARY, order)
    fast = KneserNey(arrays(train), vocab_size=VOCABULARY, order=order)
    for document, losses in zip(held, fast.losses(arrays(held)), strict=True):
        np.testing.assert_allclose(losses, slow.losses(document), rtol=1e-9)


@pytest.mark.parametrize("order", [2, 5])
def test_losses_equal_the_slow_reference_where_the_discounts_come_from_the_counts(order: int) -> None:
    random = np.random.default_rng(3)
    train = [list(map(int, np.minimum(random.geometric(0.15, 120) - 1, 29))) for _ in range(4)]
    slow = SlowKneserNey(train, 30, order)
    assert slow.discount[2] != FALLBACK_DISCOUNTS
    held = [int(token) for token in random.integers(0, 30, 40)]
    fast = KneserNey(arrays(train), vocab_size=30, order=order)
    np.testing.assert_allclose(fast.losses(arrays([held]))[0], slow.losses(held), rtol=1e-9)


@settings(max_examples=60, deadline=None)
@given(documents_strategy, st.lists(st.integers(0, VOCABULARY - 1), max_size=8), st.integers(1, 5))
def test_probabilities_after_any_context_sum_to_one(train: list[list[int]], context: list[int], order: int) -> None:
    model = KneserNey(arrays(train), vocab_size=VOCABULARY, order=order)
    losses = model.losses(arrays([[*context, token] for token in range(VOCABULARY)]))
    probabilities = np.exp([-loss[-1] for loss in losses])
    assert np.all(probabilities > 0)
    assert math.isclose(probabilities.sum(), 1, rel_tol=1e-9)


def test_discounts_that_would_be_negative_are_not_used() -> None:
    # One gram seen once, one twice, ten three times, one four times: D_2 = 2 - 3 · 1/3 · 10 < 0.
    assert tuple(discounts(np.array([1, 2, *[3] * 10, 4]))) == (0, *FALLBACK_DISCOUNTS)


def test_bytes_of_a_repeated_text_cost_far_less_than_uniform() -> None:
    text = np.frombuffer(b"the cat sat on the mat. " * 200, np.uint8)
    (losses,) = KneserNey([text], vocab_size=256).losses([text[:240]])
    assert losses.mean() / math.log(2) < 0.5
