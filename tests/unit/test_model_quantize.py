"""Schemes and products: bounds of rounding, the kernel beside its twin and beside explicit fp32 products."""

import fnmatch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from herd import native
from herd.config import SpecialIds, tiny
from herd.errors import HerdError
from herd.model import quantize as module
from herd.model.quantize import (
    KEPT,
    Packed,
    Scheme,
    dequantize,
    pack,
    quantize,
    quantize_model,
    round_activations,
    unpack,
    why_kept,
)
from herd.model.transformer import Transformer

SHAPE = tiny(64, SpecialIds(**dict.fromkeys(SpecialIds.__dataclass_fields__, 0)))
ALL = [
    Scheme(name="int8"),
    Scheme(name="int4", group=32),
    Scheme(name="int4", group=64),
    Scheme(name="int4", group=128),
    Scheme(name="int4", group=32, fit="search"),
    Scheme(name="fp8", everywhere=True),
]
needs_kernels = pytest.mark.skipif(native.why_not() is not None, reason="no C++ compiler or no AVX-512 with VNNI")
schemes = pytest.mark.parametrize("scheme", ALL, ids=lambda s: f"{s.name}-{s.group}-{s.fit}")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(scheme: Scheme, weight: Tensor) -> Packed:
    packed = Packed(scheme, tuple(weight.shape))
    packed.weight, packed.scale = quantize(weight, scheme)
    return packed


@settings(max_examples=60, deadline=None)
@given(
    scheme=st.sampled_from(ALL),
    rows=st.integers(1, 5),
    blocks=st.integers(1, 3),
    magnitude=st.integers(-30, 30),
    seed=st.integers(0, 1000),
    outlier=st.booleans(),
)
def test_rounding_stays_within_half_a_step(
    scheme: Scheme, rows: int, blocks: int, magnitude: int, seed: int, outlier: bool
) -> None:
    weight = random(rows, 128 * blocks, seed=seed) * 2.0**magnitude
    if outlier:
        weight[0, 0] *= 1000
    weight[-1] = 0
    codes, scale = quantize(weight, scheme)
    groups = weight.unflatten(-1, (scale.shape[-1], -1))
    step = scale.float().abs().unsqueeze(-1)
    error = (dequantize(codes, scale, scheme).view_as(groups) - groups).abs()
    if scheme.name == "fp8":  # half of the last of three binary places, or of the smallest step
        bound = torch.maximum(groups.abs() * 2**-4, step * 2**-10)
        bound = torch.where(groups.abs() > 448 * step, groups.abs() * 2**-4, bound)
    else:
        # int4 reaches -8 but not 8: what lies beyond is clamped, by less than a step with amax / 8.
        beyond = (groups / step).abs() - (7 if scheme.name == "int4" else 127)
        bound = step * beyond.clamp_min(0.5) if scheme.fit == "amax" else step * beyond.clamp_min(0.5) + 1e-30
    assert bool((error <= bound * (1 + 1e-5)).all())
    assert bool((dequantize(codes, scale, scheme)[-1] == 0).all())


def test_searched_scales_lose_less_than_amax() -> None:
    weight = random(64, 256)
    losses = {}
    for fit in ("amax", "search"):
        scheme = Scheme(name="int4", group=32, fit=fit)
        losses[fit] = float((dequantize(*quantize(weight, scheme), scheme) - weight).square().mean())
    assert losses["search"] < 0.85 * losses["amax"]


def test_packed_bytes_are_words_of_eight_codes_the_first_lowest() -> None:
    codes = torch.randint(-8, 8, (3, 32), dtype=torch.int8)
    packed = pack(codes)
    assert torch.equal(unpack(packed), codes)
    words = packed.view(torch.int32)
    for place in range(8):
        assert torch.equal((words >> 4 * place & 15) - 8, codes[:, place::8].int())


