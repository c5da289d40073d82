"""`herd bench train`: a step of training beside transformers' Llama 4 and a minimal model in plain PyTorch.

Random weights and tokens, bf16 products, forward to update. Ours is measured twice: with the peers' optimizer, AdamW
for all parameters (moments in 8 bits), and as recipes train by default, with Muon for the matrices of the layers and
fp32 moments. The peers have no Muon; they run AdamW in both rows. Each contender trains in a
process of its own, so that its peak of memory is its own, and they take turns, `rounds` times. The machine's peak,
against which useful FLOPs are held, is that of a bf16 product of PyTorch, measured in the same processes after the
steps. transformers' rate is that of its faster form; a row of memory holds ours against the leanest peer.

Useful FLOPs of a token: 6 for each weight that it meets in a product, and 6 * heads * width for each pair of positions
of which one sees the other, a layer. Nothing is counted twice that is computed twice.
"""

# N tokens

import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from importlib import import_module
from multiprocessing import get_context
from statistics import median

import torch

from herd.bench.shapes import SHAPES, S, pack_documents
from herd.bench.table import Row, show
from herd.config import ModelConfig, OptimizerConfig
from herd.errors import HerdError, unknown
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.plan.counts import count
from herd.train.losses import language_loss
from herd.train.optimizer import Optimizer

LOCAL = replace(S, nope_every=S.num_layers + 1)
"""S without global layers: what is left of the cost of long documents when these are removed."""


def dense(config: ModelConfig) -> ModelConfig:
    """The same active parameters (the routers' aside) without experts."""
    never = config.num_layers + 1
    return replace(config, moe=replace(config.moe, every=never), dense_ffn_dim=2 * config.moe.ffn_dim)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What all contenders of some rows train."""

    config: ModelConfig
    documents: int
    length: int
    """Tokens of a document."""
    recompute: bool = False
    """Ours alone: keep each layer's input only."""

    @property
    def num_tokens(self) -> int:
        return self.documents * self.length


OURS, RECIPE, EAGER, COMPILED, LEAN = "herd", "herd, Muon", "transformers", "transformers, compiled", "plain PyTorch"
MAKERS = {
    OURS: "herd.bench.train:make_adamw",
    RECIPE: "herd.bench.train:make_recipe",
    EAGER: "herd.bench.train_peers:make_eager",
    COMPILED: "herd.bench.train_peers:make_compiled",
    LEAN: "herd.bench.train_peers:make_lean",
}
Step = Callable[[], object]
"""One step of training, forward to update."""

CASES = {name: Case(config=SHAPES[name], documents=2 if name == "M" else 8, length=512) for name in SHAPES}
MATRIX = 2048
"""Rows and columns of the product whose speed counts as the machine's peak."""
LENGTHS = (512, 8192, 65_536)
CHOICES = (*CASES, "dense", "lengths", "local")
"""What `--cases` may name: shapes beside the peers, S and M beside their dense twins, documents of several lengths, and
these without global layers."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of one contender in one process."""

    seconds: float
    """Of a step, the median."""
    peak_bytes: int
    matrix_flops: float
    """A second, of a bf16 product."""


def useful_flops(case: Case) -> int:
    """Of one step; see above."""
    config, length = case.config, case.length
    counts = count(config)
    a_token = 6 * (counts.active - config.vocab_size * config.dim - (2 * config.num_layers + 1) * config.dim)
    pairs = 0
    for layer in range(config.num_layers):
        whole, rest = divmod(length, length if config.is_global(layer) else min(length, config.chunk_size))
        run = length if config.is_global(layer) else min(length, config.chunk_size)
        pairs += whole * run * (run + 1) // 2 + rest * (rest + 1) // 2
    return case.num_tokens * a_token + case.documents * pairs * 12 * config.num_heads * config.head_dim


