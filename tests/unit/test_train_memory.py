"""What saves memory changes no result: parts of a batch, and layers that are computed again."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from herd.config import SpecialIds, preset
from herd.core.batch import Batch, split_batch
from herd.core.metrics import Mean
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.train.balance import mixtures
from herd.train.loop import accumulate
from herd.train.losses import language_loss

SPECIAL = SpecialIds(**dict.fromkeys(SpecialIds.__dataclass_fields__, 0))
SHAPE = replace(preset("tiny", vocab_size=64, special=SPECIAL), vision=None)
LENGTHS = (40, 7, 90, 1, 30)


def batch() -> Batch:
    size, generator = sum(LENGTHS), torch.Generator().manual_seed(0)
    tokens = torch.randint(10, 64, (size,), generator=generator)
    weights = torch.rand(size, generator=generator) * (torch.arange(size) % 3 > 0)
    return Batch(
        tokens_N=tokens,
        targets_N=tokens.roll(-1),
        weights_N=weights,
        positions_N=torch.cat([torch.arange(length) for length in LENGTHS]),
        starts_S=torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32),
        images=None,
        kinds_N=(torch.arange(size) % 2).to(torch.int8),
    )


def trained(
    parts: int, dtype: torch.dtype, *, recompute: bool = False
) -> tuple[float, dict[str, float | Mean], dict[str, Tensor], list[Tensor]]:
    """Loss, metrics, gradients and the experts' counts of one step."""
    model = Transformer(SHAPE).to(dtype).train()
    initialise(model, torch.Generator().manual_seed(0))
    model.recompute = recompute
    loss, reported = accumulate(model, split_batch(batch(), parts), language_loss(0.0))
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    figures = {
        name: Mean(float(value.total), value.count) if isinstance(value, Mean) else float(value)
        for name, value in reported.items()
    }
    return float(loss), figures, grads, [moe.count_E for moe in mixtures(model) if moe.count_E is not None]


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_gradients_of_the_parts_of_a_batch_add_up_to_its_own(parts: int) -> None:
    whole, cut = trained(1, torch.float32), trained(parts, torch.float32)
    assert cut[0] == pytest.approx(whole[0], rel=1e-6)
    assert cut[1].keys() == whole[1].keys()
    for name, value in whole[1].items():
        other = cut[1][name]
        if isinstance(value, Mean):
            assert isinstance(other, Mean) and other.count == value.count
            assert other.total == pytest.approx(value.total, rel=1e-6)
        else:
            assert other == pytest.approx(value, rel=1e-6)
    for name, grad in whole[2].items():
        assert torch.allclose(cut[2][name], grad, rtol=1e-4, atol=1e-7), name
    assert all(torch.equal(a, b) for a, b in zip(cut[3], whole[3], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_that_are_computed_again_give_the_same_bits_and_count_once(dtype: torch.dtype) -> None:
    kept, again = trained(1, dtype), trained(1, dtype, recompute=True)
    assert again[0] == kept[0]
    assert all(torch.equal(again[2][name], grad) for name, grad in kept[2].items())
    assert len(again[3]) == SHAPE.num_layers
    assert all(torch.equal(a, b) for a, b in zip(again[3], kept[3], strict=True))


def test_a_forward_that_is_computed_again_keeps_less() -> None:
    def kept_bytes(*, recompute: bool) -> int:
        model = Transformer(SHAPE).train()
        initialise(model, torch.Generator().manual_seed(0))
        model.recompute = recompute
        parameters, sizes = {p.data_ptr() for p in model.parameters()}, dict[int, int]()

        def note(x: Tensor) -> Tensor:
            if x.data_ptr() not in parameters:
                sizes[x.data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            b = batch()
            model(b.tokens_N, positions_N=b.positions_N, starts_S=b.starts_S)
        return sum(sizes.values())

    assert kept_bytes(recompute=True) < kept_bytes(recompute=False) / 3
