"""The whole forward in one native call against the Transformer's own, over pages of unequal sequences."""

import copy
import dataclasses
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
from herd.engine.load import load
from herd.errors import HerdError
from herd.model.agreement import COPIES, ROUNDINGS, check_agreement, compare, with_noise
from herd.model.cache import Slots
from herd.model.fused import FusedForward, weights_of, why_not
from herd.model.fused_fields import CONFIG_FIELDS, MODULE_FIELDS, language_modules, module_fields
from herd.model.pack import pack_sequences
from herd.model.quantize import Scheme, quantize_model
from herd.model.transformer import Transformer
from herd.native import forward
from herd.train.balance import mixtures

pytestmark = pytest.mark.usefixtures("two_threads")
needs_kernels = pytest.mark.skipif(native.why_not() is not None, reason="no C++ compiler or no AVX-512 with VNNI")
SCOUT, MAVERICK = replace(SCOUT_LIKE, vision=None), replace(MAVERICK_LIKE, vision=None)
SHAPES = {
    "Scout-like": SCOUT,
    "Maverick-like": MAVERICK,
    "top 2, dense layers": replace(MAVERICK, moe=replace(TOP_2, every=2)),
    "no temperature, pages that straddle": replace(SCOUT, temperature_tuning=False, chunk_size=24),
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
        pack = pack_sequences([ids[s][begin:end] for s, begin, end in step], num_cached=[begin for _, begin, _ in step])
        view = slots.view(pack, [s for s, _, _ in step])
        rows_R = torch.arange(len(pack.tokens_N))[::every]
        if call is not None:
            found = call.unembed(call(pack, cache=view, rows_R=rows_R))
        else:
            found = model.unembed(model.forward_packed(pack, cache=view)[rows_R]).float()
        wide = torch.full((len(pack.tokens_N), config.vocab_size), torch.nan).index_copy(0, rows_R, found)
        for (s, begin, end), part in zip(step, wide.split(pack.lengths), strict=True):
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
def test_a_model_whose_global_layer_has_rope_is_refused() -> None:
    model = random_model(SCOUT, seed=1)
    model.layers[3].attention.rotates = True
    assert why_not(model) == "a global layer rotates queries and keys"


@needs_kernels
@pytest.mark.parametrize("shape", SHAPES)
def test_experts_are_chosen_with_the_bias_of_a_model_in_training(shape: str) -> None:
    model = random_model(SHAPES[shape], seed=1)
    call, before = FusedForward(model), torch.cat(logits(model, steps(model.config, [64]), fused=True))
    bias_LE = torch.randn(
        len(mixtures(model)), model.config.moe.num_experts, generator=torch.Generator().manual_seed(4)
    )
    for moe, bias_E in zip(mixtures(model), bias_LE, strict=True):
        moe.bias_E = bias_E  # as herd.train.balance sets it
    plan = steps(model.config, [64, 1, 3])
    ours, twins = (torch.cat(logits(model, plan, fused=fused)) for fused in (True, False))
    assert float((twins - before).abs().max()) > 0.05  # the bias matters
    torch.testing.assert_close(ours, twins, rtol=0, atol=1e-5)
    check_agreement(model, call)  # of a call that was made before there was a bias


@needs_kernels
def test_a_config_with_a_field_that_the_kernel_does_not_know_is_refused() -> None:
    # Fails where a field is added: teach the kernel, or show that it changes nothing, and list it in fused_fields.py.
    for kind, known in CONFIG_FIELDS.items():
        assert {field.name for field in dataclasses.fields(kind)} == known, kind

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Softcapped(ModelConfig):
        softcap: float = 30.0

    known_fields = {field.name: getattr(SCOUT, field.name) for field in dataclasses.fields(SCOUT)}
    assert "Softcapped has the field" in str(why_not(random_model(Softcapped(**known_fields), seed=1)))


@needs_kernels
def test_a_module_with_a_field_that_the_kernel_does_not_know_is_refused() -> None:
    for shape in (SCOUT, MAVERICK):
        models = [random_model(shape, seed=1), random_model(shape, seed=1).bfloat16()]
        quantize_model(models[1], Scheme(name="int8"), shape)
        for model in models:
            for name, module in language_modules(model):
                assert module_fields(module) == MODULE_FIELDS[type(module)], name

    def refused(change: Callable[[Transformer], object]) -> str:
        model = random_model(SCOUT, seed=1)
        change(model)
        return str(why_not(model))

    assert "layers.1.ffn has the field 'scale'" in refused(lambda m: setattr(m.layers[1].ffn, "scale", 2.0))
    assert "layers.0.attention has the field 'sinks'" in refused(
        lambda m: m.layers[0].attention.register_buffer("sinks", torch.zeros(4))
    )
    assert "forward hook" in refused(lambda m: m.layers[0].register_forward_pre_hook(lambda *_: None))
    assert "has eps=" in refused(lambda m: setattr(m.layers[0].ffn_norm, "eps", 1e-3))
    assert "is a Sequential" in refused(lambda m: setattr(m.layers[0], "ffn", torch.nn.Sequential()))


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
            reason == "the tensor is torch.float16"
            if name == "embedding" and kind == torch.float16
            else (
                f"is torch.bfloat16, not {kind}" in reason
                if name == "embedding"
                else reason == f"{name} is {kind}, not torch.bfloat16"
            )
        ), name
        with pytest.raises(HerdError, match="native forward does not take this model"):
            FusedForward(model)


