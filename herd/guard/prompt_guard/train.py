"""Training of a prompt guard, its n-grams and then its reader.

The loss is cross-entropy, and a penalty on benign texts whose energy is far below zero:

    loss = mean CE(logits, label) + weight · mean over benign texts of max(0, -E(x) - margin)²

The penalty keeps the guard from ever surer verdicts on what training shows to be benign (Llama Prompt Guard 2's card,
after arXiv 2010.03759): a text of a new kind is then less likely to be called benign with certainty. A checkpoint is
written after each epoch, and a run that was stopped resumes there.
"""

# B windows, L words of a window, U different words, G features of a word

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from herd.core.files import write_json
from herd.core.lineage import STATE, Stage
from herd.core.progress import progress_bar
from herd.core.streams import seed_of
from herd.errors import HerdError
from herd.guard.prompt_guard.examples import Examples, Margins, PromptGuardTraining
from herd.guard.prompt_guard.guard import PromptGuard, scripts_of
from herd.guard.prompt_guard.network import Network, energy
from herd.guard.prompt_guard.reader import Reader
from herd.guard.prompt_guard.runs import Runs
from herd.guard.prompt_guard.sets import ECHOES, FOR_READER, Prompt, Sets
from herd.guard.prompt_guard.windows import tensors
from herd.guard.prompt_guard.words import Lexicon

Batch = tuple[Tensor, ...]
"""What a network reads, and which of it is an attack."""


def loss_of(
    logits_B2: Float[Tensor, "b 2"], attack_B: Bool[Tensor, "b"], *, weight: float, margin: float
) -> Float[Tensor, ""]:
    """mean CE + weight · mean over benign texts of max(0, -E - margin)²."""
    entropy = functional.cross_entropy(logits_B2, attack_B.long())
    benign_B = (~attack_B).float()
    excess_B = (-energy(logits_B2) - margin).clamp(min=0) ** 2
    return entropy + weight * (excess_B * benign_B).sum() / benign_B.sum().clamp(min=1)


class Trainer:
    """A network with its optimizer, and where it is."""

    def __init__(self, network: nn.Module, config: PromptGuardTraining, steps: int, learning_rate: float) -> None:
        self.network, self.config, self.steps, self.step = network, config, steps, 0
        self.learning_rate = learning_rate
        matrices = [p for p in self.network.parameters() if p.dim() > 1]
        others = [p for p in self.network.parameters() if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)

    def update(self, *batch: Tensor) -> float:
        """One step on what the network reads and attack_B; its loss."""
        *inputs, attack_B = batch
        warm = min(1.0, (self.step + 1) / max(1, self.steps // 20))
        rate = warm * 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * rate
        logits_B2 = self.network(*inputs)
        loss = loss_of(logits_B2, attack_B, weight=self.config.energy_weight, margin=self.config.energy_margin)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return float(loss.detach())

    def fit(self, batches: Callable[[int], Iterator[Batch]], epochs: int, stage: Stage, name: str) -> float:
        """So many passes, each saved, going on where a stopped run was; the mean loss of the last one."""
        state, begin = stage.work / STATE, 0
        for number in range(epochs, 0, -1):
            if (path := state / f"{name}-{number}.safetensors").exists():
                self.load(path)
                begin = number
                break
        self.network.train()
        losses: list[float] = []
        with progress_bar(f"prompt guard, {name}", self.steps, done=self.step) as bar:
            for number in range(begin, epochs):
                # Dropout too is a function of the seed and the epoch, so that a resumed run ends as one that was not
                # stopped.
                torch.manual_seed(seed_of(self.config.seed, "dropout", name, number) % 2**31)
                losses = []
                for batch in batches(number):
                    losses.append(self.update(*batch))
                    bar.advance(note=f"epoch {number + 1}, loss {np.mean(losses[-50:]):.4f}")
                self.save(state / f"{name}-{number + 1}.safetensors")
                (state / f"{name}-{number}.safetensors").unlink(missing_ok=True)
                stage.save_time()
        self.network.eval()
        return float(np.mean(losses)) if losses else math.nan

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


def margins_now(network: Network) -> Margins:
    """How much of an attack a network in training finds in windows as it is at that moment."""

    def margins(batch: Sequence[Sequence[str]]) -> list[float]:
        network.eval()
        with torch.no_grad():
            logits_B2 = network(*tensors(batch, network.config.buckets))
        network.train()
        return list((logits_B2[:, 1] - logits_B2[:, 0]).tolist())

    return margins


def train_prompt_guard(
    sets: Sets, config: PromptGuardTraining, out: Path, parents: dict[str, Path], reader: Reader | None = None
) -> Path:
    """Train on `sets` and write the folder, with the threshold of `threshold_of`: the n-grams, then the reader."""
    shape = asdict(reader.config) if reader else None
    stage = Stage("prompt-guard", out, config=asdict(config) | {"reader": shape}, parents=parents)
    known = [one for one in sets.train if one.source != FOR_READER]
    lexicon = Lexicon.of(one.text for one in known)
    examples = Examples.of(known, lexicon, config)
    plans = [examples.epoch(number, config) for number in range(config.num_epochs)]
    torch.manual_seed(seed_of(config.seed, "prompt guard") % 2**31)
    network = Network(config.shape)
    trainer = Trainer(network, config, sum(map(len, plans)), config.learning_rate)

    def batches(number: int) -> Iterator[Batch]:
        margins = margins_now(network)
        return (examples.tensors(plan, number, config, margins) for plan in plans[number])

    loss = trainer.fit(batches, config.num_epochs, stage, "step")
    if reader is not None:
        own = replace(config, evasion_share=config.reader_evasion_share)
        runs = Runs(Examples.of(sets.train, lexicon, own), network, reader, config)
        Trainer(reader, config, runs.num_steps, config.reader_rate).fit(
            runs.batches, config.reader_epochs, stage, "reader"
        )
    scripts = scripts_of([one.text for one in sets.train])
    guard = PromptGuard.of(network, lexicon, scripts=scripts, reader=reader)
    scores = np.array(guard.scores([one.text for one in sets.valid]))
    labels = np.array([one.attack for one in sets.valid])
    if labels.all() or not labels.any():
        raise HerdError("the validation texts have one label only: give more texts, or more groups")
    guard.threshold = threshold_of([one.source for one in sets.valid if not one.attack], scores[~labels])
    facts: dict[str, Any] = {
        "train": len(sets.train), "valid": len(sets.valid), "dropped_for_overlap": sets.dropped,
        "parameters": guard.num_parameters, "loss": None if math.isnan(loss) else loss,
        "valid_recall": float((scores[labels] >= guard.threshold).mean()), "threshold": guard.threshold,
    }  # fmt: skip
    guard.save(stage.work)
    write_json(stage.work / "validation.json", facts | {"by_source": by_source(sets.valid, scores, guard.threshold)})
    return stage.finish(metrics=facts)


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
