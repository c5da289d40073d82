"""The whole forward in one native call against the Transformer's own, over pages of unequal sequences."""

import copy
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from herd import native
from herd.bench.oracles import random_model
from herd.bench.parity import MAVERICK_LIKE, SCOUT_LIKE, TOP_2
from herd.config import ModelConfig
from herd.core.errors import HerdError
from herd.engine.load import load
from herd.model.agreement import check_agreement
from herd.model.cache import Slots
from herd.model.fused import FusedForward, weights_of, why_not
from herd.model.quantize import Scheme, quantize_model
from herd.model.transformer import Transformer
from herd.native import forward

needs_kernels = pytest.mark.skipif(native.find().library is None, reason="no C++ compiler or no AVX-512 with VNNI")
SCOUT, MAVERICK = replace(SCOUT_LIKE, vision=None), replace(MAVERICK_LIKE, vision=None)
SHAPES = {
    "Scout-like": SCOUT,
    "Maverick-like": MAVERICK,
    "top 2, dense layers": replace(MAVERICK, moe=replace(TOP_2, every=2)),
    "no temperature, pages that straddle": replace(SCOUT, temperature=False, chunk_size=24),
}
WIDE = replace(SCOUT, num_layers=2, moe=replace(SCOUT.moe, ffn_dim=1072))
"""Rows of an expert's weights that are longer than a page of memory: read several panels at a time."""
LENGTHS = [37, 5, 60, 1, 20]
"""Of five sequences, read in pieces that end at chunk edges."""


def tokens(config: ModelConfig) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(config.vocab_size, (length,), generator=generator) for length in LENGTHS]


