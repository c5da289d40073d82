"""SIGKILL at random moments, in the middle of saves too: the run ends as one that was left in peace, to the bit."""

import multiprocessing
import os
import random
import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from herd.config import CheckpointConfig, MoEConfig, PretrainConfig, SpecialIds, preset
from herd.core.batch import Batch
from herd.core.lineage import Stage
from herd.core.tracker import read_metrics
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.train.balance import Balancer
from herd.train.checkpoint import candidates, fault
from herd.train.loop import train
from herd.train.losses import language_loss

SPECIAL = SpecialIds(bos=1, end_of_text=2, eom=3, eot=4, pad=5)
POISONED = 40
"""Every so-many-th batch weighs a thousand times too much: the window of outliers goes through the kills too."""


class Batches:
    """Random tokens, a function of the step; which are made is written to a log that outlives a kill."""

    unit = "tokens"

    def __init__(self, num_steps: int, log: Path) -> None:
        self.num_steps, self.log = num_steps, log

    def batch(self, step: int) -> Batch:
        handle = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, f"{step}\n".encode())
        os.close(handle)
        tokens = torch.randint(10, 64, (32,), generator=torch.Generator().manual_seed(step))
        weight = (1000 if step % POISONED == POISONED - 1 else 1) / 32
        return Batch(
            tokens_N=tokens,
            targets_N=tokens.roll(-1),
            weights_N=torch.full((32,), weight),
            total_weight=1.0,
            positions_N=torch.arange(32),
            starts_S=torch.tensor([0, 32], dtype=torch.int32),
            images=None,
            kinds_N=torch.zeros(32, dtype=torch.int8),
        )


def work(out: Path, num_steps: int, log: Path) -> None:
    """Train a very small model to the end from where the last attempt left it; saves follow each other closely."""
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    shape = replace(preset("tiny", vocab_size=64, special=SPECIAL), dim=32, num_layers=2, head_dim=8, vision=None)
    model = Transformer(replace(shape, moe=MoEConfig(num_experts=4, ffn_dim=32))).to(torch.bfloat16)
    initialise(model, torch.Generator().manual_seed(0))
    config = PretrainConfig(checkpoint=CheckpointConfig(every_s=0.0))
    stage = Stage("test", out, config={}, parents={})
    batches, loss_fn = Batches(num_steps, log), language_loss(0.01)
    train(model, batches, loss_fn, config, stage, hooks=[Balancer(model, 0.05, batches, loss_fn)])
    torch.save(model.state_dict(), out.parent / "final.pt")


@dataclass
class Story:
    """What became of a run."""

    lines: list[dict[str, Any]]
    weights: dict[str, torch.Tensor]
    kills: int = 0
    torn: int = 0
    """Kills that left a checkpoint half written."""
    first_steps: list[int] = field(default_factory=list)
    """The step that each attempt began with."""
    commits: list[int] = field(default_factory=list)
    """Steps behind the newest whole checkpoint at the begin of each attempt."""


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def make_story(folder: Path, num_steps: int, num_kills: int, seed: int) -> Story:
    """Run to the end, with `num_kills` kills on the way."""
    folder.mkdir()
    context = multiprocessing.get_context("forkserver")
    # torch is imported once, not at each attempt. Not this module, which a forkserver does not find.
    context.set_forkserver_preload(["herd.stages.rl"])
    rng, story = random.Random(seed), Story([], {})
    root, log = folder / "out.partial" / "state", folder / "batches"
    while True:
        newest = next((path for path in candidates(root) if fault(path) is None), None) if root.exists() else None
        assert newest is None or newest == candidates(root)[0]  # under its final name a checkpoint is whole
        story.commits.append(int(newest.name.removeprefix("step-")) if newest else 0)
        before = size_of(log)
        child = context.Process(target=work, args=(folder / "out", num_steps, log))
        child.start()
        if story.kills < num_kills:
            # After a few batches in most cases, while it starts in some, and always within a step as it happens.
            wanted = before + rng.choice([0, *range(1, 40)])
            while child.is_alive() and size_of(log) < wanted:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.03))
            os.kill(child.pid, signal.SIGKILL)
        child.join()
        made = log.read_bytes()[before:].split() if log.exists() else []
        story.first_steps += [int(made[0]) if made else -1]
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        story.kills += 1
        story.torn += any(root.glob("*.writing")) if root.exists() else 0
    story.lines = read_metrics(folder / "out.partial" / "metrics.jsonl")
    story.weights = torch.load(folder / "final.pt", weights_only=True)
    return story


def check(folder: Path, num_steps: int, num_kills: int, seed: int) -> Story:
    calm, killed = (
        make_story(folder / "calm", num_steps, 0, seed),
        make_story(folder / "killed", num_steps, num_kills, seed),
    )
    print(f"{killed.kills} kills, {killed.torn} of them in a save, at {killed.commits}")
    assert killed.kills == num_kills, "the run was over before: give it more steps"
    for commit, first in zip(killed.commits, killed.first_steps, strict=True):
        assert first in (commit, -1)  # -1: killed before it read anything
    clock = {"seconds", "tokens_per_s", "data_wait_s"}
    one, other = ([{k: v for k, v in line.items() if k not in clock} for line in s.lines] for s in (calm, killed))
    assert one == other
    assert [line["step"] for line in other] == list(range(num_steps))
    # In a long run a good step counts as an outlier too, here and there; the same ones in both.
    assert {line["step"] for line in other if "skipped" in line} >= set(range(POISONED - 1, num_steps, POISONED))
    assert calm.weights.keys() == killed.weights.keys()
    for name, tensor in calm.weights.items():
        assert torch.equal(tensor, killed.weights[name]), name
    return killed


def test_a_run_killed_six_times_ends_with_the_bits_of_one_left_in_peace(tmp_path: Path) -> None:
    check(tmp_path, num_steps=150, num_kills=6, seed=0)


@pytest.mark.slow
def test_a_run_killed_a_hundred_times_ends_with_the_bits_of_one_left_in_peace(tmp_path: Path) -> None:
    assert check(tmp_path, num_steps=800, num_kills=100, seed=1).torn >= 10
