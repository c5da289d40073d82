"""Certified sparse attention: what it promises of its error holds against dense attention, whatever the keys are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from herd import native
from herd.model import certified
from herd.model.certified import LEAF, ArrangedKeys, attend, select_pages

KV, SIZE, WIDTH, HEADS = 2, 64, 32, 4


def pages_of(kind: str, num_pages: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values in bf16."""
    draw = torch.Generator().manual_seed(seed)
    keys = torch.randn(num_pages, KV, SIZE, WIDTH, generator=draw)
    q = torch.randn(HEADS, WIDTH, generator=draw)
    if kind == "needles":  # text that q has nothing to do with, and a few keys that it looks for
        keys = 0.05 * keys
        for head in range(HEADS):
            keys[int(torch.randint(num_pages, (1,), generator=draw)), head // 2, 7] = 12 * q[head] / q[head].norm()
        q = 6 * q
    elif kind == "one like the other":  # every page might hold the answer: none may be left out
        keys = keys[:1].expand_as(keys).clone()
    elif kind == "loose":  # the bound of every page is far above its keys
        keys[:, :, ::2], keys[:, :, 1::2] = keys[:, :, ::2].abs(), -keys[:, :, 1::2].abs()
        q = 3 * q.sign()
    values = torch.randn(num_pages, KV, SIZE, WIDTH, generator=draw)
    return q, keys.bfloat16(), values.bfloat16()


def dense(q_HC: Tensor, keys: Tensor, values: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Output and weights in fp64."""
    k, v = (pool.double().transpose(0, 1).flatten(1, 2)[:, :length] for pool in (keys, values))
    q = q_HC.double().unflatten(0, (KV, -1)) * WIDTH**-0.5
    weights = torch.softmax(q @ k.mT, -1)
    return (weights @ v).flatten(0, 1), weights


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(["needles", "one like the other", "loose", "noise"]), seed=st.integers(0, 999),
    num_pages=st.integers(1, 150), late=st.integers(0, 3 * SIZE), epsilon=st.sampled_from([1e-1, 1e-3, 1e-6]),
)  # fmt: skip
def test_the_error_is_never_more_than_the_certificate_says(
    kind: str, seed: int, num_pages: int, late: int, epsilon: float
) -> None:
    q, keys, values = pages_of(kind, num_pages + 3, seed)
    length = num_pages * SIZE + late
    out, certificate = attend(q, ArrangedKeys(keys, values, num_pages * SIZE), length, epsilon)
    exact, _ = dense(q, keys, values, length)
    assert certificate.unread <= epsilon
    assert float((out - exact).norm(dim=-1).max()) <= certificate.error + 1e-4  # rounding of sums in fp32


def test_keys_that_are_all_the_same_are_all_read() -> None:
    q, keys, values = pages_of("noise", 100, seed=0)
    keys = keys[:1, :, :1].expand_as(keys).contiguous()
    _, certificate = attend(q, ArrangedKeys(keys, values, 100 * SIZE), 100 * SIZE, 1e-3)
    assert certificate.share > 0.99  # a thousandth of the mass is a thousandth of the keys


def test_where_one_key_has_the_weight_few_pages_are_read() -> None:
    q, keys, values = pages_of("needles", 2000, seed=0)
    out, certificate = attend(q, ArrangedKeys(keys, values, 2000 * SIZE), 2000 * SIZE, 1e-3)
    assert certificate.share < 0.1
    assert float((out - dense(q, keys, values, 2000 * SIZE)[0]).norm(dim=-1).max()) <= certificate.error + 1e-4


@pytest.mark.parametrize("by_kernel", [True, False])
def test_arranged_pages_hold_each_key_once_with_its_value_and_are_narrow(
    by_kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_kernel and native.why_not() is not None:
        pytest.skip("the kernels are not there")
    if not by_kernel:
        monkeypatch.setattr(native, "why_not", lambda *_: "not wanted")
    draw = torch.Generator().manual_seed(0)
    keys = torch.randn(301, KV, SIZE, 16, generator=draw) * torch.tensor([8.0, 4, 2] + [0.01] * 13)
    keys, values = keys.bfloat16(), torch.arange(301 * KV * SIZE).view(301, KV, SIZE, 1).expand(-1, -1, -1, 16).float()
    arranged = ArrangedKeys(keys, values, 301 * SIZE)
    for index, head in enumerate(arranged.heads):
        own, place = keys[:, index].flatten(0, 1), values[:, index, :, 0].flatten()
        order = torch.searchsorted(place, head.values_PKLC[..., 0].flatten().contiguous())
        assert torch.equal(order.sort().values, torch.arange(301 * SIZE))
        assert torch.equal(own[order], head.keys_PKLC.flatten(0, 2))
        for bound, extreme in ((head.low_PKC, "amin"), (head.high_PKC, "amax")):
            assert torch.equal(bound, getattr(head.keys_PKLC, extreme)(2))
        wide = (head.high_PKC - head.low_PKC).float()[:, 0, :3]
        assert (wide.median(0).values < torch.tensor([8.0, 4, 2])).all()  # unsorted, four to five deviations


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), spread=st.sampled_from([0.0, 1.0, 20.0]), allowed=st.floats(-30, 30))
def test_the_pages_left_are_as_many_as_may_be(seed: int, spread: float, allowed: float) -> None:
    bound = spread * torch.randn(200, generator=torch.Generator().manual_seed(seed))
    chosen = select_pages(bound, allowed)
    mass = LEAF * bound.double().exp()
    assert float(mass[~chosen].sum().log()) <= allowed + 1e-9
    if chosen.any():  # one more would be too many
        assert float((mass[~chosen].sum() + mass[chosen].min()).log()) > allowed - 1e-9


@pytest.mark.skipif(native.why_not() is not None, reason="the kernels are not there")
def test_the_kernels_give_what_their_twins_give(monkeypatch: pytest.MonkeyPatch) -> None:
    q, keys, values = pages_of("noise", 40, seed=2)
    low, high = torch.aminmax(keys, dim=2)
    pages = torch.tensor([3, 4, 17, 39])

    def both() -> list[Tensor]:
        return [certified.page_bounds(q, low, high), *certified.attend_selected(q, keys, values, pages, 11)]

    assert native.why_not(keys, native.SPARSE) is None
    by_kernel = both()
    monkeypatch.setattr(native, "why_not", lambda *_: "not wanted")
    for kernel, twin in zip(by_kernel, both(), strict=True):
        assert torch.allclose(kernel, twin, atol=1e-4, rtol=1e-5)


def test_no_key_scores_more_than_its_page_is_bounded_by() -> None:
    q, keys, _ = pages_of("noise", 50, seed=3)
    bound_HP = certified.page_bounds(q, *torch.aminmax(keys, dim=2))
    score = torch.einsum("krc,pklc->krpl", q.unflatten(0, (KV, -1)), keys.float()).flatten(0, 1)
    assert (score.amax(-1) <= bound_HP + 1e-4).all()