def steps(config: ModelConfig, sizes: list[int]) -> list[list[tuple[int, int, int]]]:
    """Forwards that read all sequences: (sequence, begin, end), the longest pieces as `sizes` says in turn."""
    done, plan, turn = [0] * len(LENGTHS), [], 0
    while any(d < length for d, length in zip(done, LENGTHS, strict=True)):
        step = []
        for s, length in enumerate(LENGTHS):
            end = min(
                length, done[s] + sizes[(s + turn) % len(sizes)], (done[s] // config.chunk_size + 1) * config.chunk_size
            )
            if end > done[s]:
                step.append((s, done[s], end))
                done[s] = end
        plan.append(step)
        turn += 1
    return plan


@torch.inference_mode()
def logits(model: Transformer, plan: list[list[tuple[int, int, int]]], *, fused: bool, every: int = 1) -> list[Tensor]:
    """Logits of each sequence's tokens (of every `every`-th row of a forward, the others NaN)."""
    config, ids = model.config, tokens(model.config)
    dtype = model.embedding.weight.dtype
    slots = Slots(config, num_slots=len(ids), capacity=max(LENGTHS), dtype=dtype, device=torch.device("cpu"))
    call = FusedForward(model) if fused else None
    out = [torch.full((length, config.vocab_size), torch.nan) for length in LENGTHS]
    for step in plan:
        tokens_N = torch.cat([ids[s][begin:end] for s, begin, end in step])
        positions_N = torch.cat([torch.arange(begin, end) for _, begin, end in step])
        starts_S = torch.tensor([0, *(end - begin for _, begin, end in step)]).cumsum(0).int()
        view = slots.at([s for s, _, _ in step], positions_N, starts_S)
        rows_R = torch.arange(len(tokens_N))[::every]
        if call is not None:
            found = call.unembed(call(tokens_N, positions_N=positions_N, cache=view, rows_R=rows_R))
        else:
            hidden = model(tokens_N, positions_N=positions_N, starts_S=starts_S, cache=view)
            found = model.unembed(hidden[rows_R]).float()
        wide = torch.full((len(tokens_N), config.vocab_size), torch.nan).index_copy(0, rows_R, found)
        for (s, begin, end), part in zip(step, wide.split(torch.diff(starts_S).tolist()), strict=True):
            out[s][begin:end] = part
    return out


@needs_kernels
@pytest.mark.parametrize("shape", SHAPES)
def test_one_call_gives_the_transformers_logits(shape: str) -> None:
    model = random_model(SHAPES[shape], seed=1)
    assert why_not(model) is None
    plan = steps(model.config, [64, 1, 3])
    for ours, twins in zip(logits(model, plan, fused=True), logits(model, plan, fused=False), strict=True):
        torch.testing.assert_close(ours, twins, rtol=0, atol=1e-5)


@needs_kernels
def test_a_model_whose_global_layer_turns_is_not_taken() -> None:
    model = random_model(SCOUT, seed=1)
    model.layers[3].attention.turns = True
    assert why_not(model) == "positions turn a global layer"


@needs_kernels
@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_every_tensor_is_looked_at_before_it_is_read(kind: torch.dtype) -> None:
    found = random_model(MAVERICK, seed=1)
    names = [name for name, _, _ in weights_of(found)]
    assert len(names) == sum(name.split(".")[0] != "vision" for name, _ in found.named_parameters())
    for name in (*names[:13], *names[-9:]):  # of a dense layer and of a mixture
        model = random_model(MAVERICK, seed=1).bfloat16()
        owner = {known: one for known, one, _ in weights_of(model)}[name]
        weight = owner if isinstance(owner, Tensor) else owner.weight
        weight.data = weight.data.to(kind)
        reason = why_not(model)
        assert reason is not None and (
            "model is in" in reason
            if name == "embedding" and kind == torch.float16
            else (
                f"is torch.bfloat16, not {kind}"
                if name == "embedding"
                else reason == f"{name} is {kind}, not torch.bfloat16"
            )
        ), name
        with pytest.raises(HerdError, match="native forward does not take this model"):
            FusedForward(model)


@needs_kernels
def test_weights_of_another_shape_or_layout_are_not_taken() -> None:
    model = random_model(SCOUT, seed=1)
    router = model.layers[1].ffn.router.weight
    router.data = router.data.T.contiguous().T
    assert why_not(model) == "layers.1.ffn.router is not contiguous"
    router.data = router.data[:-1].contiguous()
    assert f"layers.1.ffn.router has the shape {tuple(router.shape)}" in str(why_not(model))
    packed = random_model(SCOUT, seed=1).bfloat16()
    quantize_model(packed, Scheme(name="int8"), packed.config)
    scale = packed.layers[0].attention.qkv.scale
    packed.layers[0].attention.qkv.scale = scale.half()
    assert why_not(packed) == "layers.0.attention.qkv is torch.float16, not torch.bfloat16"


SCHEMES = {"int8": Scheme(name="int8"), "int4": Scheme(name="int4", group=32), "fp8": Scheme(name="fp8")}


def in_kind(shape: str, kind: str) -> Transformer:
    model = random_model(SHAPES[shape], seed=1)
    if kind != "fp32":
        model.bfloat16()
    if kind in SCHEMES:
        quantize_model(model, SCHEMES[kind], model.config)
    return model


@needs_kernels
@pytest.mark.parametrize("shape", SHAPES)
def test_the_two_implementations_are_found_to_agree(shape: str) -> None:
    for kind in ("fp32", "bf16", *SCHEMES):
        model = in_kind(shape, kind)
        check_agreement(model, FusedForward(model))


@needs_kernels
@pytest.mark.parametrize("kind", ["fp32", "bf16", *SCHEMES])
def test_a_change_of_routing_in_one_of_them_is_found_in_its_layer(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = in_kind("Maverick-like", kind)
    topk = torch.topk

    def worst(x: Tensor, k: int, dim: int = -1) -> tuple[Tensor, Tensor]:
        values, index = topk(-x, k, dim=dim)
        return -values, index

    monkeypatch.setattr("herd.model.moe.torch.topk", worst)
    with pytest.raises(HerdError, match=r"disagree in layer 1, .* HERD_NATIVE=0"):  # layer 0 is dense
        check_agreement(model, FusedForward(model))


@needs_kernels
@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("attention.query_temperature", lambda found: 1.5 * found),
        ("attention.rotate", lambda found: torch.cat([3 * found[..., :1], found[..., 1:]], dim=-1)),
        ("moe.swiglu", lambda found: 0.9 * found),
        ("moe.combine", lambda found: 1.1 * found),
        ("transformer.RMSNorm.forward", lambda found: 1.05 * found),
    ],
)
def test_a_change_of_any_part_of_a_layer_is_found(
    where: str, change: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = in_kind("Scout-like", "fp32")
    module, _, name = f"herd.model.{where}".partition(".RMSNorm.")
    owner = f"{module}.RMSNorm.{name}" if name else module
    kept = pkgutil.resolve_name(owner)
    monkeypatch.setattr(owner, lambda *given: change(kept(*given)))
    with pytest.raises(HerdError, match="disagree in layer"):
        check_agreement(model, FusedForward(model))


@needs_kernels
def test_a_model_is_checked_when_an_engine_is_started_on_it(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(tiny_folder)
    model.engine(num_slots=1).close()
    monkeypatch.setattr("herd.model.moe.combine", lambda shared, *_: 2 * shared)
    with pytest.raises(HerdError, match="disagree in layer 0"):
        model.engine(num_slots=1)


@needs_kernels
@pytest.mark.parametrize("sizes", [[64], [1], [3, 1, 2]])
def test_wide_experts_in_bf16_are_as_near_to_the_model_as_the_twin(sizes: list[int]) -> None:
    model = random_model(WIDE, seed=1)
    plan = steps(WIDE, sizes)
    truth, packed = torch.cat(logits(model, plan, fused=False)), copy.deepcopy(model).bfloat16()
    ours, twin = (float((torch.cat(logits(packed, plan, fused=f)) - truth).norm()) for f in (True, False))
    assert ours <= 1.1 * twin + 2e-3 * float(truth.norm())


@needs_kernels
@pytest.mark.parametrize("scheme", [None, Scheme(name="int8"), Scheme(name="int4", group=32), Scheme(name="fp8")])
def test_in_fewer_bits_it_is_as_near_to_the_model_as_the_twin(scheme: Scheme | None) -> None:
    model = random_model(MAVERICK, seed=1)
    packed = copy.deepcopy(model).bfloat16()
    if scheme is not None:
        quantize_model(packed, scheme, model.config)
    plan = steps(model.config, [64])
    truth = torch.cat(logits(model, plan, fused=False))

    def error(found: list[Tensor]) -> float:
        return float((torch.cat(found) - truth).norm() / truth.norm())

    assert error(logits(packed, plan, fused=True)) <= 1.1 * error(logits(packed, plan, fused=False)) + 2e-3


@needs_kernels
def test_logits_in_fp32_do_not_depend_on_pieces_or_neighbours() -> None:
    model = random_model(SHAPES["top 2, dense layers"], seed=2)
    at_once = logits(model, steps(model.config, [64]), fused=True)
    singly = [[piece] for step in steps(model.config, [1]) for piece in step]
    for plan in (singly, steps(model.config, [7, 2, 1])):
        for some, others in zip(at_once, logits(model, plan, fused=True), strict=True):
            assert torch.equal(some, others)


@needs_kernels
@pytest.mark.parametrize("shape", [SCOUT, WIDE], ids=["Scout-like", "wide"])
def test_few_rows_in_bf16_do_not_depend_on_their_neighbours(shape: ModelConfig) -> None:
    model = random_model(shape, seed=2).bfloat16()
    few = logits(model, steps(model.config, [3, 1, 2]), fused=True)
    singly = [[piece] for step in steps(model.config, [1]) for piece in step]
    for some, others in zip(few, logits(model, singly, fused=True), strict=True):
        assert torch.equal(some, others)


@needs_kernels
def test_only_the_wanted_rows_are_told() -> None:
    model = random_model(SCOUT, seed=2)
    plan = steps(model.config, [9])
    some = torch.cat(logits(model, plan, fused=True, every=3))
    told = ~some[:, 0].isnan()
    assert 0 < told.sum() < len(some)
    assert torch.equal(some[told], torch.cat(logits(model, plan, fused=True))[told])


@needs_kernels
@torch.inference_mode()
def test_embedded_rows_stand_for_tokens() -> None:
    model = random_model(MAVERICK, seed=2).bfloat16()
    tokens_N, positions_N, starts_S = torch.arange(40, 52), torch.arange(12), torch.tensor([0, 12]).int()

    def run(embedded_ND: Tensor | None) -> Tensor:
        slots = Slots(model.config, num_slots=1, capacity=16, dtype=torch.bfloat16, device=torch.device("cpu"))
        view = slots.at([0], positions_N, starts_S)
        ids = tokens_N if embedded_ND is None else torch.zeros_like(tokens_N)
        return FusedForward(model)(
            ids, positions_N=positions_N, cache=view, rows_R=torch.tensor([11]), embedded_ND=embedded_ND
        )

    assert torch.equal(run(None), run(model.embedding(tokens_N)))


@needs_kernels
def test_it_is_the_same_on_any_number_of_threads() -> None:
    script = (
        "import torch\n"
        "from tests.unit.test_model_fused import SCOUT, logits, random_model, steps\n"
        "model = random_model(SCOUT, seed=2).bfloat16()\n"
        "print(torch.cat(logits(model, steps(SCOUT, [64, 2]), fused=True)).view(torch.int32).sum().item())\n"
    )
    root = str(Path(__file__).parents[2])
    sums = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": root},
            check=True,
            capture_output=True,
            text=True,
            cwd=root,
        ).stdout
        for threads in (1, 3)
    }
    assert len(sums) == 1


@needs_kernels
def test_huge_pages_leave_weights_as_they_are() -> None:
    weight = torch.randn(3, 1 << 20)
    kept = weight.clone()
    forward.huge_pages(weight)
    assert torch.equal(weight, kept)
