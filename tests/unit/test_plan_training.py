"""What `herd plan` estimates of training, against torch's own count of FLOPs, and beside published runs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from herd.bench.oracles import random_model
from herd.bench.plan import fit
from herd.cli import main
from herd.config import ModelConfig, MoEConfig, OptimizerConfig, SpecialIds, preset
from herd.plan.cluster import GPUS, Layout, Run, best, layouts, memory_by_part, outcome
from herd.plan.here import Machine, Step, muon_flops, step_here
from herd.plan.published import published, table
from herd.plan.work import attention_flops, mean_keys, work_of
from herd.train.optimizer import Optimizer

SMALL = ModelConfig(
    vocab_size=96,
    special=SpecialIds(bos=1, end_of_text=2, eom=3, eot=4, pad=5),
    dim=48,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    dense_ffn_dim=80,
    moe=MoEConfig(num_experts=4, ffn_dim=32),
    vision=None,
    chunk_size=16,
)
SHAPES = {
    "Scout-like": SMALL,
    "Maverick-like": replace(SMALL, moe=MoEConfig(num_experts=8, ffn_dim=32, every=2), qk_norm=False),
    "top 2": replace(SMALL, moe=MoEConfig(num_experts=4, ffn_dim=32, top_k=2)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length", [16, 64])
def test_the_flops_of_a_token_are_those_that_torch_counts(shape: str, length: int) -> None:
    config, documents = SHAPES[shape], 3
    model = random_model(config, seed=0).train().requires_grad_(True)
    ids = torch.randint(0, 96, (documents * length,))
    with FlopCounterMode(display=False) as counter:
        hidden = model(
            ids,
            positions_N=torch.arange(length).repeat(documents),
            starts_S=torch.arange(documents + 1, dtype=torch.int32) * length,
        )
        model.unembed(hidden).sum().backward()
    work = work_of(config, length)
    # Torch counts masked scores too.
    masked = attention_flops(config, length, causal=False) - work.attention_flops
    assert counter.get_total_flops() == pytest.approx(len(ids) * (work.flops + 3 * masked), rel=1e-9)


@given(length=st.integers(1, 200), chunk=st.one_of(st.none(), st.integers(1, 64)))
def test_the_keys_that_a_token_sees_are_counted_one_by_one(length: int, chunk: int | None) -> None:
    seen = [position % (chunk or length) + 1 for position in range(length)]
    assert mean_keys(length, chunk) == pytest.approx(sum(seen) / length)


def scout_run(**changes: object) -> Run:
    run = Run(
        work=work_of(preset("scout"), 8192), gpu=GPUS["h100"], layout=Layout(data=64), length=8192, batch_tokens=2**22
    )
    return replace(run, **changes)  # type: ignore[arg-type]


def test_one_rank_holds_every_parameter_and_many_share_the_optimizers_state() -> None:
    alone = memory_by_part(scout_run(layout=Layout(data=1, sharded=False)))
    total = work_of(preset("scout"), 8192).total_parameters
    assert (alone["weights"], alone["optimizer"]) == (2 * total, 12 * total)
    spread = memory_by_part(scout_run(layout=Layout(data=8, tensor=2, expert=4)))
    assert spread["optimizer"] == 12 * total / 16


@pytest.mark.parametrize("part", ["bf16", "bandwidth", "link", "network", "memory"])
def test_a_better_card_is_never_slower(part: str) -> None:
    card = GPUS["h100"]
    better = replace(card, **{part: 1.5 * getattr(card, part)})
    for gpus in (64, 1024):
        assert best(scout_run(gpu=better), gpus).step_s <= best(scout_run(), gpus).step_s


def test_the_layout_chosen_is_the_fastest_of_those_that_fit() -> None:
    run = scout_run()
    tried = [outcome(replace(run, layout=layout)) for layout in layouts(run, 64, pipelined=False)]
    whole = [t for t in tried if replace(run, layout=t.layout).micro_batches % 1 == 0]
    fitting = [t.step_s for t in whole if t.memory_bytes <= 72e9]
    assert best(run, 64).step_s == min(fitting)
    assert {t.layout.pipeline for t in tried} == {1}


def test_published_runs_are_met_and_the_page_shows_them_all() -> None:
    runs = published()
    off = sorted(max(run.ratio(), 1 / run.ratio()) for run in runs)
    assert off[len(off) // 2] < 1.25
    # One constant is fitted to the first; these were reported beforehand.
    for run in runs[1:4]:
        assert 0.9 < run.ratio() < 1.1, run.name
    page = (Path(__file__).parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")
    assert "\n".join(table()) in page, (
        "run: python -c 'from herd.plan.published import table; print(*table(), sep=chr(10))'"
    )


def test_the_command_prints_layout_time_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "scout", "--gpus", "256"]) == 0
    text = capsys.readouterr().out
    assert "bf16 on 256 h100: data" in text and "fp8 on 256 h100" in text and " days" in text
    assert main(["plan", "scout", "--gpus", "256", "--json"]) == 0
    reported = json.loads(capsys.readouterr().out)["training"]
    fp8, bf16 = reported["precisions"]["fp8"], reported["precisions"]["bf16"]
    assert fp8["step_s"] <= bf16["step_s"]
    assert sum(bf16["seconds"].values()) == pytest.approx(bf16["step_s"])
    assert bf16["tflops_gpu"] == pytest.approx(bf16["tokens_per_s_gpu"] * reported["flops_per_token"] / 1e12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpus", "8"], "no layout fits: the leanest takes"),
        (["--gpus", "64", "--gpu", "h1000"], "unknown GPU 'h1000', did you mean 'h100'?"),
        (["--gpus", "0"], "gpus=0 must be more than 0"),
        (["--gpus", "96", "--batch-tokens", "100000"], "are not shared evenly by 96 GPUs"),
    ],
)
def test_what_cannot_be_planned_is_reported_in_one_line(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "maverick", *options]) == 1
    reported = capsys.readouterr()
    assert words in reported.err and reported.err.count("\n") == 1 and not reported.out


def test_muons_flops_are_those_that_torch_counts() -> None:
    for config in SHAPES.values():
        model = random_model(config, seed=0).train().requires_grad_(True).bfloat16()
        optimizer = Optimizer(model, OptimizerConfig(), 10)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        with FlopCounterMode(display=False) as counter:
            optimizer.step(0, 1.0)
        assert counter.get_total_flops() == muon_flops(config)


def test_more_work_takes_longer_and_more_memory_here() -> None:
    machine = Machine(product_flops=4e11, bandwidth=4e10, base_bytes=3e8)

    def step(config: ModelConfig = SMALL, tokens: int = 4096, length: int = 64) -> Step:
        return step_here(config, OptimizerConfig(), tokens, length, machine)

    assert step(tokens=8192).seconds > step().seconds and step(tokens=8192).peak_bytes > step().peak_bytes
    assert step(length=1024).seconds > step().seconds
    wider = step(replace(SMALL, dim=96))
    assert wider.seconds > step().seconds and wider.peak_bytes > step().peak_bytes


def test_factors_are_found_again_and_none_is_below_zero() -> None:
    floors = np.random.default_rng(0).random((12, 4)) + 0.1
    factors = [1.5, 0.0, 3.0, 1.0]
    assert fit(floors.tolist(), (floors @ factors).tolist()) == pytest.approx(factors, abs=1e-9)
    assert min(fit(floors.tolist(), (floors @ [1.5, -0.2, 3.0, 1.0]).tolist())) >= 0
