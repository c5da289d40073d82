"""The C++ kernels against PyTorch: in fp32 for the truth, in bf16 for what rounding costs anyway."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from herd import native
from herd.config import ModelConfig, SpecialIds, tiny
from herd.model.attention import Attention, plan_attention
from herd.model.moe import MoE, combine, dispatch, swiglu
from herd.model.transformer import RMSNorm
from herd.native import library
from herd.train import passes
from herd.train.losses import softmax_gradient

pytestmark = pytest.mark.usefixtures("two_threads")
needs_kernels = pytest.mark.skipif(native.why_not() is not None, reason="no C++ compiler or no AVX-512 with VNNI")
NONE = library.Found(None, "a test", "")
SHAPE = tiny(64, SpecialIds(**dict.fromkeys(SpecialIds.__dataclass_fields__, 0)))


def error(ours: Tensor, truth: Tensor) -> float:
    """Relative, in the Euclidean norm."""
    return float((ours.float() - truth.float()).norm() / truth.float().norm().clamp_min(1e-9))


def check(function: Callable[..., Tensor], *inputs: Tensor, slack: float = 1.1) -> None:
    """Value and gradients of the kernel are as near to fp32 as those of the twin in bf16, or nearly so."""

    def run(dtype: torch.dtype, kernels: bool) -> list[Tensor]:
        leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
        with pytest.MonkeyPatch.context() as patch:
            if not kernels:
                patch.setattr(library, "find", lambda: NONE)
            out = function(*leaves)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
        out.backward(weights.to(dtype))
        return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    truth, twin, ours = run(torch.float32, False), run(torch.bfloat16, False), run(torch.bfloat16, True)
    for t, b, o in zip(truth, twin, ours, strict=True):
        assert o.dtype == torch.bfloat16
        assert o.shape == t.shape
        assert error(o, t) <= slack * error(b, t) + 2e-3


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Representable in bf16, so that all precisions begin at the same values."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16().float()


@needs_kernels
@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(0, 200), min_size=1, max_size=6),
    width=st.integers(1, 90),
    columns=st.integers(1, 150),
)
def test_grouped_products_of_any_shape_have_the_values_and_gradients_of_matmul(
    counts: list[int], width: int, columns: int
) -> None:
    ends = torch.tensor(counts).cumsum(0)

    def run(x: Tensor, w: Tensor) -> Tensor:
        if native.why_not(x, native.TRAINING) is None:
            return native.grouped_product(x, w, ends)
        return torch.cat([part @ w[group] for group, part in enumerate(x.split(counts))])

    rows, weight = random(sum(counts), width), random(len(counts), width, columns, seed=1)
    if sum(counts):
        check(run, rows, weight)


@needs_kernels
@pytest.mark.parametrize(("rows", "width", "columns"), [(1, 2, 1), (97, 192, 70), (2100, 33, 129), (300, 130, 1100)])
def test_linear_has_the_values_and_gradients_of_matmul(rows: int, width: int, columns: int) -> None:
    check(
        lambda x, w: native.linear(x, w) if native.why_not(x, native.TRAINING) is None else F.linear(x, w),
        random(rows, width),
        random(columns, width, seed=1),
    )


@needs_kernels
@pytest.mark.parametrize(("rows", "width"), [(1, 8), (300, 192), (513, 37)])
def test_norm_and_swiglu_equal_their_twins(rows: int, width: int) -> None:
    def norm(x: Tensor, weight: Tensor) -> Tensor:
        layer = RMSNorm(width, 1e-5).to(x.dtype)
        layer.weight.requires_grad_(False)
        return native.rms_norm(x, weight, 1e-5) if native.why_not(x, native.TRAINING) is None else layer(x) * weight

    check(norm, random(rows, width, scale=3), random(width, seed=1) + 1)
    check(swiglu, random(rows, 2 * width, scale=3))


@needs_kernels
@pytest.mark.parametrize("top_k", [1, 3])
def test_dispatch_and_combine_equal_their_twins(top_k: int) -> None:
    order = torch.randperm(50 * top_k, generator=torch.Generator().manual_seed(0))
    back = torch.argsort(order)
    gate = torch.sigmoid(random(50, top_k, seed=2))
    check(lambda x: dispatch(x, gate, order, back), random(50, 40))
    check(lambda x, rows: combine(x, rows, order, back), random(50, 40), random(50 * top_k, 40, seed=1))
    # The gates keep fp32 beside bf16 tokens.
    x, leaf, weights = random(50, 40).bfloat16(), gate.clone().requires_grad_(), random(50 * top_k, 40, seed=3)
    native.dispatch(x, leaf, order, back).backward(weights.bfloat16())
    exact = gate.clone().requires_grad_()
    dispatch(x.float(), exact, order, back).backward(weights)
    assert leaf.grad is not None
    assert exact.grad is not None
    assert torch.allclose(leaf.grad, exact.grad, rtol=1e-4, atol=1e-4)


@needs_kernels
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=5),
    layer=st.sampled_from([0, 3]),
    heads=st.sampled_from([(4, 2), (3, 3), (6, 1)]),
    head_dim=st.sampled_from([16, 48, 64, 128]),
    qk_norm=st.booleans(),
)
def test_attention_has_the_values_and_gradients_of_the_twin(
    lengths: list[int], layer: int, heads: tuple[int, int], head_dim: int, qk_norm: bool
) -> None:
    shape: ModelConfig = replace(
        SHAPE, dim=32, num_heads=heads[0], num_kv_heads=heads[1], head_dim=head_dim, qk_norm=qk_norm, chunk_size=96
    )
    starts = torch.tensor([0, *lengths]).cumsum(0)
    positions = torch.cat([torch.arange(length) for length in lengths])
    torch.manual_seed(0)
    block = Attention(shape, layer)
    for parameter in block.parameters():
        parameter.data = parameter.data.bfloat16().float()

    def run(x: Tensor, qkv: Tensor) -> Tensor:
        # The projections are left to PyTorch: this test is about what lies between them.
        shared = plan_attention(positions, starts, shape, cached=False)
        own = Attention(shape, layer).to(x.dtype)
        own.out.weight = torch.nn.Parameter(block.out.weight.to(x.dtype), requires_grad=False)
        own.qkv.forward = lambda x: F.linear(x, qkv)  # type: ignore[method-assign]
        return own(x, shared, None)

    check(run, random(sum(lengths), 32), random(*block.qkv.weight.shape, scale=0.3), slack=1.3)


@needs_kernels
@pytest.mark.parametrize("layer", [0, 3])
def test_attention_across_blocks_of_queries_and_keys_has_the_gradients_of_fp32(layer: int) -> None:
    # Blocks are of 192, 384 and 768 tokens; edges fall on, before and behind theirs.
    lengths, shape = [1, 1537, 191, 384, 769, 193, 768], replace(SHAPE, chunk_size=1152)
    starts = torch.tensor([0, *lengths]).cumsum(0)
    shared = plan_attention(torch.cat([torch.arange(length) for length in lengths]), starts, shape, cached=False)
    block = Attention(shape, layer)
    block.out = torch.nn.Identity()

    def run(qkv: Tensor) -> Tensor:
        block.qkv.forward = lambda x: x  # type: ignore[method-assign]
        return block(qkv, shared, None)

    check(run, random(sum(lengths), block.qkv.out_features, scale=2))


@needs_kernels
def test_blocks_of_one_document_give_the_same_bits_on_any_number_of_threads() -> None:
    begins, qkv, grad = (
        torch.tensor([0, 40, 2300]),
        random(2300, 8 * 16).bfloat16(),
        random(2300, 4, 16, seed=1).bfloat16(),
    )

    def run(threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        leaf = qkv.view(-1, 8, 16).clone().requires_grad_()
        out = native.attention(leaf, begins, num_kv_heads=2, rotation_NC=None, temperature_N=None, norm_eps=None)
        out.backward(grad)
        assert leaf.grad is not None
        return [out.detach(), leaf.grad]

    threads = torch.get_num_threads()
    try:
        one = run(1)
        assert all(torch.equal(a, b) for count in (2, 3) for a, b in zip(one, run(count), strict=True))
    finally:
        torch.set_num_threads(threads)


@needs_kernels
@pytest.mark.parametrize("vocabulary", [5, 64, 1000])
def test_softmax_gradient_is_softmax_less_one_hot(vocabulary: int) -> None:
    logits, targets = random(33, vocabulary, scale=4).bfloat16(), torch.arange(33) % vocabulary
    leaf = logits.float().requires_grad_()
    losses = F.cross_entropy(leaf, targets, reduction="none")
    losses.sum().backward()
    ours = softmax_gradient(logits, targets)
    assert torch.allclose(ours, losses.detach(), atol=1e-5)
    assert leaf.grad is not None
    assert error(logits, leaf.grad) < 3e-3


@needs_kernels
@pytest.mark.parametrize("coded", [False, True])
def test_optimizer_passes_equal_their_twins(coded: bool) -> None:
    shape, rule = (37, 31), passes.AdamWStep(clip=0.5, betas=(0.9, 0.95), keep=0.99, rate=0.01, unbias=1.5)

    def run() -> list[Tensor]:
        weight, low_bits = random(*shape).bfloat16(), torch.zeros(shape, dtype=torch.int16)
        other, other_low_bits, mean = weight.clone(), low_bits.clone(), random(*shape, seed=2)
        first, second = (torch.zeros(shape, dtype=torch.uint8 if coded else torch.float32) for _ in range(2))
        scales = torch.zeros(-(-weight.numel() // passes.BLOCK), 2) if coded else None
        for step in range(5):
            grad = random(*shape, seed=step).bfloat16()
            passes.adamw(grad, weight, low_bits, first, second, scales, rule, seed=2**32 - 1 - step)
            update = passes.momentum_update(grad, mean, 0.5, 0.95)
            passes.apply_update(other, other_low_bits, update, 0.99, 0.02)
        moments = [first, second]
        if scales is not None:
            moments = [passes.decode(code, scales[:, i], 3 + i) for i, code in enumerate(moments)]
        masters = passes.read_master(weight, low_bits), passes.read_master(other, other_low_bits)
        return [*masters, weight, update, mean, passes.square_sum(grad), *moments]

    ours = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "find", lambda: NONE)
        twin = run()
    for a, b in zip(ours, twin, strict=True):
        # A bf16 value or a code may fall on the other side of a rounding edge.
        near = torch.isclose(a.float(), b.float(), rtol=1e-5, atol=2e-5)
        assert near.float().mean() > 0.99
        assert torch.allclose(a.float(), b.float(), rtol=8e-3 if not coded else 0.14, atol=2e-4)


@needs_kernels
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    def run() -> list[Tensor]:
        torch.manual_seed(0)
        moe = MoE(64, replace(SHAPE.moe, num_experts=4, ffn_dim=96)).bfloat16()
        for parameter in moe.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        x = random(500, 64).bfloat16().requires_grad_()
        out = moe(x)
        out.sum().backward()
        return [out, x.grad, *(p.grad for name, p in moe.named_parameters() if "router" not in name)]  # type: ignore[list-item]

    threads = torch.get_num_threads()
    two = run()
    try:
        torch.set_num_threads(1)
        one = run()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_failing_compiler_leaves_the_twins_and_gives_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\n[ $1 = --version ] || { echo no room left >&2; exit 1; }\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("HERD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(library, "processor_flags", lambda: frozenset(library.INSTRUCTIONS["AVX-512 with VNNI"]))
    found = library.find.__wrapped__()
    assert found.library is None
    assert "no room left" in found.reason
    assert not list((tmp_path / "cache").rglob("*.so"))


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({"avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"}, "AVX-512 with VNNI"),
        ({"avx2", "fma", "avx512f", "avx512bw", "avx512vl"}, "AVX2"),
        ({"avx2", "fma"}, "AVX2"),
        ({"avx2"}, None),
    ],
)
def test_the_best_instructions_of_the_processor_are_used(
    flags: set[str], name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert library.instructions(frozenset(flags)) == name
    monkeypatch.setattr(library, "processor_flags", lambda: frozenset(flags))
    monkeypatch.delenv("HERD_NATIVE", raising=False)
    if name is None:
        assert library.find.__wrapped__().reason == "the processor lacks fma"


def test_the_kernels_can_be_switched_off_and_doctor_reports_it() -> None:
    code = "from herd.doctor import check_kernels as c; print(c().state, c().found, c().fix)"
    environment = {"HERD_NATIVE": "0", "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "note not in use: HERD_NATIVE=0" in shown.stdout
    assert "unset HERD_NATIVE" in shown.stdout


@needs_kernels
def test_a_norm_works_on_the_last_axis_of_any_shape():
    x, weight = random(3, 4, 40).bfloat16(), random(40).bfloat16()
    whole = native.rms_norm(x, weight, 1e-5)
    assert torch.equal(whole.flatten(0, 1), native.rms_norm(x.flatten(0, 1), weight, 1e-5))
    assert error(whole, F.rms_norm(x.float(), (40,), weight.float(), 1e-5)) < 0.01


@needs_kernels
def test_a_kernel_says_why_it_does_not_take_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(3, 20, dtype=torch.bfloat16)
    assert native.why_not(x) is native.why_not(x, native.PAGES) is native.why_not(x, native.TRAINING) is None
    assert native.why_not(x.float()) == "the tensor is torch.float32"
    assert native.why_not(x.float(), native.FLOATS) is None
    assert native.why_not(x.to("meta")) == "the tensor is on meta"
    assert native.why_not(x, native.SPARSE) == "the width 20 is not a multiple of 16"
    with torch.no_grad():
        monkeypatch.setattr(library, "processor_flags", lambda: frozenset({"avx512_bf16"}))
        assert native.why_not(x, native.TRAINING) == "no gradients are recorded"
        monkeypatch.setattr(library, "processor_flags", frozenset)  # PyTorch has no fast products of bf16 there
        assert native.why_not(x, native.TRAINING) is None
    monkeypatch.setattr(library, "find", lambda: NONE)
    assert native.why_not() == native.why_not(x) == "a test"