@needs_kernels
def test_weights_of_another_shape_or_layout_are_refused() -> None:
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


def test_logits_that_cancel_may_be_more_roundings_of_their_size_apart_and_no_more_than_that() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden_ND, weight_VD = (torch.randn(rows, 576, generator=generator) for rows in (8, 1000))
    basis_DN = torch.linalg.qr(hidden_ND.T).Q
    weight_VD -= 0.99 * weight_VD @ basis_DN @ basis_DN.T  # of each sum a hundredth is left
    logits_CNV = (with_noise(hidden_ND, generator) @ weight_VD.T).view(COPIES, 8, -1)
    ours_NV = hidden_ND.flip(-1) @ weight_VD.flip(-1).T
    unit, starts = torch.finfo(torch.float32).eps, torch.tensor([0, 8])
    apart_N = (ours_NV - logits_CNV[0]).norm(dim=-1) / logits_CNV[0].norm(dim=-1)
    assert float(apart_N.median()) > ROUNDINGS * unit
    compare("the unembedding", ours_NV, logits_CNV, starts, unit)
    with pytest.raises(HerdError, match="disagree in the unembedding"):
        compare("the unembedding", 1.001 * ours_NV, logits_CNV, starts, unit)


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
    model.engine(max_num_seqs=1).close()
    monkeypatch.setattr("herd.model.moe.combine", lambda shared, *_: 2 * shared)
    with pytest.raises(HerdError, match="disagree in layer 0"):
        model.engine(max_num_seqs=1)


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
def test_only_the_wanted_rows_are_computed() -> None:
    model = random_model(SCOUT, seed=2)
    plan = steps(model.config, [9])
    some = torch.cat(logits(model, plan, fused=True, every=3))
    reported = ~some[:, 0].isnan()
    assert 0 < reported.sum() < len(some)
    assert torch.equal(some[reported], torch.cat(logits(model, plan, fused=True))[reported])


@needs_kernels
@torch.inference_mode()
def test_embedded_rows_replace_tokens() -> None:
    model = random_model(MAVERICK, seed=2).bfloat16()
    tokens_N = torch.arange(40, 52)

    def run(embedded_ND: Tensor | None) -> Tensor:
        slots = Slots(model.config, num_slots=1, capacity=16, dtype=torch.bfloat16, device=torch.device("cpu"))
        pack = pack_sequences([tokens_N if embedded_ND is None else torch.zeros_like(tokens_N)])
        view = slots.view(pack, [0])
        return FusedForward(model)(pack, cache=view, rows_R=torch.tensor([11]), embedded_ND=embedded_ND)

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
