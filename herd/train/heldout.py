"""The held-out loss while a stage trains: bits per byte of a fixed slice of the data folder's held-out text.

The slice is small, the beginnings of a few documents of each language: it shows how the loss moves, `herd evaluate`
measures it. Reading it changes nothing that the training depends on.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from herd.core.batch import Batch, to_device
from herd.core.device import sum_dtype
from herd.core.metrics import Mean, Number
from herd.data.loading import tables
from herd.data.loading.batches import Batches
from herd.data.loading.pack import Sample, pack, steps_of
from herd.data.tokens.tokenizer import Tokenizer
from herd.errors import HerdError
from herd.model.parallel import Parallel
from herd.model.transformer import Transformer
from herd.train.checkpoint import State
from herd.train.optimizer import Optimizer

DOCUMENTS, CHARACTERS = 2, 1000
"""Held-out documents of each language, and what is read of one."""
CONTEXT, BATCH_TOKENS = 512, 4096
"""Tokens of a piece, and of a batch: the same in all stages, whose figures can so be compared."""
METRIC = "heldout_bits_per_byte"


def heldout_texts(data: Path, documents: int, characters: int) -> list[str]:
    """The beginnings of some of the data folder's held-out documents, of each language."""
    by_language = tables.first_texts(data, "heldout", documents) if tables.has(data, "text") else {}
    texts = [text[:characters] for own in by_language.values() for text in own]
    if not any(texts):
        raise HerdError(f"{data} holds no text out: give a data folder whose heldout_bytes is above 0")
    return texts


class HeldoutBatches:
    """The slice, in pieces of at most CONTEXT tokens."""

    unit = "tokens"

    def __init__(self, data: Path, tokenizer: Tokenizer) -> None:
        texts = heldout_texts(data, DOCUMENTS, CHARACTERS)
        self.num_bytes = sum(len(text.encode()) for text in texts)
        documents = [np.array([tokenizer.ids.bos, *ids], dtype=np.int32) for ids in tokenizer.encode_batch(texts)]
        # A piece begins with the last token of the one before: every token but the first is predicted once.
        self._pieces = [
            ids[begin : begin + CONTEXT] for ids in documents for begin in range(0, len(ids) - 1, CONTEXT - 1)
        ]
        self._steps = steps_of(np.array([len(piece) for piece in self._pieces]), BATCH_TOKENS)
        self.num_steps = len(self._steps)

    def batch(self, step: int) -> Batch:
        return pack(
            [
                Sample(ids=self._pieces[i], learnt=np.ones(len(self._pieces[i]), dtype=bool), kind="text")
                for i in self._steps[step]
            ],
            patch_id=None,
        )


class HeldoutLoss:
    """A hook of the loop: every so many steps, and after the last one."""

    def __init__(
        self,
        model: Transformer,
        batches: Batches[Batch],
        num_bytes: int,
        loss_fn: Callable[[Transformer, Batch], tuple[Tensor, dict[str, Number | Mean]]],
        *,
        every: int,
        parallel: Parallel,
    ) -> None:
        self.model, self.num_bytes, self.loss_fn = model, num_bytes, loss_fn
        self.every, self.parallel = every, parallel
        self.batches = [batches.batch(step) for step in range(batches.num_steps)]

    def after_step(self, step: int, optimizer: Optimizer, *, updated: bool) -> dict[str, object]:
        if (step + 1) % self.every and step + 1 < optimizer.num_steps:
            return {}
        return {METRIC: self.bits_per_byte()}

    @torch.no_grad()
    def bits_per_byte(self) -> float:
        """Of the model as it is, over all ranks."""
        device = self.model.embedding.weight.device
        nats = torch.zeros((), dtype=sum_dtype(device), device=device)
        self.model.eval()  # what experts are visited by here does not count
        try:
            for batch in self.batches:
                _, counted = self.loss_fn(self.model, to_device(batch, device))
                assert batch.total_weight is not None
                nats += counted["loss"] * batch.total_weight  # type: ignore[operator]
        finally:
            self.model.train()
        total, *_ = self.parallel.total(nats, 0, {})
        return total / math.log(2) / self.num_bytes

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        pass
