"""The tests' own check of shapes: it is there for each signature that has some, and for no other."""

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from shape_checks import has_shape
from torch import Tensor

from herd.engine.sampler import adjust_logits, gumbel_noise
from herd.model.attention import rotate
from herd.model.precision import batch_invariant


def test_wrong_shapes_raise_and_what_has_none_is_called_as_it_is() -> None:
    with pytest.raises(TypeCheckError, match="x_NHC"):
        rotate(torch.zeros(3, 4), torch.zeros(3, 4))
    with pytest.raises(TypeCheckError, match="logits_BV"):
        adjust_logits(torch.zeros(4), [])
    assert all(hasattr(one, "__wrapped__") for one in (rotate, adjust_logits, gumbel_noise))
    assert not hasattr(batch_invariant, "__wrapped__")


@pytest.mark.parametrize(
    "annotation", [Float[Tensor, "n d"], Float[Tensor, "n"] | None, tuple[int, Float[Tensor, ""]], 'Float[Tensor, "n"]']
)
def test_shapes_are_found_within_other_annotations(annotation: object) -> None:
    assert has_shape(annotation)
    assert not any(map(has_shape, (int, Tensor, Tensor | None, tuple[Tensor, ...], "Shard")))
