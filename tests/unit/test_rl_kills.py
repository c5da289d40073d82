"""SIGKILL at random moments of an asynchronous run: it ends as one that was left in peace, to the bit."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from rl_world import Jittered, make_world, settings

from herd.rl.journal import Journal
from herd.rl.rollouts import NO_SIGNAL
from herd.stages.rl import JOURNAL, rl


def work(world: tuple[Path, Path], out: Path, num_steps: int) -> None:
    """Train to the end from where the last attempt left it; saves follow each other closely."""
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    rl(settings(Jittered, num_steps=num_steps, mode="pinned", lag=2, group_size=3, max_tokens=6), *world, out)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def run(world: tuple[Path, Path], out: Path, num_steps: int, num_kills: int, seed: int, length: int = 0) -> Journal:
    """Run to the end, with `num_kills` kills on the way, the first once there is a checkpoint to resume from. `length`
    of the whole run's journal, in bytes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["herd.stages.rl"])  # not this module, which a forkserver does not find
    rng, kills, journal = random.Random(seed), 0, out.parent / f"{out.name}.partial" / JOURNAL
    size = 0
    while True:
        child = context.Process(target=work, args=(world, out, num_steps))
        child.start()
        if kills < num_kills:
            # Some while it starts, most after some progress, and always within whatever is at work.
            wanted = size + rng.random() * (length - size) / (num_kills - kills + 1)
            while child.is_alive() and size_of(journal) < wanted:
                time.sleep(0.002)
            while child.is_alive() and not kills and not any(journal.parent.glob("state/step-*/.metadata")):
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.05))
            child.kill()
        child.join()
        size = size_of(journal)
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        kills += 1
    assert kills == num_kills, "the run was over before: give it more steps"
    return Journal(out / JOURNAL, read_only=True)


def check(folder: Path, num_steps: int, num_kills: int) -> None:
    world = make_world(folder)
    calm = run(world, folder / "calm", num_steps, 0, 0)
    killed = run(world, folder / "killed", num_steps, num_kills, 1, size_of(folder / "calm" / JOURNAL))
    assert killed.published == calm.published
    assert killed.picked == calm.picked
    assert len(calm.published) == num_steps + 1
    # Every group is trained exactly once or listed as dropped.
    trained = [ordinal for ordinals in killed.picked.values() for ordinal in ordinals]
    assert len(set(trained)) == len(trained)
    assert set(trained) | set(killed.dropped) == set(killed.admitted)
    assert not set(trained) & set(killed.dropped)
    assert set(killed.dropped.values()) <= {NO_SIGNAL}


def test_killed_twice_a_run_ends_the_same_to_the_bit(tmp_path: Path):
    check(tmp_path, num_steps=8, num_kills=2)


@pytest.mark.slow
def test_killed_fifty_times_a_run_ends_the_same_to_the_bit(tmp_path: Path):
    check(tmp_path, num_steps=100, num_kills=50)
