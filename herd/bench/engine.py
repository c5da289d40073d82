"""`herd bench engine`: tokens a second of Herd, llama.cpp and transformers on the same random weights, in one run.

Shapes are Llama 4's: S (54.7 M parameters, 23.6 M of them active), M (480 M, 199 M), and S with experts as in Scout and
in Maverick. A case is measured in rounds, each engine in turn, and the medians are compared; the engines' processes
wait without a processor meanwhile. Precisions stand beside llama.cpp's of the same size: bf16, int8 and Q8_0, int4 of
groups of 32 and Q4_0. transformers runs in bf16 alone. Prompts and steps are those of the bare forward; the served rows
are whole requests through our engine (scheduler, sampler, text) beside llama.cpp's server in the wheel, both without
HTTP, prompts included.

`share` is what of the machine's limit ours reaches: read memory (decode) or the bf16 products (prefill), both measured
at the start of the run. vLLM's CPU build is not installed here: its figures come from elsewhere, if at all.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from herd.bench.engines import LLAMA_CPP, SERVER, Child, wheel_build
from herd.bench.shapes import SHAPES
from herd.bench.table import Row, show
from herd.config import ModelConfig
from herd.errors import HerdError, unknown

SCHEMES = {"bf16": None, "int8": "Q8_0", "int4": "Q4_0"}
"""Our precisions, and the type of llama.cpp's file beside each."""
ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement: a prompt of `count` tokens, or steps of `sequences` behind `count` tokens each."""

    count: int
    sequences: int = 0
    """0: a prompt is read."""
    engines: tuple[str, ...] = ("Herd", "llama.cpp", "transformers")
    rounds: int = ROUNDS
    served: bool = False
    """Requests of `count` tokens each through the whole engine, `sequences` at a time."""

    @property
    def name(self) -> str:
        if self.served:
            return f"served {self.sequences} after {self.count}"
        return f"decode {self.sequences} after {self.count}" if self.sequences else f"prefill {self.count}"

    def speed(self, child: Child) -> float:
        """Tokens a second."""
        if not self.sequences:
            return self.count / child.ask("prefill", self.count)
        if self.served:
            return 1 / child.ask("served", self.sequences, self.count, 64)
        steps = max(16, 96 // self.sequences)
        return self.sequences / child.ask("decode", self.sequences, self.count, steps)


CASES = (
    Case(count=512),
    Case(count=4096, rounds=2),
    Case(count=16_384, rounds=1),
    Case(count=65_536, rounds=1, engines=("Herd",)),
    Case(count=131_072, rounds=1, engines=("Herd",)),
    Case(count=512, sequences=1),
    Case(count=16_384, sequences=1, engines=("Herd", "llama.cpp"), rounds=1),
    Case(count=64, sequences=8),
    Case(count=64, sequences=32, engines=("Herd", "llama.cpp")),
    *(Case(count=64, sequences=many, served=True, engines=("Herd", SERVER)) for many in (1, 8, 32)),
)
DEFAULT = (
    *("prefill 512", "prefill 4096", "decode 1 after 512", "decode 8 after 64", "decode 32 after 64"),
    *("served 1 after 64", "served 8 after 64", "served 32 after 64"),
)
"""Cases that are measured unless others are named: a few minutes a shape."""


class Speed(Row):
    """Tokens a second: more is better."""

    @property
    def ratio(self) -> float:
        return self.ours / max(self.peer, 1e-12)


def engine(
    *, shapes: Sequence[str], precisions: Sequence[str], cases: Sequence[str], llama_cpp: Path | None, as_json: bool
) -> None:
    """Measure and print. `llama_cpp`: the folder of its programs, instead of the wheel's library."""
    known = {case.name: case for case in CASES}
    for what, given, all_ in (("shape", shapes, SHAPES), ("precision", precisions, SCHEMES), ("case", cases, known)):
        for name in given:
            if name not in all_:
                raise unknown(what, name, list(all_))
    cases = cases or DEFAULT
    if llama_cpp is not None:
        for program in ("llama-bench", "llama-batched-bench"):
            if not (llama_cpp / program).is_file():
                raise HerdError(f"{llama_cpp} has no {program}: name the folder of llama.cpp's built programs")
        os.environ[LLAMA_CPP] = str(llama_cpp.resolve())
    for package in ("xllamacpp", "transformers"):
        if not installed_version(package):
            raise HerdError(f"{package} is missing: pip install 'herd-lm[oracle]'")
    limits = measure_limits()
    print(
        f"limits: {limits.read / 1e9:.1f} GB/s read, {limits.products / 1e9:.0f} GFLOP/s of bf16 products",
        file=sys.stderr,
    )
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="herd-bench-") as folder:
        for shape in shapes:
            for precision in precisions:
                home = Path(folder) / shape
                where = write(shape, precision, home)
                rows += measure(shape, precision, where, [known[name] for name in cases], limits)
            shutil.rmtree(Path(folder) / shape)
    show(rows, as_json=as_json)