@schemes
@pytest.mark.parametrize("counts", [[1], [13], [4, 0, 9], [101, 1]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_equal_those_of_dequantised_weights(scheme: Scheme, counts: list[int], dtype: torch.dtype) -> None:
    width = 384 if scheme.group == 128 else 320
    weight, x = random(len(counts), 130, width), random(sum(counts), width, seed=1).to(dtype)
    packed = make(scheme, weight)
    ends = torch.tensor(counts).cumsum(0).to(torch.int32)
    exact = dequantize(packed.weight, packed.scale, scheme)

    def products(rows: Tensor) -> Tensor:
        return torch.cat([part @ exact[e].T for e, part in enumerate(rows.split(counts))])

    with torch.inference_mode():
        ours = packed(x, ends)
        assert ours.dtype == dtype
        rounded, plain = products(round_activations(x, scheme)), products(x.float())
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-4
    assert torch.allclose(ours.float(), rounded, atol=tolerance, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4)
    # Rounded activations cost little beside 3 % (fp8) or less (8 bits).
    assert float((ours.float() - plain).norm() / plain.norm()) < (0.035 if scheme.name == "fp8" else 0.012)


@needs_kernels
@settings(max_examples=40, deadline=None)
@given(
    scheme=st.sampled_from(ALL),
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    blocks=st.integers(1, 9),
    columns=st.integers(1, 140),
    ragged=st.integers(0, 31),
)
def test_the_kernel_equals_its_twin_at_any_shape(
    scheme: Scheme, counts: list[int], blocks: int, columns: int, ragged: int
) -> None:
    width = blocks * (scheme.group or 32) + (0 if scheme.group else ragged)
    packed = make(scheme, random(len(counts), columns, width))
    x, ends = random(sum(counts), width, seed=1) * 3, torch.tensor(counts).cumsum(0)
    with torch.inference_mode():
        ours = packed(x, ends)
        twin = module.product(x, packed.weight, packed.scale, ends, scheme)
    assert torch.allclose(ours, twin, rtol=1e-3, atol=2e-4 * width**0.5)


@needs_kernels
@schemes
def test_large_broken_and_zero_activations(scheme: Scheme) -> None:
    packed, x = make(scheme, random(1, 8, 128)), random(5, 128)
    x[0] = 0
    x[1, 3] = float("nan")
    x[2, 3] = float("inf")
    x[3] *= 1e4
    with torch.inference_mode():
        ours = packed(x, torch.tensor([5]))
        twin = module.product(x, packed.weight, packed.scale, torch.tensor([5]), scheme)
    assert torch.equal(ours[0], torch.zeros(8))
    for out in (ours, twin):
        assert bool(out[1].isnan().all())
        assert bool(out[2].isnan().all())
    assert torch.allclose(ours[3:], twin[3:], rtol=1e-3, atol=1e-2)
    if scheme.name == "fp8":  # capped at 1200 each
        assert float(round_activations(x, scheme)[3].abs().max()) == pytest.approx(1200)


@schemes
def test_every_matrix_is_packed_or_named_with_a_reason(scheme: Scheme) -> None:
    model = Transformer(SHAPE).to(torch.bfloat16)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    if scheme.group == 128:
        with pytest.raises(HerdError, match=r"group=128 does not divide its 192 inputs, set the group to 32 or 64"):
            quantize_model(model, scheme, SHAPE)
        return
    before = {name for name, parameter in model.named_parameters() if parameter.ndim >= 2}
    quantize_model(model, scheme, SHAPE)
    left = {name for name, parameter in model.named_parameters() if parameter.ndim >= 2}
    assert {name for name in left if why_kept(name, scheme, SHAPE) is None} == set()
    packed = sum(isinstance(part, Packed) for part in model.modules())
    assert packed == len(before - left) == SHAPE.num_layers * 6 + 1  # qkv, out, 2 shared, 2 of experts; unembedding
    # Every exception is one that this model has.
    assert all(any(fnmatch.fnmatchcase(name, pattern) for name in left) for pattern in KEPT)


def test_fp8_takes_routed_experts_of_inner_layers_only() -> None:
    names = dict(Transformer(SHAPE).named_parameters())
    taken = {name for name in names if names[name].ndim >= 2 and why_kept(name, Scheme(name="fp8"), SHAPE) is None}
    assert taken == {f"layers.{layer}.ffn.{kind}" for layer in (1, 2) for kind in ("gate_up_EDF", "down_EFD")}


def test_the_head_can_be_kept() -> None:
    scheme = Scheme(name="int8", keep_head=True)
    assert "vLLM" in (why_kept("unembedding.weight", scheme, SHAPE) or "")
    assert why_kept("unembedding.weight", Scheme(name="int8"), SHAPE) is None


@pytest.mark.parametrize(
    ("given_", "reported"),
    [
        ({"name": "int5"}, "did you mean 'int"),
        ({"name": "int4", "group": 48}, "group=48 is not one of 32, 64, 128"),
        ({"name": "int8", "group": 64}, "group=64 is for int4"),
        ({"name": "int4", "fit": "serch"}, "did you mean 'search'"),
        ({"name": "int8", "fit": "search"}, "is for int4"),
        ({"name": "int4", "everywhere": True}, "is for fp8"),
    ],
)
def test_senseless_schemes_are_refused(given_: dict[str, object], reported: str) -> None:
    with pytest.raises(HerdError, match=reported):
        Scheme(**given_)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_weights_are_refused_by_name(bad: float) -> None:
    weight = torch.ones(2, 128)
    weight[1, 5] = bad
    with pytest.raises(HerdError, match=r"layers\.3\.down holds NaN or infinity"):
        quantize(weight, Scheme(name="int4"), "layers.3.down")


def test_training_a_packed_matrix_is_refused() -> None:
    with pytest.raises(HerdError, match="cannot be trained"):
        make(Scheme(name="int8"), random(8, 32))(random(2, 32).requires_grad_())
