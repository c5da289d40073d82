"""The texts that a prompt guard is trained on, as words: as they are, as evasions of them, and planted into others.

Batches are a function of the seed and the epoch.
"""

# B windows, L words of a window, U different words, G features of a word

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from herd.core.streams import seed_of, stream
from herd.guard.prompt_guard.evasions import HIDING, TRAINED
from herd.guard.prompt_guard.letters import MARK
from herd.guard.prompt_guard.network import PromptGuardConfig
from herd.guard.prompt_guard.sets import FOR_READER, WRITTEN, Prompt
from herd.guard.prompt_guard.views import views
from herd.guard.prompt_guard.windows import tensors
from herd.guard.prompt_guard.words import Lexicon, split

AS_IT_IS = "as it is"
SHORT = 60
"""Words of a text that is planted into another one."""
AROUND = 40
"""Words before and after it at most."""
Margins = Callable[[Sequence[Sequence[str]]], Sequence[float]]
"""How much of an attack there is in windows of words."""
WEIGHTS = {
    "slips": 4.0,
    AS_IT_IS: 3.0,
    "leetspeak": 2.0,
    "spacing": 2.0,
    "homoglyph": 2.0,
    "lower_case": 2.0,
    "no_spaces": 1.5,
} | dict.fromkeys(HIDING, 0.6)
"""How often a text is written in each way, 1 where nothing is said; as it is, it is read as a guard reads it."""


@dataclass(frozen=True, kw_only=True)
class PromptGuardTraining:
    """How a prompt guard is trained."""

    shape: PromptGuardConfig = field(default_factory=PromptGuardConfig)
    num_epochs: int = 6
    """Passes over the texts."""
    batch_words: int = 4096
    """Words of a batch, padding included."""
    learning_rate: float = 3e-3
    """Its peak: linear over the first twentieth of the steps, then a cosine to zero."""
    weight_decay: float = 0.02
    """Of the matrices."""
    energy_weight: float = 0.05
    """Of the penalty on benign texts."""
    energy_margin: float = 5.0
    """Negative energy from which it begins."""
    evasion_share: float = 0.3
    """Share of the texts that are trained on once more as an evasion of them."""
    word_dropout: float = 0.12
    """Share of the words of a text that are left out, others in each epoch."""
    longest: int = 224
    """Words of a text that are trained on. Of a longer benign text, and of two in three that are longer than `short`, a
    run at random is trained on in each epoch; of an attack always the beginning."""
    short: int = 48
    """Words of the short runs: a third is of so many, a third of twice as many."""
    planted_share: float = 0.25
    """Short attacks that are trained on once more between words of a benign text, as a share of them; and as many short
    benign texts likewise."""
    candidates: int = 8
    """Short runs of a benign text, of which the most suspicious one is trained on."""
    reader_epochs: int = 1
    """Passes of the reader over the texts, once the n-grams are trained."""
    reader_rate: float = 1e-4
    """Peak of its learning rate."""
    reader_evasion_share: float = 0.5
    """As `evasion_share`: a misread word means more to the reader than to n-grams."""
    seed: int = 0


def planted(prompts: Sequence[Prompt], config: PromptGuardTraining) -> Iterator[tuple[list[str], bool]]:
    """Short texts between words of a benign one, as a window shows them, with their labels."""
    rng = stream(config.seed, "planted")
    words = [split(one.text) for one in prompts]
    around = [one for one, prompt in zip(words, prompts, strict=True) if not prompt.attack and len(one) >= AROUND]
    short = {
        label: [at for at, one in enumerate(words) if 0 < len(one) <= SHORT and prompts[at].attack is label]
        for label in (True, False)
    }
    count = round(config.planted_share * len(short[True])) if around else 0
    for label, rows in short.items():
        for at in rng.choice(rows, size=count if rows else 0):
            text = around[int(rng.integers(len(around)))]
            place = int(rng.integers(len(text) + 1))
            before, after = (int(number) for number in rng.integers(AROUND + 1, size=2))
            yield [*text[max(0, place - before) : place], *words[at], *text[place : place + after]], label


