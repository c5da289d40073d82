"""Training of a prompt guard: cross-entropy, and a penalty on benign texts whose energy is far below zero.

    loss = mean CE(logits, label) + weight · mean over benign texts of max(0, -E(x) - margin)²

The penalty keeps the guard from ever surer verdicts on what training shows to be benign (Llama Prompt Guard 2's card,
after arXiv 2010.03759): a text of a new kind is then less likely to be called benign with certainty. A share of the
texts is trained on a second time, written as evasions are and read as `views` reads them. Batches are a function of the
seed and the epoch, a checkpoint is written after each epoch, and a run that was stopped resumes there.
"""

# B windows, L words of a window, U different words, G features of a word

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from herd.core.files import write_json
from herd.core.lineage import STATE, Stage
from herd.core.progress import ProgressBar, progress_bar
from herd.core.streams import seed_of, stream
from herd.errors import HerdError
from herd.guard.prompt_guard.evasions import HIDING, TRAINED
from herd.guard.prompt_guard.guard import PromptGuard, scripts_of
from herd.guard.prompt_guard.letters import MARK
from herd.guard.prompt_guard.network import Network, PromptGuardConfig, energy
from herd.guard.prompt_guard.sets import ECHOES, WRITTEN, Prompt, Sets
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
    seed: int = 0


def loss_of(
    logits_B2: Float[Tensor, "b 2"], attack_B: Bool[Tensor, "b"], *, weight: float, margin: float
) -> Float[Tensor, ""]:
    """mean CE + weight · mean over benign texts of max(0, -E - margin)²."""
    entropy = functional.cross_entropy(logits_B2, attack_B.long())
    benign_B = (~attack_B).float()
    excess_B = (-energy(logits_B2) - margin).clamp(min=0) ** 2
    return entropy + weight * (excess_B * benign_B).sum() / benign_B.sum().clamp(min=1)


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
            number = 2 if one.source == WRITTEN else 1
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
        batches, begin = [], 0
        while begin < len(order):
            end = begin + 1
            while end < len(order) and (end - begin + 1) * lengths[order[begin : end + 1]].max() <= config.batch_words:
                end += 1
            batches.append(np.stack((order[begin:end], lengths[order[begin:end]])))
            begin = end
        return [batches[at] for at in rng.permutation(len(batches))]

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