def random_tokens(case: Case) -> torch.Tensor:
    """int64 [documents, length]; the same for all contenders."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(10, case.config.vocab_size, (case.documents, case.length), generator=generator)


def make_adamw(case: Case) -> Step:
    return make_ours(case, OptimizerConfig(matrix="adamw", moments="8bit"))


def make_recipe(case: Case) -> Step:
    return make_ours(case, OptimizerConfig())


def make_ours(case: Case, config: OptimizerConfig) -> Step:
    model = Transformer(case.config).to(torch.bfloat16)
    initialise(model, torch.Generator().manual_seed(0))
    model.train()
    model.recompute = case.recompute
    optimizer = Optimizer(model, config, num_steps=1000)
    batch = pack_documents(random_tokens(case), [case.length] * case.documents)
    loss_fn, done = language_loss(0.0), 0

    def step() -> None:
        nonlocal done
        loss, _ = loss_fn(model, batch)
        loss.backward()
        optimizer.step(done, float(optimizer.grad_norm()))
        optimizer.clear()
        done += 1

    return step


def measure(name: str, case: Case, num_steps: int, warm_up: int) -> Measured:
    """Build a contender in this process and time its steps, after some to warm up."""
    module, function = MAKERS[name].split(":")
    torch.manual_seed(0)
    step = getattr(import_module(module), function)(case)
    seconds = [time_call(step) for _ in range(warm_up + num_steps)][warm_up:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    del step
    a, b, c = (torch.randn(MATRIX, MATRIX).bfloat16() for _ in range(3))
    best = median([time_call(lambda: torch.mm(a, b, out=c)) for _ in range(12)][2:])
    return Measured(seconds=median(seconds), peak_bytes=peak, matrix_flops=2 * MATRIX**3 / best)


def time_call(function: Step) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def take_turns(names: list[str], case: Case, rounds: int, num_steps: int, warm_up: int = 2) -> dict[str, Measured]:
    """The medians over the rounds of each contender; the largest peaks of memory."""
    took: dict[str, list[Measured]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                try:
                    took[name].append(process.submit(measure, name, case, num_steps, warm_up).result())
                except BrokenProcessPool as error:
                    raise HerdError(
                        f"{name} was ended, most likely for want of memory: close other programs"
                    ) from error
    return {
        name: Measured(
            seconds=median(one.seconds for one in all_),
            peak_bytes=max(one.peak_bytes for one in all_),
            matrix_flops=median(one.matrix_flops for one in all_),
        )
        for name, all_ in took.items()
    }


def rate(name: str, case: Case, ours: Measured, peer: Measured, peer_name: str) -> Row:
    a_second = [round(case.num_tokens / measured.seconds, 1) for measured in (ours, peer)]
    return Row(case=name, unit="tokens/s", ours=a_second[0], peer=a_second[1], peer_name=peer_name, more_is_better=True)


def compare_with_peers(name: str, rounds: int, num_steps: int) -> list[Row]:
    """Rates, use of the machine and memory of one shape, with the peers' optimizer and with the recipes'."""
    case = CASES[name]
    took = take_turns([OURS, RECIPE, EAGER, COMPILED, LEAN], case, rounds, num_steps)
    best = min((EAGER, COMPILED), key=lambda peer: took[peer].seconds)
    matrix = median(measured.matrix_flops for measured in took.values())
    share = {peer: 100 * useful_flops(case) / measured.seconds / matrix for peer, measured in took.items()}
    leanest = min((EAGER, COMPILED, LEAN), key=lambda peer: took[peer].peak_bytes)
    used = f"% of {matrix / 1e9:.0f} GFLOP/s useful"
    rows: list[Row] = []
    for ours, setting in ((OURS, ""), (RECIPE, " as recipes train (Muon, fp32 moments)")):
        title = name + setting
        rows += [
            *(rate(title, case, took[ours], took[peer], peer) for peer in (best, LEAN)),
            Row(case=title, unit=used, ours=share[ours], peer=share[LEAN], peer_name=LEAN, more_is_better=True),
            Row(
                case=title,
                unit="MiB at the peak",
                ours=took[ours].peak_bytes / 2**20,
                peer=took[leanest].peak_bytes / 2**20,
                peer_name=leanest,
            ),
        ]
    return rows


def compare_with_dense(name: str, rounds: int, num_steps: int) -> Row:
    """The price of the mixture: alternating by hand, as the two are not one case."""
    case = CASES[name]
    twin = replace(case, config=dense(case.config))
    turns = [(take_turns([OURS], each, 1, num_steps)[OURS]) for _ in range(rounds) for each in (case, twin)]
    ours, theirs = (min(turns[which::2], key=lambda one: one.seconds) for which in (0, 1))
    return rate(f"{name}, dense twin", case, ours, theirs, "herd without experts")


def by_length(config: ModelConfig, title: str) -> list[Row]:
    """One step each on documents of LENGTHS, beside the first of these; at least 8,192 tokens a step."""
    rows, first = [], None
    for length in LENGTHS:
        case = Case(config=config, documents=max(1, 8192 // length), length=length, recompute=True)
        # A step of so many tokens that it takes minutes warms itself up.
        took = take_turns([OURS], case, 1, 1, warm_up=int(length < LENGTHS[-1]))[OURS]
        first = first or (case, took)
        peer = replace(took, seconds=first[1].seconds * case.num_tokens / first[0].num_tokens)
        rows.append(rate(f"{title}, documents of {length:,}", case, took, peer, f"herd, documents of {LENGTHS[0]}"))
    return rows


def train(*, cases: tuple[str, ...], rounds: int, steps: int, as_json: bool) -> None:
    """Measure the cases and print their rows."""
    for name in cases:
        if name not in CHOICES:
            raise unknown("case", name, CHOICES)
    rows: list[Row] = []
    for name in cases:
        if name == "dense":
            rows += [compare_with_dense(shape, rounds, steps) for shape in ("S", "M")]
        elif name == "lengths":
            rows += by_length(S, "S")
        elif name == "local":
            rows += by_length(LOCAL, "S without global layers")
        else:
            rows += compare_with_peers(name, rounds, steps)
    show(rows, as_json=as_json)
