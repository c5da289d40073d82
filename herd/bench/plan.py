"""`herd bench plan`: steps of training that `herd plan --here` estimates, beside the same steps run on this machine.

Each run is the real loop in a process of its own, on random tokens; its time is the median step after the first ones,
its memory the process's peak. The plan's constants were fitted to the shapes of `CALIBRATION`; those of `HELD_OUT` are
not among them.
"""

import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from herd.bench.shapes import SHAPES, S, pack_documents, random_tokens
from herd.bench.table import Row, show
from herd.config import (
    CheckpointConfig,
    ModelConfig,
    MoEConfig,
    OptimizerConfig,
    PretrainConfig,
    preset,
)
from herd.core.batch import Batch
from herd.core.child import run_in_child
from herd.core.lineage import Stage, peak_memory_bytes
from herd.core.tracker import read_metrics
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.plan.here import Machine, lower_bounds, memory_by_part, step_here
from herd.train.loop import train
from herd.train.losses import language_loss

STEPS, FIRST = 8, 3
"""Steps of a run, and those of them that are not timed: kernels and memory are fetched in them."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run."""

    name: str
    config: ModelConfig
    batch_tokens: int
    length: int
    matrix: str = "muon"

    @property
    def optimizer(self) -> OptimizerConfig:
        return OptimizerConfig(matrix=self.matrix)  # type: ignore[arg-type]


def text(name: str, **changes: object) -> ModelConfig:
    """A preset without its encoder, with changed fields."""
    return replace(preset(name, vocab_size=8192, special=S.special), vision=None, **changes)  # type: ignore[arg-type]


SMALL = text("tiny")


def cases(shapes: dict[str, tuple[ModelConfig, int, int, str]]) -> list[Case]:
    return [
        Case(name=name, config=config, batch_tokens=batch, length=length, matrix=matrix)
        for name, (config, batch, length, matrix) in shapes.items()
    ]


CALIBRATION = cases(
    {
        "tiny": (SMALL, 4096, 256, "muon"),
        "tiny, long": (SMALL, 8192, 4096, "muon"),
        "tiny, AdamW": (SMALL, 2048, 512, "adamw"),
        "tiny, deep": (replace(SMALL, num_layers=12), 4096, 512, "adamw"),
        "tiny, wide": (replace(SMALL, dim=512, num_heads=8), 4096, 512, "muon"),
        "tiny, large vocabulary": (replace(SMALL, vocab_size=65_536), 4096, 512, "adamw"),
        "S, small batch": (S, 2048, 512, "adamw"),
        "S, 32 experts": (replace(S, moe=MoEConfig(num_experts=32, ffn_dim=768, every=2)), 4096, 512, "adamw"),
        "S, long": (S, 16_384, 16_384, "adamw"),
        "S, Muon": (S, 8192, 1024, "muon"),
    }
)
HELD_OUT = cases(
    {
        "tiny": (SMALL, 6144, 512, "muon"),
        "tiny, AdamW": (SMALL, 6144, 512, "adamw"),
        "tiny, 16K tokens": (SMALL, 16_384, 2048, "muon"),
        "tiny, 8 layers": (replace(SMALL, num_layers=8), 6144, 512, "muon"),
        "tiny, width 384": (replace(SMALL, dim=384, num_heads=6), 4096, 1024, "adamw"),
        "tiny, vocabulary 32K": (replace(SMALL, vocab_size=32_768), 6144, 512, "muon"),
        "tiny-scout": (text("tiny-scout"), 4096, 512, "adamw"),
        "tiny-maverick": (text("tiny-maverick"), 8192, 512, "adamw"),
        "tiny-behemoth": (text("tiny-behemoth"), 4096, 512, "adamw"),
        "S": (S, 4096, 512, "adamw"),
        "S, 8K documents": (S, 8192, 8192, "adamw"),
        "S16": (SHAPES["S16"], 4096, 512, "adamw"),
    }
)


class RandomTokens:
    """Batches of documents of one length."""

    unit = "tokens"
    num_steps = STEPS

    def __init__(self, case: Case) -> None:
        self.case = case

    def batch(self, step: int) -> Batch:
        number = self.case.batch_tokens // self.case.length
        tokens = random_tokens(self.case.config.vocab_size, number * self.case.length, seed=step)
        return pack_documents(tokens, [self.case.length] * number)


