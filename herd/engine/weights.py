"""New weights for a running engine: all of them or an error, and a digest of what is then loaded."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from herd.errors import HerdError
from herd.model.transformer import Transformer

NAMED = 3
"""Names that an error lists at most."""


def replace_weights(transformer: Transformer, tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` over the parameters in place. Raises HerdError, and changes nothing, where a name is missing or
    unknown, or a shape or dtype differs."""
    own = transformer.state_dict()
    if missing := [name for name in own if name not in tensors]:
        raise HerdError(f"update_weights: {len(missing)} of {len(own)} tensors are missing: {listed(missing)}")
    if unknown := [name for name in tensors if name not in own]:
        raise HerdError(f"update_weights: the model has no parameter {listed(unknown)}")
    for name, tensor in tensors.items():
        wanted = own[name]
        if tensor.shape != wanted.shape:
            raise HerdError(
                f"update_weights: {name} has the shape {tuple(tensor.shape)}, the model's is {tuple(wanted.shape)}"
            )
        if tensor.dtype != wanted.dtype:
            raise HerdError(f"update_weights: {name} is {tensor.dtype}, the model's is {wanted.dtype}: convert it")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Of names, dtypes, shapes and values, in the order of the names: the same for the same weights anywhere."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:NAMED])
    return f"{shown}, …" if len(names) > NAMED else shown
