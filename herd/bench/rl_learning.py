"""`herd bench rl --cases learning`: what online RL gives a model whose demonstrations are scarce, beside its controls.

Each seed has a model of its own, fine-tuned to its plateau on few demonstrations of two environments: digits to sort
and reverse, and sums of ten to find, which have many right answers. From there the arms are trained: RL and its
controls for the same steps, and fine-tuning for the seconds that RL took (of the processor, one thread), at three
rates. All are asked held-out tasks, whose content no arm was trained on. What is finished under `out` is read.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from herd.bench.table import T_95, Row, interval
from herd.config import (
    CheckpointConfig,
    CurriculumConfig,
    DataConfig,
    DemonstrationSource,
    LossSpikesConfig,
    NewModelConfig,
    RlConfig,
    SftConfig,
)
from herd.config.training import TrainingDtype
from herd.core.files import read_json, write_json
from herd.core.streams import stream
from herd.engine.load import load
from herd.engine.sampler import SamplingParams
from herd.errors import HerdError
from herd.rl.advantages import pass_at_k
from herd.rl.environment import Environment, Reaction, open_environment
from herd.stages.data import build_data
from herd.stages.new_model import new_model
from herd.stages.rl import rl
from herd.stages.sft import sft

CELLS = {"digits": ("sort-*", "reverse-*"), "search": ("ten-*",)}
SPECS = {name: f"{name}[{','.join(cells)}]" for name, cells in CELLS.items()}
DEMONSTRATIONS = {"digits": 180, "search": 60}
BASE_TOKENS = 450_000
STEPS, GROUPS, RATE = 100, 32, 0.1
SFT_RATES = (0.25, 0.5, 1.0)
ASKED, ANSWERS = 20, 8
"""Held-out prompts of each cell, and answers to each."""
MAX_TOKENS = 32
BASE, RL, UNIFORM, RANDOM = "the base", "rl", "rl, uniform", "rl, random rewards"
EASY_AT = 0.5
"""Cells that the base passes more often are easy, the others hard."""


class RandomRewards:
    """An environment whose rewards have nothing to do with the answers: a third of them are 1."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.cells, self.tools, self.prompt = environment.cells, environment.tools, environment.prompt

    def respond(self, messages: Any, answer: Mapping[str, Any], *, seed: int = 0) -> Reaction:
        return Reaction(reward=float(stream(seed, "random reward").random() < 1 / 3))


def random_digits(seed: int, heldout: bool) -> RandomRewards:
    """As an environment by `module:name`."""
    return RandomRewards(open_environment(SPECS["digits"], None, seed, heldout=heldout))


def random_search(seed: int, heldout: bool) -> RandomRewards:
    """As an environment by `module:name`."""
    return RandomRewards(open_environment(SPECS["search"], None, seed, heldout=heldout))


@dataclass(frozen=True, kw_only=True)
class World:
    """The folders of one seed."""

    seed: int
    folder: Path
    data: Path
    base: Path
    tokens_per_s: float
    """Of fine-tuning, by the processor's time."""


def make_world(seed: int, out: Path, dtype: TrainingDtype = "bfloat16") -> World:
    """Data and base of one seed, made now or before."""
    folder = out / f"seed-{seed}"
    data, new, base = folder / "data", folder / "new", folder / "base"
    sources = tuple(
        DemonstrationSource(environment=name, num=num, cells=CELLS[name]) for name, num in DEMONSTRATIONS.items()
    )
    if not data.exists():
        build_data(DataConfig(demonstrations=sources, vocab_size=320, seed=seed), data)
    if not new.exists():
        shape = NewModelConfig(
            text_only=True, dim=128, num_layers=3, num_heads=2, num_kv_heads=1, num_experts=4, expert_ffn_dim=128,
            dense_ffn_dim=256, seed=seed,
        )  # fmt: skip
        new_model(shape, data, new)
    seconds = timed(base, lambda: fine_tune(base, new, data, BASE_TOKENS, seed, 1.0, dtype))
    return World(seed=seed, folder=folder, data=data, base=base, tokens_per_s=BASE_TOKENS / seconds)


def timed(out: Path, work: Callable[[], object]) -> float:
    """Seconds of the processor that the work on a folder took, now or before."""
    kept = out.with_suffix(".seconds.json")
    if not (out.exists() and kept.exists()):
        begin = time.process_time()
        work()
        write_json(kept, time.process_time() - begin)
    seconds: float = read_json(kept)
    return seconds


def fine_tune(
    out: Path, model: Path, data: Path, num_tokens: int, seed: int, rate: float, dtype: TrainingDtype = "bfloat16"
) -> None:
    base = SftConfig()
    config = SftConfig(
        seed=seed, num_tokens=num_tokens, batch_tokens=1024, context=128, replay_share=0.0, dtype=dtype,
        max_epochs=0, optimizer=replace(base.optimizer, lr_scale=rate, decay=0.5),
        checkpoint=CheckpointConfig(every_s=600), loss_spikes=LossSpikesConfig(skip=("not_finite",)),
    )  # fmt: skip
    sft(config, model, data, out)


