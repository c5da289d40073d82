"""A run with 1 % poisoned batches ends within 0.1 % of the loss of one that never saw them."""

from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
import torch

from herd.config import CheckpointConfig, MoEConfig, OptimizerConfig, PretrainConfig, SpecialIds, preset
from herd.core.batch import Batch
from herd.core.lineage import Stage
from herd.core.streams import stream
from herd.core.tracker import read_metrics
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.train.loop import train
from herd.train.loss_spikes import FIRST
from herd.train.losses import language_loss

ROOT = Path(__file__).parents[2]
LENGTH, DOCUMENTS = 64, 16
SHAPE = replace(
    preset("tiny", vocab_size=264, special=SpecialIds(bos=256, end_of_text=257, eom=258, eot=259, pad=260)),
    dim=64,
    num_layers=2,
    nope_every=2,
    head_dim=16,
    dense_ffn_dim=128,
    vision=None,
    moe=MoEConfig(num_experts=4, ffn_dim=64),
)
# Rates at which two runs of the same batches stay near each other: at higher ones rounding alone parts them by 0.3 %.
RATES = OptimizerConfig(matrix_lr=0.003, embedding_lr=0.006, other_lr=0.002, unembedding_lr=0.002, decay=0.9)


def text(*patterns: str) -> np.ndarray:
    """Bytes of this repository's own files."""
    paths = sorted(path for pattern in patterns for path in ROOT.glob(pattern))
    return np.frombuffer(b"\n".join(path.read_bytes() for path in paths), np.uint8)


def cut(text_T: np.ndarray, rng: np.random.Generator) -> Batch:
    """Pieces of a text from random places."""
    starts = rng.integers(0, len(text_T) - LENGTH - 1, DOCUMENTS)
    pieces = np.stack([text_T[start : start + LENGTH + 1] for start in starts]).astype(np.int64)
    count = LENGTH * DOCUMENTS
    return Batch(
        tokens_N=torch.from_numpy(pieces[:, :-1].reshape(-1).copy()),
        targets_N=torch.from_numpy(pieces[:, 1:].reshape(-1).copy()),
        weights_N=torch.ones(count),
        positions_N=torch.arange(LENGTH).repeat(DOCUMENTS),
        starts_S=torch.arange(0, count + 1, LENGTH, dtype=torch.int32),
        images=None,
        kinds_N=torch.zeros(count, dtype=torch.int8),
    )


def poisoned(batch: Batch, kind: int) -> Batch:
    """Targets of chance; backwards with a thousand times the weight; not a number; tokens of chance."""
    chance_N = torch.randint(0, 256, batch.targets_N.shape, generator=torch.Generator().manual_seed(kind))
    return [
        replace(batch, targets_N=chance_N),
        replace(batch, tokens_N=batch.tokens_N.flip(0), weights_N=1000 * batch.weights_N),
        replace(batch, weights_N=batch.weights_N * torch.nan),
        replace(batch, tokens_N=chance_N),
    ][kind % 4]


class Batches:
    """The same good batches with and without poisoned ones between them."""

    unit = "tokens"

    def __init__(self, text_T: np.ndarray, seed: int, num_good: int, num_bad: int) -> None:
        self.text_T, self.seed, self.num_steps = text_T, seed, num_good + num_bad
        self.bad = sorted(stream(seed, "bad").permutation(self.num_steps)[:num_bad].tolist())
        self.good = [step for step in range(self.num_steps) if step not in set(self.bad)]

    def batch(self, step: int) -> Batch:
        if step in self.bad:
            return poisoned(cut(self.text_T, stream(self.seed, "bad", step)), self.bad.index(step))
        return cut(self.text_T, stream(self.seed, "good", self.good.index(step)))


@pytest.mark.slow
def test_one_percent_of_poison_changes_the_final_loss_by_less_than_a_thousandth(tmp_path: Path) -> None:
    learnt_T, held_T = text("herd/**/*.py", "tests/**/*.py"), text("docs/*.md")
    apart = []
    for seed in range(3):
        final = {}
        for num_bad in (0, 6):
            model = Transformer(SHAPE)
            initialise(model, torch.Generator().manual_seed(seed))
            batches = Batches(learnt_T, seed, 600, num_bad)
            config = PretrainConfig(seed=seed, checkpoint=CheckpointConfig(every_s=1e6), optimizer=RATES)
            out = tmp_path / f"{seed}-{num_bad}"
            train(model, batches, language_loss(0.01), config, Stage("test", out, config={}, parents={}))
            lines = read_metrics(out.with_name(f"{out.name}.partial") / "metrics.jsonl")
            skipped = {line["step"] for line in lines if "skipped" in line}
            assert skipped >= {step for step in batches.bad if step >= FIRST}
            assert len(skipped - set(batches.bad)) <= 2  # 6 sigma are rare
            with torch.no_grad():
                loss_fn = language_loss(0.0)
                losses = [float(loss_fn(model, cut(held_T, stream(7, "held", i)))[0]) for i in range(60)]
            final[num_bad] = mean(losses)
        apart.append(final[6] / final[0] - 1)
        print(f"seed {seed}: {final[0]:.5f} without, {final[6]:.5f} with, apart by {100 * apart[-1]:+.3f} %")
    assert abs(mean(apart)) < 0.001, apart
