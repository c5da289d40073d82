"""`herd bench train` on a small shape, its contenders in this process."""

import json
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from herd.bench import train as bench
from herd.bench.lean import Lean
from herd.cli import main
from herd.config import MoEConfig, PretrainConfig

SMALL = replace(
    bench.S, vocab_size=128, dim=32, num_layers=4, num_heads=2, num_kv_heads=1, head_dim=16, dense_ffn_dim=64,
    moe=MoEConfig(num_experts=4, ffn_dim=32, every=2), chunk_size=64,
)  # fmt: skip
CASE = bench.Case(config=SMALL, documents=2, length=128)


def test_useful_flops_are_those_that_pytorch_counts_for_the_products() -> None:
    # A dense model: the counter does not know grouped_mm, nor SDPA on a CPU.
    case = replace(CASE, config=bench.dense(replace(SMALL, nope_every=1)))
    model, tokens = Lean(case.config), bench.random_tokens(case)
    with FlopCounterMode(display=False) as counter:
        model(tokens, tokens).backward()
    # A pair of positions: two products of a head's width forward, four backward, each a multiplication and an addition.
    pairs = case.documents * SMALL.num_layers * sum(range(case.length + 1))
    assert bench.useful_flops(case) == counter.get_total_flops() + pairs * 6 * 2 * SMALL.num_heads * SMALL.head_dim


def test_the_bench_prints_its_contract(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def inline(
        names: list[str], case: bench.Case, rounds: int, num_steps: int, warm_up: int = 2
    ) -> dict[str, bench.Measured]:
        # transformers and a compiler take longer than this test may.
        return {
            name: bench.measure(name if name in {bench.OURS, bench.RECIPE} else bench.LEAN, case, num_steps, warm_up)
            for name in names
        }

    monkeypatch.setattr(bench, "CASES", {"S": CASE, "M": CASE})
    monkeypatch.setattr(bench, "take_turns", inline)
    monkeypatch.setattr(bench, "MATRIX", 64)
    assert main(["bench", "train", "--cases", "S", "dense", "--rounds", "1", "--steps", "1", "--json"]) == 0
    reported = json.loads(capsys.readouterr().out)
    assert reported["machine"]["cores"]
    units = [row["unit"].split(" of ")[0] for row in reported["rows"]]
    shape = ["tokens/s", "tokens/s", "%", "MiB at the peak"]
    assert units == [*shape, *shape, "tokens/s", "tokens/s"]
    assert [row["case"] for row in reported["rows"][::4]] == [
        "S",
        "S as recipes train (Muon, fp32 moments)",
        "S, dense twin",
    ]
    assert all(row.keys() == {"case", "unit", "ours", "peer", "peer_name", "ratio"} for row in reported["rows"])
    rate, memory = reported["rows"][0], reported["rows"][3]
    assert rate["ratio"] == pytest.approx(rate["ours"] / rate["peer"])
    assert memory["ratio"] == pytest.approx(memory["peer"] / memory["ours"])


def test_each_row_trains_with_the_optimizer_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(bench, "Optimizer", lambda model, config, num_steps: made.append(config))
    for name in (bench.OURS, bench.RECIPE):
        getattr(bench, bench.MAKERS[name].split(":")[1])(CASE)
    assert [(config.matrix, config.moments) for config in made] == [("adamw", "8bit"), ("muon", "fp32")]
    assert made[1] == PretrainConfig().optimizer  # what a recipe has that says nothing of it


def test_the_plain_model_is_the_same_function_of_chunks_and_of_single_documents() -> None:
    torch.manual_seed(0)
    local = Lean(replace(SMALL, nope_every=SMALL.num_layers + 1, qk_norm=False))
    tokens = torch.randint(10, 128, (2, 64))
    whole = local(tokens.view(1, 128), tokens.view(1, 128))
    # Angles differ by whole turns of no meaning: RoPE sees distances, and none reaches across a chunk.
    assert torch.allclose(whole, local(tokens, tokens), atol=1e-5)
