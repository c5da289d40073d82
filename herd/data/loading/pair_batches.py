"""Pairs of answers as batches: for each pair two documents, the prompt with the chosen answer and with the rejected.

Batch s is a function of (pairs, config, s). All pairs are in memory as tokens, 9 bytes each.
"""

# N tokens, S documents, P pairs

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from herd.config.dpo import DpoConfig
from herd.core.batch import Batch
from herd.core.streams import stream
from herd.data.loading.pack import Sample, pack
from herd.data.media.image import ImageProcessor
from herd.data.tokens.chat import render_messages
from herd.data.tokens.tokenizer import Tokenizer
from herd.errors import HerdError


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two answers to one prompt, as messages."""

    prompt: list[dict[str, Any]]
    chosen: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    heldout: bool = False


@dataclass(frozen=True, kw_only=True)
class TokenPair:
    """A pair in a model's format; the answers' tokens are learnt, their end tokens included."""

    chosen: Sample
    rejected: Sample
    heldout: bool

    @property
    def both(self) -> tuple[Sample, Sample]:
        """In the order in which they are packed."""
        return self.chosen, self.rejected


def tokenize_pairs(
    pairs: Sequence[Pair], tokenizer: Tokenizer, processor: ImageProcessor, context: int
) -> tuple[list[TokenPair], dict[str, int]]:
    """The pairs in a model's format, and how many were left out, by the reason."""
    found: list[TokenPair] = []
    left_out: Counter[str] = Counter()

    def sample(pair: Pair, answer: list[dict[str, Any]]) -> Sample:
        whole = render_messages(
            tokenizer, processor, [*pair.prompt, *answer], tools=pair.tools, add_generation_prompt=False
        )
        asked = render_messages(tokenizer, processor, pair.prompt, tools=pair.tools, add_generation_prompt=False)
        learnt = np.array(whole.learnt)
        learnt[: len(asked.ids)] = False  # earlier answers are the prompt's
        return Sample(ids=np.array(whole.ids, dtype=np.int32), learnt=learnt, kind="chat")

    for pair in pairs:
        try:
            one = TokenPair(
                chosen=sample(pair, pair.chosen), rejected=sample(pair, pair.rejected), heldout=pair.heldout
            )
        except HerdError:
            left_out["pairs that the chat template refuses"] += 1
            continue
        if not all(answer.learnt.any() for answer in one.both):
            left_out["pairs with an empty answer"] += 1
        elif max(len(answer.ids) for answer in one.both) > context:
            left_out[f"pairs of more than context={context} tokens"] += 1
        else:
            found.append(one)
    return found, dict(left_out)


def prompt_key(pair: Pair) -> str:
    """What pairs of one prompt have in common, by which they are held out together."""
    return json.dumps([pair.prompt, pair.tools], ensure_ascii=False, sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class PairBatch(Batch):
    """Pairs of documents, the chosen answer before the rejected one. Weights are 1 at the answers' tokens, else 0."""

    reference_N: Tensor
    """float32, log-probability of the target by the reference model, at the answers' tokens."""
    num_pairs: int
    """Of the whole step."""
    num_chosen: int
    """Tokens of chosen answers in the whole step."""

    @property
    def cuts(self) -> list[int]:
        """Between pairs."""
        return super().cuts[::2]


@dataclass(frozen=True, kw_only=True)
class NumberedBatch(Batch):
    """Documents whose tokens know their places."""

    numbers_N: Tensor
    """int64, the place of a token in the whole batch."""


class PairBatches:
    """The training batches, or with `heldout` each held-out pair once. `reference` has the log-probabilities of both
    answers' tokens, for each of `pairs`."""

    unit = "tokens"

    def __init__(
        self,
        pairs: Sequence[TokenPair],
        reference: Sequence[tuple[np.ndarray, np.ndarray]],
        config: DpoConfig,
        *,
        heldout: bool = False,
    ) -> None:
        self.pairs, self.reference = pairs, reference
        numbers = np.array([number for number, pair in enumerate(pairs) if pair.heldout == heldout], np.int64)
        epochs = 1 if heldout else config.epochs
        orders = [stream(config.seed, "pairs", epoch).permutation(numbers) for epoch in range(epochs)]
        order = numbers if heldout else np.concatenate([np.empty(0, np.int64), *orders])
        most = len(order) if heldout else config.max_steps * config.batch_pairs
        cuts = range(config.batch_pairs, min(len(order), most), config.batch_pairs)
        self.steps = [part for part in np.split(order[:most], list(cuts)) if len(part)]
        """The numbers of each step's pairs."""
        self.num_steps = len(self.steps)

    def batch(self, step: int) -> PairBatch:
        """The batch of step `step`."""
        numbers = self.steps[step].tolist()
        packed = pack([sample for number in numbers for sample in self.pairs[number].both], patch_id=None)
        reference_N = torch.zeros(len(packed.tokens_N))
        known = np.concatenate([answer for number in numbers for answer in self.reference[number]])
        reference_N[packed.weights_N != 0] = torch.from_numpy(known.astype(np.float32))
        num_chosen = sum(int(self.pairs[number].chosen.learnt[1:].sum()) for number in numbers)
        return PairBatch(**vars(packed), reference_N=reference_N, num_pairs=len(numbers), num_chosen=num_chosen)


class ReadBatches:
    """Both answers of each pair, to be read once, in batches of `CHUNK_PAIRS`."""

    CHUNK_PAIRS = 64
    unit = "tokens"

    def __init__(self, pairs: Sequence[TokenPair]) -> None:
        self.pairs = pairs
        self.num_steps = -(-len(pairs) // self.CHUNK_PAIRS)

    def chunk(self, step: int) -> Sequence[TokenPair]:
        """The pairs of a batch."""
        return self.pairs[step * self.CHUNK_PAIRS : (step + 1) * self.CHUNK_PAIRS]

    def batch(self, step: int) -> NumberedBatch:
        """The batch of step `step`."""
        packed = pack([sample for pair in self.chunk(step) for sample in pair.both], patch_id=None)
        return NumberedBatch(**vars(packed), numbers_N=torch.arange(len(packed.tokens_N)))
