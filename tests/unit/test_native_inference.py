"""The kernels of the engine against PyTorch: attention over pages."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from herd import native
from herd.model.cache import attend_pages, plan_queries
from herd.model.pack import CPU

pytestmark = pytest.mark.usefixtures("two_threads")
needs_kernels = pytest.mark.skipif(native.why_not() is not None, reason="no C++ compiler or no AVX-512 with VNNI")


def paged(
    dtype: torch.dtype, heads: int, kv_heads: int, width: int, page: int, lengths: list[int], seen: list[int]
) -> tuple[Tensor, ...]:
    """Arguments of `attend_pages`: random queries, keys and values, the pages of all sequences mixed up."""
    generator = torch.Generator().manual_seed(heads + page)
    counts = [-(-(a + b) // page) for a, b in zip(lengths, seen, strict=True)]
    ids = torch.randperm(sum(counts), generator=generator).int().split(counts)
    table_SB = torch.nn.utils.rnn.pad_sequence(list(ids), batch_first=True)
    keys, values = torch.randn(2, sum(counts), kv_heads, page, width, generator=generator).to(dtype)
    queries = 3 * torch.randn(sum(lengths), heads, width, generator=generator)
    starts_S = torch.tensor([0, *lengths]).cumsum(0).int()
    return queries.to(dtype), keys, values, table_SB, torch.tensor(seen), starts_S


SPANS = {
    "Scout's heads, one long span in pieces": (5, 1, 128, 64, [1, 7], [4000, 6]),
    "several key heads, one long span in pieces": (4, 2, 64, 64, [1], [6000]),
    "several tokens and key heads, a long span of small pages": (6, 3, 32, 16, [3], [5000]),
    "S's heads, prompts beside single tokens": (6, 2, 64, 64, [1, 130, 5], [0, 70, 63]),
    "pages smaller than a block of keys, an odd width": (4, 4, 10, 4, [3, 1], [5, 70]),
}


@needs_kernels
@pytest.mark.parametrize("case", SPANS)
def test_attention_over_pages_is_the_twins(case: str) -> None:
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        q, keys, values, *where = paged(dtype, *SPANS[case])
        twins = attend_pages(q, keys, values, plan_queries(*where, CPU))
        torch.testing.assert_close(native.attend_pages(q, keys, values, *where), twins, rtol=bound, atol=bound)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", SPANS)
def test_attention_of_a_token_is_the_same_alone_and_among_others(case: str, dtype: torch.dtype) -> None:
    q, keys, values, table_SB, seen_S, starts_S = paged(dtype, *SPANS[case])
    together, one = native.attend_pages(q, keys, values, table_SB, seen_S, starts_S), torch.tensor([0, 1])
    for s, (begin, end) in enumerate(zip(starts_S[:-1].tolist(), starts_S[1:].tolist(), strict=True)):
        for n in range(begin, end, 13):
            seen = seen_S[s : s + 1] + n - begin
            alone = native.attend_pages(q[n : n + 1], keys, values, table_SB[s : s + 1], seen, one)
            assert torch.equal(alone[0], together[n])


@needs_kernels
def test_attention_over_pages_is_the_same_on_any_number_of_threads() -> None:
    script = (
        "import torch\n"
        "from herd import native\n"
        "g = torch.Generator().manual_seed(0)\n"
        "k, v = torch.randn(2, 80, 2, 64, 64, generator=g)\n"
        "q, table = torch.randn(9, 6, 64, generator=g), torch.arange(80)[None].int()\n"
        "out = native.attend_pages(q, k, v, table, torch.tensor([5000]), torch.tensor([0, 9]))\n"
        "print(out.view(torch.int32).sum().item())\n"
    )
    sums = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for threads in (1, 3, 16)
    }
    assert len(sums) == 1