def reinforce(out: Path, world: World, **changes: Any) -> None:
    base = RlConfig()
    config = RlConfig(
        **{
            "environments": tuple(SPECS.values()), "num_steps": STEPS,
            "groups": GROUPS, "max_tokens": MAX_TOKENS, "seed": world.seed, "dtype": "bfloat16",
            "optimizer": replace(base.optimizer, lr_scale=RATE), "checkpoint": CheckpointConfig(every_s=600), **changes,
        }
    )  # fmt: skip
    rl(config, world.base, world.data, out)


ARMS: dict[str, dict[str, Any]] = {
    RL: {},
    UNIFORM: {"curriculum": CurriculumConfig(uniform=True)},
    RANDOM: {"environments": (f"{__name__}:random_digits", f"{__name__}:random_search")},
}


def measure(model: Path, seed: int, kept: Path) -> dict[str, list[int]]:
    """Right answers of ANSWERS to each held-out prompt, by environment and cell; kept in a file."""
    if not kept.exists():
        opened, params = load(model), SamplingParams(max_tokens=MAX_TOKENS, temperature=1.0)
        found: dict[str, list[int]] = {}
        with closing(opened.engine(max_num_seqs=128)) as engine:
            for name, spec in SPECS.items():
                environment = open_environment(spec, None, seed, heldout=True)
                asked = []
                for cell in environment.cells:
                    for index in range(ASKED):
                        prompt = environment.prompt(cell, index)
                        request = engine.submit(opened.render(prompt), params, seed=index, n=ANSWERS)
                        asked.append((cell, prompt, request))
                for cell, prompt, request in asked:
                    right = 0
                    for output in request.result():
                        answer = {"role": "assistant", "content": output.text, "finish_reason": output.finish_reason}
                        right += environment.respond(prompt, answer).reward == 1
                    found.setdefault(f"{name} {cell}", []).append(right)
        write_json(kept, found)
    rates: dict[str, list[int]] = read_json(kept)
    return rates


def run_seed(seed: int, out: Path) -> dict[str, dict[str, float]]:
    """The figures of each arm."""
    world = make_world(seed, out)
    start = measure(world.base, seed, world.folder / "base.json")
    hard = {cell for cell, right in start.items() if statistics.fmean(right) / ANSWERS < EASY_AT}
    figures = {BASE: figures_of(start, hard)}
    seconds = 0.0
    for name, changes in ARMS.items():
        folder = world.folder / name.replace(", ", "-").replace(" ", "-")
        took = timed(folder, lambda folder=folder, changes=changes: reinforce(folder, world, **changes))  # type: ignore[misc]
        figures[name] = {**figures_of(measure(folder, seed, folder.with_suffix(".json")), hard), "seconds": took}
        seconds = seconds or took
    tokens = int(seconds * world.tokens_per_s)
    for rate in SFT_RATES:
        folder = world.folder / f"sft-{100 * rate:.0f}"
        took = timed(folder, lambda folder=folder, rate=rate: fine_tune(  # type: ignore[misc]
            folder, world.base, world.data, tokens, seed + 1, rate
        ))  # fmt: skip
        figures[f"sft, rate {rate:g}"] = {
            **figures_of(measure(folder, seed, folder.with_suffix(".json")), hard), "seconds": took,
        }  # fmt: skip
    return figures


def figures_of(right: Mapping[str, list[int]], hard: set[str]) -> dict[str, float]:
    """Means over cells."""
    by_cell = {cell: statistics.fmean(counts) / ANSWERS for cell, counts in right.items()}
    found = {
        name: statistics.fmean(value for cell, value in by_cell.items() if cell.startswith(name)) for name in CELLS
    }
    many = {
        cell: statistics.fmean(pass_at_k(count, ANSWERS, ANSWERS) for count in counts) for cell, counts in right.items()
    }
    return {
        "pass@1": statistics.fmean(by_cell.values()),
        f"pass@{ANSWERS}": statistics.fmean(many.values()),
        **found,
        **({"hard cells": statistics.fmean(by_cell[cell] for cell in hard)} if hard else {}),
    }


def learning_rows(out: Path, seeds: int, *, quiet: bool) -> list[Row]:
    """Train what is not trained, and compare."""
    if seeds not in T_95:
        raise HerdError(f"seeds={seeds} must be 2 to {max(T_95)}")
    torch.set_num_threads(1)
    found = [run_seed(seed, out) for seed in range(seeds)]
    best = max(SFT_RATES, key=lambda rate: statistics.fmean(one[f"sft, rate {rate:g}"]["pass@1"] for one in found))
    tuned = f"sft, rate {best:g}"
    if not quiet:
        for name in found[0]:
            print(
                f"{name}: "
                + ", ".join(f"{key} {interval([one[name][key] for one in found])}" for key in found[0][name])
            )
        for ours, peer in ((RL, BASE), (RL, tuned), (RANDOM, BASE), (RL, UNIFORM)):
            for key in found[0][BASE]:
                print(f"{ours} - {peer}, {key}: {interval([one[ours][key] - one[peer][key] for one in found])}")
    return [
        Row(
            case=f"{ours}: {key}, held out", unit="share", more_is_better=True, peer_name=peer,
            ours=statistics.fmean(one[ours][key] for one in found),
            peer=statistics.fmean(one[peer][key] for one in found),
        )
        for ours, peer in ((RL, BASE), (RL, tuned), (RL, UNIFORM), (RANDOM, BASE))
        for key in ("pass@1", f"pass@{ANSWERS}", *CELLS)
    ]  # fmt: skip