def installed_version(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


def write(shape: str, precision: str, home: Path) -> dict[str, Path]:
    """The model's files, each engine's by its name. In a process of its own: this one stays small."""
    home.mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-m", "herd.bench.engine_files", shape, precision, str(home)], check=True)
    kind = SCHEMES[precision]
    return {
        "Herd": home / precision,
        **dict.fromkeys(("llama.cpp", SERVER), home / f"{kind or 'BF16'}.gguf"),
        **({} if kind else {"transformers": home / precision}),
    }


def measure(
    shape: str, precision: str, where: dict[str, Path], cases: Sequence[Case], limits: "Limits"
) -> Iterator[Row]:
    """A row for each case and peer, and one for the memory."""
    speeds: dict[tuple[str, str], list[float]] = {}
    asked = {name for case in cases for name in case.engines}
    children = {name: Child(name, path) for name, path in where.items() if name in asked}
    wheel = f" ({wheel_build()})"
    build = {SERVER: wheel} if LLAMA_CPP in os.environ else {SERVER: wheel, "llama.cpp": wheel}
    try:
        for case in cases:
            for _ in range(case.rounds):
                for name, child in children.items():
                    if name in case.engines:
                        speeds.setdefault((case.name, name), []).append(case.speed(child))
        memory = {name: child.memory for name, child in children.items()}
    finally:
        for child in children.values():
            child.close()
    names = {name: f"{name} {SCHEMES[precision] or 'bf16'}{build.get(name, '')}" for name in children}
    for case in cases:
        ours = statistics.median(speeds[case.name, "Herd"])
        label = f"{shape} {precision} {case.name}"
        for name in children:
            if name != "Herd" and (case.name, name) in speeds:
                peer = statistics.median(speeds[case.name, name])
                yield Speed(case=label, unit="tokens/s", ours=ours, peer=peer, peer_name=names[name])
        if not case.served:  # two limits in turn, of prompts and of steps
            floor = limits.speed(SHAPES[shape], precision, case)
            yield Speed(case=label, unit="tokens/s", ours=ours, peer=floor, peer_name="the machine's limit")
    for name in children:
        if name != "Herd":
            yield Row(
                case=f"{shape} {precision} resident",
                unit="MB",
                ours=memory["Herd"] / 1e6,
                peer=memory[name] / 1e6,
                peer_name=names[name],
            )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the machine can do, measured: bytes read and bf16 operations a second."""

    read: float
    products: float

    def speed(self, config: ModelConfig, precision: str, case: Case) -> float:
        """Tokens a second if nothing but this limit held: products of a prompt, weights and keys read by a step."""
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        layers = range(config.num_layers)
        moe = config.moe
        attention = config.dim * (2 * q + 2 * kv)
        expert = 3 * config.dim * moe.ffn_dim
        head = config.dim * config.vocab_size
        dense = sum(attention + (expert if config.is_moe(i) else 3 * config.dim * config.dense_ffn_dim) for i in layers)
        mixtures = sum(map(config.is_moe, layers))
        if not case.sequences:
            spans = [case.count / 2 if config.is_global(i) else min(case.count, config.chunk_size) / 2 for i in layers]
            flops = 2 * (dense + mixtures * moe.top_k * expert) + 4 * q * sum(spans)
            return self.products / flops
        visits = case.sequences * moe.top_k
        met = moe.num_experts * (1 - (1 - 1 / moe.num_experts) ** visits)
        size = {"bf16": 2.0, "int8": 1.0, "int4": 0.5 + 2 / 32}[precision]
        weights = (dense + head + mixtures * met * expert) * size
        seen = [case.count if config.is_global(i) else case.count % config.chunk_size for i in layers]
        return case.sequences * self.read / (weights + case.sequences * 4 * kv * sum(seen))


def measure_limits() -> Limits:
    """Read memory and bf16 products on all cores, in PyTorch."""
    import torch

    block = torch.ones(1 << 26)
    a = torch.ones(2048, 2048, dtype=torch.bfloat16)

    def best(function: object) -> float:
        assert callable(function)
        times = []
        for _ in range(8):
            begin = time.perf_counter()
            function()
            times.append(time.perf_counter() - begin)
        return min(times)

    with torch.inference_mode():
        return Limits(read=block.nbytes / best(block.sum), products=2 * 2048**3 / best(lambda: a @ a))
