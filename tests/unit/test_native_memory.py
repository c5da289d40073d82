"""The kernels touch no byte past a tensor's end: each ends where a page begins that may not be read."""

import ctypes
import math
import mmap
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from herd import native
from herd.bench.oracles import random_model
from herd.bench.parity import SCOUT_LIKE
from herd.model.cache import Slots
from herd.model.fused import FusedForward
from herd.model.pack import pack_sequences
from herd.native import library
from herd.train import passes

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason="no C++ compiler or no AVX-512 with VNNI")
PAGE = mmap.PAGESIZE
WIDTHS = [*range(1, 35), 47, 48, 63, 64, 65, 70]


def guarded(x: Tensor) -> Tensor:
    """A copy whose last byte is the last one before a page that may be neither read nor written."""
    if not x.nbytes:
        return x
    size = math.ceil(x.nbytes / PAGE) * PAGE
    memory = mmap.mmap(-1, size + PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + size), PAGE, 0) == 0
    return torch.frombuffer(memory, dtype=x.dtype, count=x.numel(), offset=size - x.nbytes).view(x.shape).copy_(x)


class Guarded:
    """The library, but kernels get guarded copies; what they write is copied back."""

    def __init__(self) -> None:
        self.copies: list[tuple[Tensor, Tensor]] = []

    def __getitem__(self, name: str) -> Callable[..., None]:
        found = library.find().library
        assert found is not None
        kernel = found[name]
        kernel.restype = None

        def function(*arguments: object) -> None:
            kernel(*arguments)
            for original, copy in self.copies:
                original.copy_(copy)
            self.copies.clear()

        return function


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped, as_c, found = Guarded(), library.as_c, library.find()

    def copied(argument: Tensor | int | float | None) -> object:
        if not isinstance(argument, Tensor):
            return as_c(argument)
        assert argument.is_contiguous()
        copy = guarded(argument.detach())
        wrapped.copies.append((argument.detach(), copy))
        return as_c(copy)

    def call(name: str, *arguments: Tensor | int | float | None) -> None:
        wrapped[name](*map(copied, arguments))

    assert found.library is not None
    for module in (native.functions, native.lowbit, native.optimizer, native.paged, native.sparse):
        monkeypatch.setattr(module, "call", call)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [x.bfloat16().requires_grad_() for x in inputs]
    out = function(*leaves)
    out.backward(random(*out.shape).to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def test_the_page_behind_a_tensor_cannot_be_read() -> None:
    """A child reads it, as the reader does not survive."""
    import os

    tensor = guarded(torch.zeros(5, dtype=torch.bfloat16))
    child = os.fork()
    if not child:
        ctypes.string_at(tensor.data_ptr() + tensor.nbytes, 1)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.usefixtures("guard")
def test_training_stays_within_its_tensors_at_any_width() -> None:
    ends = torch.tensor([2, 2, 7])
    for width in WIDTHS:
        x, other = random(7, width), random(3, width, 71 - width)
        for found in (
            *gradients(native.linear, x, random(71 - width, width)),
            *gradients(lambda x, w: native.grouped_product(x, w, ends), x, other),
            *gradients(lambda x, w: native.rms_norm(x, w, 1e-5), x, random(width)),
            *gradients(native.swiglu, random(7, 2 * width)),
        ):
            assert found.isfinite().all()
        order = torch.randperm(14)
        back = order.argsort()
        gates = random(7, 2)
        rows = native.dispatch(x.bfloat16(), gates, order, back)
        assert torch.equal(rows, (x.bfloat16().float()[order // 2] * gates.flatten()[order, None]).bfloat16())
        gradients(partial(native.combine, order_R=order, back_R=back), x, random(14, width))
        logits = random(3, width).bfloat16()
        losses = torch.nn.functional.cross_entropy(
            logits.float(), torch.tensor([0, width - 1, width // 2]), reduction="none"
        )
        ours = native.softmax_gradient(logits, torch.tensor([0, width - 1, width // 2]))
        torch.testing.assert_close(ours, losses, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("guard")
def test_attention_in_training_stays_within_its_tensors() -> None:
    for length in (1, 5, 17, 64, 70):
        begins = torch.tensor([0, length, length + 3])
        turn = torch.polar(torch.ones(length + 3, 8), random(length + 3, 8))
        options = {"num_kv_heads": 1, "rotation_NC": turn, "temperature_N": None, "norm_eps": 1e-5}
        found = gradients(partial(native.attention, begins_S=begins, **options), random(length + 3, 4, 16))
        assert all(x.isfinite().all() for x in found)


@pytest.mark.usefixtures("guard")
def test_optimizers_stay_within_their_tensors() -> None:
    for size in (*WIDTHS, 127, 129, 300):
        weight, grad = random(size).bfloat16(), random(size).bfloat16()
        low_bits = passes.new_low_bits(weight)
        assert low_bits is not None
        first, second = torch.zeros(size), torch.zeros(size)
        step = passes.AdamWStep(clip=1.0, betas=(0.9, 0.99), keep=1.0, rate=1e-2, unbias=100.0)
        torch.testing.assert_close(native.square_sum(grad), grad.float().square().sum())
        native.apply_update(weight, low_bits, native.momentum_update(grad, first, 1.0, 0.9), 1.0, 0.1)
        native.adamw(grad, weight, low_bits, first, second, step.in_order)
        codes = torch.zeros(2, size, dtype=torch.uint8)
        scales = torch.zeros(math.ceil(size / passes.BLOCK), 2)
        native.adamw_8bit(grad, weight, low_bits, codes[0].clone(), codes[1].clone(), scales, step.in_order, 5)
        assert weight.isfinite().all()


@pytest.mark.usefixtures("guard")
def test_products_with_few_bits_stay_within_their_tensors_at_any_width() -> None:
    ends = torch.tensor([1, 1, 6])
    for width in WIDTHS:
        x = random(6, width)
        codes = torch.randint(-128, 128, (3, 5, width), dtype=torch.int8)
        scale = torch.ones(3, 5, 1, dtype=torch.bfloat16)
        largest = x.abs().amax(1, keepdim=True)
        rounded = (x * (127 / largest)).round()
        groups = torch.tensor([0, 2, 2, 2, 2, 2])
        truth = torch.einsum("nk,nok->no", rounded, codes[groups].float()) * largest / 127
        ours = native.lowbit_product(x, codes.view(torch.uint8), scale, ends, bits=8, detail=0)
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-3)
        found = native.lowbit_product(
            x.bfloat16(), codes.view(torch.uint8).clamp(max=120), scale, ends, bits=8, detail=1000
        )
        assert found.isfinite().all()
    for width in (32, 64, 96, 160, 416):
        codes = torch.randint(0, 256, (3, 5, width // 2), dtype=torch.uint8)
        scale = torch.ones(3, 5, width // 32, dtype=torch.bfloat16)
        assert native.lowbit_product(random(6, width), codes, scale, ends, bits=4, detail=32).isfinite().all()


@pytest.mark.usefixtures("guard")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_over_pages_stays_within_them(dtype: torch.dtype) -> None:
    for width in (2, 10, 16, 30, 34, 66):
        keys, values = random(2, 3, 2, 4, width).to(dtype)
        table, seen, starts = torch.tensor([[2, 0, 1]]).int(), torch.tensor([9]), torch.tensor([0, 3])
        assert native.attend_pages(random(3, 4, width).to(dtype), keys, values, table, seen, starts).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_forward_stays_within_its_weights(dtype: torch.dtype) -> None:
    """Its weights by pointers: these are guarded, in sizes that no register divides."""
    shape = replace(SCOUT_LIKE, vision=None, num_layers=2, dim=44, vocab_size=71, chunk_size=64)
    shape = replace(shape, moe=replace(shape.moe, ffn_dim=22))
    model = random_model(shape, seed=1).to(dtype)
    ids = torch.randint(71, (37,), generator=torch.Generator().manual_seed(0))
    results = []
    for keep in (False, True):
        if keep:
            for parameter in model.parameters():
                parameter.data = guarded(parameter.data)
        slots = Slots(shape, num_slots=1, capacity=64, dtype=dtype, device=torch.device("cpu"))
        forward, found = FusedForward(model), []
        with torch.inference_mode():
            for begin, end in ((0, 30), (30, 36), (36, 37)):
                pack = pack_sequences([ids[begin:end]], num_cached=[begin])
                rows_R = torch.arange(end - begin)
                found.append(forward.unembed(forward(pack, cache=slots.view(pack, [0]), rows_R=rows_R)))
        results.append(torch.cat(found))
    assert torch.equal(*results)
