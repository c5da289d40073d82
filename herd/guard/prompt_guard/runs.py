"""The runs of words that a reader is trained on: as in use those that n-grams find most suspicious, and others.

Batches are a function of the seed, the epoch and the n-grams.
"""

# B runs, L pieces of a run

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from herd.core.streams import stream
from herd.guard.prompt_guard.examples import Examples, PromptGuardTraining, shuffled
from herd.guard.prompt_guard.letters import MARK
from herd.guard.prompt_guard.network import Network, suspicious
from herd.guard.prompt_guard.reader import Reader, padded
from herd.guard.prompt_guard.windows import like_lengths, tensors

BATCH_WORDS = 1024
"""Words of a batch, padding included."""
FIRST, SECOND = 0.6, 0.2
"""Shares of the most suspicious run of a text and of the next one; of the others an attack's is its beginning, a benign
text's anywhere."""


class Runs:
    """Runs of the examples, one of each in an epoch."""

    def __init__(self, examples: Examples, network: Network, reader: Reader, config: PromptGuardTraining) -> None:
        """`network`: trained."""
        self._examples, self._reader, self._config = examples, reader, config
        self._length = reader.config.run
        self._begins = most_suspicious(examples, network, reader)
        self._plans = [self._plan(number) for number in range(config.reader_epochs)]
        self.num_steps = sum(map(len, self._plans))

    def _plan(self, number: int) -> list[NDArray[np.int64]]:
        rng = stream(self._config.seed, "runs", number)
        lengths = np.array([min(len(one), self._length) for one in self._examples.words])
        order = np.argsort(lengths * np.exp(rng.normal(0, 0.1, len(lengths))), kind="stable")
        return shuffled(order, lengths, BATCH_WORDS, rng)

    def batches(self, number: int) -> Iterator[tuple[Tensor, ...]]:
        """(ids_BL, mask_BL, attack_B) of an epoch."""
        for plan in self._plans[number]:
            rows = plan[0].tolist()
            rng = stream(self._config.seed, "run words", number, rows[0])
            ids = [self._reader.pieces(self._run(row, rng)) for row in rows]
            yield *padded(ids), torch.from_numpy(self._examples.attack[rows])

    def _run(self, row: int, rng: np.random.Generator) -> list[str]:
        words, draw = self._examples.words[row], rng.random()
        begin = self._begins[row][0 if draw < FIRST else -1]
        if draw >= FIRST + SECOND:
            begin = 0 if self._examples.attack[row] else int(rng.integers(max(len(words) - self._length, 0) + 1))
        run = words[begin : begin + self._length]
        kept = rng.random(len(run)) >= self._config.word_dropout
        return [word for word, keep in zip(run, kept, strict=True) if keep or word == MARK] or run[:1]


@torch.no_grad()
def most_suspicious(examples: Examples, network: Network, reader: Reader) -> list[list[int]]:
    """Where the runs of each text begin that a trained network would give the reader."""
    network.eval()
    begins: list[list[int]] = [[] for _ in examples.words]
    windows = [words[: network.config.window] for words in examples.words]
    for batch in like_lengths([len(one) for one in windows], 4 * BATCH_WORDS):
        words = network.evidence(*tensors([windows[at] for at in batch], network.config.buckets))
        found = suspicious(*words, length=reader.config.run, count=2)
        for at, of in zip(batch, found, strict=True):
            begins[at] = of
    return begins
