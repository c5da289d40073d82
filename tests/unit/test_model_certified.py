"""Certified sparse attention: what it promises of its error holds against dense attention, whatever the keys are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from herd import native
from herd.model import certified
from herd.model.certified import Summary, attend

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
    num_pages=st.integers(1, 150), short=st.integers(0, SIZE - 1), epsilon=st.sampled_from([1e-1, 1e-3, 1e-6]),
)  # fmt: skip
def test_the_error_is_never_more_than_the_certificate_says(
    kind: str, seed: int, num_pages: int, short: int, epsilon: float
) -> None:
    q, keys, values = pages_of(kind, num_pages, seed)
    length = num_pages * SIZE - short
    summary = Summary(keys, values)
    summary.update(0, length // SIZE)
    out, certificate = attend(q, summary, length, epsilon)
    exact, _ = dense(q, keys, values, length)
    assert certificate.unread <= epsilon
    assert float((out - exact).norm(dim=-1).max()) <= certificate.error + 1e-4  # rounding of sums in fp32
    if kind == "one like the other":
        assert certificate.share == 1


def test_where_one_key_has_the_weight_few_pages_are_read() -> None:
    q, keys, values = pages_of("needles", 2000, seed=0)
    summary = Summary(keys, values)
    summary.update(0, 2000)
    out, certificate = attend(q, summary, 2000 * SIZE, 1e-3)
    assert certificate.share < 0.1
    assert float((out - dense(q, keys, values, 2000 * SIZE)[0]).norm(dim=-1).max()) <= certificate.error + 1e-4


def test_a_page_that_has_changed_counts_once_it_was_looked_at_again() -> None:
    q, keys, values = pages_of("needles", 300, seed=1)
    summary = Summary(keys, values)
    summary.update(0, 300)
    keys[123, :, 5] = 20 * q[::2].bfloat16() / q[::2].norm(dim=-1, keepdim=True)
    summary.update(123, 124)
    out, certificate = attend(q, summary, 300 * SIZE, 1e-4)
    assert float((out - dense(q, keys, values, 300 * SIZE)[0]).norm(dim=-1).max()) <= certificate.error + 1e-4


@pytest.mark.skipif(native.find().library is None, reason="the kernels are not there")
def test_the_kernels_give_what_their_twins_give(monkeypatch: pytest.MonkeyPatch) -> None:
    q, keys, values = pages_of("noise", 40, seed=2)
    summary = Summary(keys, values)
    summary.update(0, 40)
    pages = torch.tensor([3, 4, 17, 39])

    def both() -> list[Tensor]:
        bounds = certified.page_bounds(q, summary.low_PKC, summary.high_PKC)
        return [bounds, *certified.attend_some(q, keys, values, pages, 11)]

    assert native.reads_some(keys)
    by_kernel = both()
    monkeypatch.setattr(native, "reads_some", lambda _: False)
    for kernel, twin in zip(by_kernel, both(), strict=True):
        assert torch.allclose(kernel, twin, atol=1e-4, rtol=1e-5)


def test_no_key_scores_more_than_its_page_is_bounded_by() -> None:
    q, keys, values = pages_of("noise", 50, seed=3)
    summary = Summary(keys, values)
    summary.update(0, 50)
    bound_HP = certified.page_bounds(q, summary.low_PKC, summary.high_PKC)
    score = torch.einsum("krc,pklc->krpl", q.unflatten(0, (KV, -1)), keys.float()).flatten(0, 1)
    assert (score.amax(-1) <= bound_HP + 1e-4).all()