def run(case: Case, result: Path) -> int:
    """In a child: train, and write seconds a step and the peak of memory to `result`."""
    with tempfile.TemporaryDirectory(dir=result.parent) as folder:
        stage = Stage("bench", Path(folder) / "out", config=None, parents={})
        config = PretrainConfig(checkpoint=CheckpointConfig(every_s=1e9), optimizer=case.optimizer)
        model = Transformer(case.config)
        initialise(model, torch.Generator().manual_seed(0))
        train(model.bfloat16(), RandomTokens(case), language_loss(0.0), config, stage)
        lines = read_metrics(stage.work / "metrics.jsonl")[FIRST:]
    seconds = median(case.batch_tokens / line["tokens_per_s"] for line in lines)
    result.write_text(json.dumps({"seconds": seconds, "peak_bytes": peak_memory_bytes()}))
    return 0


def measure(case: Case) -> dict[str, float]:
    """A run of `case` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        assert run_in_child(case.name, run, case, result) == 0
        found: dict[str, float] = json.loads(result.read_text())
        return found


def probe(result: Path) -> int:
    """In a child: what a process holds before it makes a model, and the machine's rates."""
    base = peak_memory_bytes()
    a, b = torch.randn(2048, 2048).bfloat16(), torch.randn(2048, 2048).bfloat16()
    block, other = torch.zeros(2**26), torch.zeros(2**26)
    product = min(time_call(lambda: a @ b) for _ in range(10))
    copy = min(time_call(lambda: other.copy_(block)) for _ in range(5))
    result.write_text(json.dumps([2 * 2048**3 / product, 2 * 4 * 2**26 / copy, base]))
    return 0


def time_call(work: object) -> float:
    begin = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - begin


def this_machine() -> Machine:
    """Its measured rates; takes two seconds."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        assert run_in_child("probe", probe, result) == 0
        flops, bandwidth, base = json.loads(result.read_text())
    return Machine(product_flops=flops, bandwidth=bandwidth, base_bytes=base)


def fit(rows: list[list[float]], wanted: list[float]) -> list[float]:
    """Factors, none below zero, of the columns of `rows` whose sums miss `wanted` least, relatively."""
    scaled = np.array(rows) / np.array(wanted)[:, None]
    free = list(range(scaled.shape[1]))
    while True:
        found = np.linalg.lstsq(scaled[:, free], np.ones(len(wanted)), rcond=None)[0]
        if (found >= 0).all():
            return [float(found[free.index(i)]) if i in free else 0.0 for i in range(scaled.shape[1])]
        free.remove(free[int(found.argmin())])


def calibrate() -> None:
    """Print the constants of `herd.plan.here` fitted to this machine's runs."""
    machine = this_machine()
    times, sizes, seconds, held = [], [], [], []
    for case in CALIBRATION:
        found = measure(case)
        times.append(lower_bounds(case.config, case.optimizer, case.batch_tokens, case.length, machine))
        sizes.append(memory_by_part(case.config, case.optimizer, case.batch_tokens, case.length))
        seconds.append(found["seconds"])
        held.append(found["peak_bytes"] - machine.base_bytes)
    for name, parts, wanted in (("LONGER", times, seconds), ("KEPT", sizes, held)):
        factors = fit([list(part.values()) for part in parts], wanted)
        print(name, "=", {key: round(factor, 2) for key, factor in zip(parts[0], factors, strict=True)})


def bench_plan(*, as_json: bool) -> None:
    """Print estimates beside measurements."""
    machine = this_machine()
    rows = []
    for case in HELD_OUT:
        result, found = step_here(case.config, case.optimizer, case.batch_tokens, case.length, machine), measure(case)
        figures = {"s a step": (result.seconds, found["seconds"])}
        figures["GB at the peak"] = (result.peak_bytes / 1e9, found["peak_bytes"] / 1e9)
        rows += [
            Row(case=case.name, unit=unit, ours=ours, peer=peer, peer_name="measured")
            for unit, (ours, peer) in figures.items()
        ]
    show(rows, as_json=as_json)