class Trainer:
    """The network with its optimizer, and where it is."""

    def __init__(self, config: PromptGuardTraining, steps: int) -> None:
        torch.manual_seed(seed_of(config.seed, "prompt guard") % 2**31)
        self.config, self.steps, self.step = config, steps, 0
        self.network = Network(config.shape)
        matrices = [p for p in self.network.parameters() if p.dim() > 1]
        others = [p for p in self.network.parameters() if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)

    def update(self, features_UG: Tensor, index_BL: Tensor, attack_B: Tensor) -> float:
        """One step; its loss."""
        warm = min(1.0, (self.step + 1) / max(1, self.steps // 20))
        rate = warm * 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * rate
        logits_B2 = self.network(features_UG, index_BL)
        loss = loss_of(logits_B2, attack_B, weight=self.config.energy_weight, margin=self.config.energy_margin)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return float(loss.detach())

    @torch.no_grad()
    def margins(self, batch: Sequence[Sequence[str]]) -> list[float]:
        """How much of an attack the network finds in windows as it is now."""
        self.network.eval()
        logits_B2 = self.network(*tensors(batch, self.config.shape.buckets))
        self.network.train()
        return list((logits_B2[:, 1] - logits_B2[:, 0]).tolist())

    def save(self, path: Path) -> None:
        """Weights and moments, without pickle."""
        state = {f"weight.{name}": value for name, value in self.network.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                state[f"{key}.{name}"] = value
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        save_file(state, part, {"step": str(self.step)})
        part.replace(path)

    def load(self, path: Path) -> None:
        """As `save` left it."""
        state = load_file(path)
        self.network.load_state_dict({name[7:]: value for name, value in state.items() if name.startswith("weight.")})
        for name, parameter in self.network.named_parameters():
            kept = {key: state[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = kept
            self.step = int(kept["step"])


def train_prompt_guard(sets: Sets, config: PromptGuardTraining, out: Path, parents: dict[str, Path]) -> Path:
    """Train on `sets` and write the folder, with the threshold of `threshold_of`."""
    stage = Stage("prompt-guard", out, config=asdict(config), parents=parents)
    lexicon = Lexicon.of(one.text for one in sets.train)
    examples = Examples.of(sets.train, lexicon, config)
    plans = [examples.epoch(number, config) for number in range(config.num_epochs)]
    trainer = Trainer(config, sum(map(len, plans)))
    state, begin = stage.work / STATE, 0
    for number in range(config.num_epochs, 0, -1):
        if (path := state / f"step-{number}.safetensors").exists():
            trainer.load(path)
            begin = number
            break
    losses: list[float] = []
    trainer.network.train()
    done = sum(map(len, plans[:begin]))
    with progress_bar("prompt guard", trainer.steps, done=done) as bar:
        for number in range(begin, config.num_epochs):
            losses = _epoch(trainer, examples, plans[number], number, bar)
            trainer.save(state / f"step-{number + 1}.safetensors")
            (state / f"step-{number}.safetensors").unlink(missing_ok=True)
            stage.save_time()
    guard = PromptGuard.of(trainer.network, lexicon, scripts=scripts_of([one.text for one in sets.train]))
    scores = np.array(guard.scores([one.text for one in sets.valid]))
    labels = np.array([one.attack for one in sets.valid])
    if labels.all() or not labels.any():
        raise HerdError("the validation texts have one label only: give more texts, or more groups")
    guard.threshold = threshold_of([one.source for one in sets.valid if not one.attack], scores[~labels])
    facts: dict[str, Any] = {
        "train": len(sets.train), "valid": len(sets.valid), "dropped_for_overlap": sets.dropped,
        "parameters": trainer.network.num_parameters, "loss": float(np.mean(losses)) if losses else None,
        "valid_recall": float((scores[labels] >= guard.threshold).mean()), "threshold": guard.threshold,
    }  # fmt: skip
    guard.save(stage.work)
    write_json(stage.work / "validation.json", facts | {"by_source": by_source(sets.valid, scores, guard.threshold)})
    return stage.finish(metrics=facts)


def _epoch(
    trainer: Trainer, examples: Examples, plan: list[NDArray[np.int64]], number: int, bar: ProgressBar
) -> list[float]:
    # Dropout too is a function of the seed and the epoch, so that a resumed run ends as one that was not stopped.
    torch.manual_seed(seed_of(trainer.config.seed, "dropout", number) % 2**31)
    losses = []
    for batch in plan:
        losses.append(trainer.update(*examples.tensors(batch, number, trainer.config, trainer.margins)))
        bar.advance(note=f"epoch {number + 1}, loss {np.mean(losses[-50:]):.4f}")
    return losses


def threshold_of(sources: Sequence[str], scores: NDArray[np.float64], rate: float = 0.01) -> float:
    """The score from which on a share of `rate` of the benign texts is flagged at most, each source weighing the same.

    Generated texts that use the words of attacks (ECHOES) do not count where there are others: how many there are of
    them is our choice, and says nothing of what a guard will read.
    """
    names = np.array(sources)
    counted = np.array([name not in ECHOES for name in sources])
    if not counted.any():
        counted = ~counted
    names, scores = names[counted], scores[counted]
    order = np.argsort(-scores, kind="stable")
    weights = np.array([1 / (names == name).sum() for name in names[order]]) / len(set(names))
    first = int(np.searchsorted(np.cumsum(weights), rate * (1 + 1e-9), side="right"))
    return float(np.nextafter(scores[order[first]], 2))


def by_source(prompts: Sequence[Prompt], scores: NDArray[np.float64], threshold: float) -> dict[str, dict[str, float]]:
    """By source and label, the texts and the share that is flagged."""
    found: dict[str, list[bool]] = {}
    for one, score in zip(prompts, scores, strict=True):
        found.setdefault(f"{one.source}: {'attack' if one.attack else 'benign'}", []).append(bool(score >= threshold))
    return {name: {"count": len(hits), "flagged": sum(hits) / len(hits)} for name, hits in sorted(found.items())}