@dataclass(frozen=True)
class Examples:
    """Texts as words, with their labels."""

    words: list[list[str]]
    attack: NDArray[np.bool_]

    @classmethod
    def of(cls, prompts: Sequence[Prompt], lexicon: Lexicon, config: PromptGuardTraining) -> "Examples":
        """The texts, and a share of them as evasions."""
        rng, texts, attack = stream(config.seed, "evasions"), [], []
        names = [*TRAINED, AS_IT_IS]
        weights = np.array([WEIGHTS.get(name, 1.0) for name in names])
        for one in prompts:
            # What was written one by one is little and varied, so it is trained on twice as often.
            number = 2 if one.source in (WRITTEN, FOR_READER) else 1
            texts += [one.text] * number
            attack += [one.attack] * number
            if rng.random() >= config.evasion_share:
                continue
            name = names[int(rng.choice(len(names), p=weights / weights.sum()))]
            short = one.text[:1500]
            read = views(TRAINED[name](short, rng) if name != AS_IT_IS else one.text, lexicon)
            # Mostly the last reading, which is the most opened one; the others must not alarm by themselves.
            text = read[-1 if rng.random() < 0.7 else int(rng.integers(len(read)))]
            if name in HIDING:
                # What was hidden counts as an attack whatever it says; a cipher that was not read says nothing.
                if MARK in text or one.attack:
                    texts.append(text)
                    attack.append(True)
            elif text != one.text:
                texts.append(text)
                attack.append(one.attack)
        words = [split(text) for text in texts]
        for cut, label in planted(prompts, config):
            words.append(cut)
            attack.append(label)
        kept = [at for at, one in enumerate(words) if one]
        return cls([words[at] for at in kept], np.array([attack[at] for at in kept]))

    def lengths(self, number: int, config: PromptGuardTraining) -> NDArray[np.int64]:
        """Words of each text that an epoch trains on."""
        # An attack may stand anywhere in its text, so nothing of it is cut off.
        drawn = stream(config.seed, "lengths", number).choice(
            [config.short, 2 * config.short, 1 << 20], len(self.words)
        )
        whole = np.array([min(len(one), config.longest) for one in self.words])
        return np.where(self.attack, whole, np.minimum(whole, drawn))

    def epoch(self, number: int, config: PromptGuardTraining) -> list[NDArray[np.int64]]:
        """Batches of like lengths, in a random order: rows and how many words of each."""
        rng = stream(config.seed, "epoch", number)
        lengths = self.lengths(number, config)
        order = np.argsort(lengths * np.exp(rng.normal(0, 0.1, len(lengths))), kind="stable")
        return shuffled(order, lengths, config.batch_words, rng)

    def cuts(self, plan: NDArray[np.int64], number: int, config: PromptGuardTraining, margins: Margins) -> list[int]:
        """Where the run of each row of a batch begins: anywhere, and of short ones where `margins` finds most of an
        attack in what is benign (of `candidates` places)."""
        begins: list[int] = []
        tried: list[tuple[int, int]] = []
        windows: list[list[str]] = []
        for at, (row, length) in enumerate(plan.T.tolist()):
            spare = 0 if self.attack[row] else len(self.words[row]) - length
            places = range(config.candidates if length <= config.short else 1)
            drawn = {seed_of(config.seed, "cut", number, row, place) % (spare + 1) for place in places}
            begins.append(min(drawn))
            if len(drawn) > 1:
                tried += [(at, begin) for begin in sorted(drawn)]
                windows += [self.words[row][begin : begin + length] for begin in sorted(drawn)]
        if windows:
            for place in np.argsort(margins(windows), kind="stable"):
                at, begin = tried[place]
                begins[at] = begin
        return begins

    def tensors(
        self, plan: NDArray[np.int64], number: int, config: PromptGuardTraining, margins: Margins
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(features_UG, index_BL, attack_B) of a batch of an epoch."""
        batch, rng = [], stream(config.seed, "words", number, int(plan[0, 0]))
        begins = self.cuts(plan, number, config, margins)
        for (row, length), at in zip(plan.T.tolist(), begins, strict=True):
            words = self.words[row][at : at + length]
            kept = rng.random(length) >= config.word_dropout
            # A text that was hidden is an attack for its mark alone.
            batch.append([word for word, keep in zip(words, kept, strict=True) if keep or word == MARK] or words[:1])
        return *tensors(batch, config.shape.buckets), torch.from_numpy(self.attack[plan[0]])


def shuffled(
    order: NDArray[np.int64], lengths: NDArray[np.int64], words: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Batches of neighbours in `order`, of at most so many words with their padding, in a random order: rows and how
    many words of each."""
    batches, begin = [], 0
    while begin < len(order):
        end = begin + 1
        while end < len(order) and (end - begin + 1) * lengths[order[begin : end + 1]].max() <= words:
            end += 1
        batches.append(np.stack((order[begin:end], lengths[order[begin:end]])))
        begin = end
    return [batches[at] for at in rng.permutation(len(batches))]
