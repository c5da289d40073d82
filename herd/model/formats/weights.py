"""A model's weights as every format gives and takes them: our parameters by name, one at a time.

A reader finds out what a folder holds, refuses what does not fit, and gives `Weights`; a writer takes `Weights`; so a
conversion holds one parameter at a time, and `assemble` one model.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from herd.config import ModelConfig
from herd.errors import HerdError
from herd.model.formats.stored import CHECKED, Box, Stored, is_finite
from herd.model.transformer import Transformer

T = TypeVar("T")
BUFFERS = ("rotary_emb.inv_freq", "rotary_emb.original_inv_freq", "rotary_embedding.freqs_ci")
"""Ends of names that older files have beside the weights: tables that are computed."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights that `config` needs, wherever they are."""

    config: ModelConfig
    dtype: torch.dtype
    """That the tensors are cast to when the model is opened or converted; see `common_dtype`."""
    read: Callable[[str], Tensor]
    """A parameter of `Transformer` by its name, on the CPU, in its stored type."""
    stored: Callable[[str], Sequence[Stored] | None] | None = None
    """Where a parameter is stored, if it is that as it is: the tensors that follow each other along its first axis."""

    @staticmethod
    def of(model: Transformer) -> "Weights":
        """Those of a model in memory."""
        parameters = dict(model.named_parameters())
        dtype = parameters["embedding.weight"].dtype
        return Weights(config=model.config, dtype=dtype, read=lambda name: parameters[name].detach().cpu())


def read_boxes(weights: Weights, name: str, boxes: Sequence[tuple[Box, Box]], shape: Sequence[int]) -> Tensor:
    """A tensor of `shape` that is a part of a parameter: `boxes` are pairs of a place in the whole and one in the part.
    Where it is known how the weights are stored, nothing else is read."""
    pieces = None if weights.stored is None else weights.stored(name)
    if pieces is None:
        whole = weights.read(name)
        part = whole.new_empty(shape)
        for there, here in boxes:
            part[slices(here)] = whole[slices(there)]
        return part
    part = torch.empty(*shape, dtype=reduce(torch.promote_types, [piece.dtype for piece in pieces]))
    for there, here in boxes:
        first = 0
        for piece in pieces:
            begin, end = max(there[0][0] - first, 0), min(there[0][1] - first, piece.shape[0])
            if begin < end:
                at = here[0][0] + first + begin - there[0][0]
                target = part[slices(((at, at + end - begin), *here[1:]))]
                box = ((begin, end), *there[1:])
                if target.dtype == piece.dtype:
                    piece.read_box(box, target)
                else:
                    target.copy_(piece.read_box(box, torch.empty(target.shape, dtype=piece.dtype)))
            first += piece.shape[0]
    return part


def slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(*span) for span in box)


class Undrawn(TorchFunctionMode):
    """Leaves parameters as they are made: to draw values without memory, PyTorch imports its compiler, 78 MB of it."""

    def __torch_function__(  # type: ignore[no-untyped-def]
        self, function, types, args=(), kwargs=None
    ):
        if getattr(function, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def skeleton(config: ModelConfig) -> Transformer:
    """The model without memory for its parameters."""
    with torch.device("meta"), Undrawn():
        return Transformer(config)


def assemble(weights: Weights, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Transformer:
    """The model with its weights, all of one type: `dtype`, or that of `weights`. Takes little more memory."""
    model = skeleton(weights.config)
    names = [name for name, _ in model.named_parameters()]
    state = {name: cast(name, weights.read(name), dtype or weights.dtype, device) for name in names}
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def common_dtype(kinds: Iterable[torch.dtype], raw: Mapping[str, Any], embedding: torch.dtype) -> torch.dtype:
    """The type for all tensors of a folder whose own are `kinds`: that one, if there is one only.

    Of a mix, the type that its config.json (`raw`) names, as in transformers; where that names none, the embedding's.
    """
    if len(set(kinds)) == 1:
        return embedding
    places = [raw, *(part for part in (raw.get("text_config"),) if isinstance(part, Mapping))]
    names = [part.get(key) for part in places for key in ("dtype", "torch_dtype")]
    return next((kind for name in names for kind in CHECKED if str(kind) == f"torch.{name}"), embedding)


def cast(name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """`tensor` in another type. Raises HerdError for values that it cannot hold."""
    small = tensor.to(device or "cpu", dtype)
    if dtype == torch.float16 and tensor.dtype != dtype and tensor.numel() and not is_finite(small):
        raise HerdError(f"{name} holds values beyond 65504, which float16 cannot hold: open the model in bfloat16")
    return small


def check(source: Path, found: Mapping[str, Stored], wanted: Mapping[str, torch.Size]) -> None:
    """Refuse tensors that are missing, of no use, or of another shape or type than the configuration asks for."""
    problems = wrong_names(found, wanted)
    for name in sorted(wanted.keys() & found.keys()):
        have, want = found[name], tuple(wanted[name])
        if have.shape != want:
            problems.append(f"{name} has shape {have.shape}, the configuration asks for {want}")
        elif have.dtype not in CHECKED:
            problems.append(f"{name} is stored as {str(have.dtype).removeprefix('torch.')}, not as a float")
    refuse(source, problems)


def wrong_names(found: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """What is missing and what is of no use, for `refuse`."""
    found, wanted = set(found), set(wanted)
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    return [
        *rename_hints(missing, extra),
        *(f"{name} is missing" for name in missing),
        *(f"{name} is not a tensor of this model" for name in extra),
    ]


def rename_hints(missing: Sequence[str], extra: Sequence[str]) -> list[str]:
    """One line about the name that has no place and ends most like one that is missing; none where none is alike."""

    def similarity(one: str, other: str) -> int:
        parts = zip(reversed(one.split(".")), reversed(other.split(".")), strict=False)
        return len(list(takewhile(lambda pair: pair[0] == pair[1], parts)))

    pairs = [(similarity(one, other), one, other) for one in missing[:8] for other in extra]
    shared, one, other = max(pairs, default=(0, "", ""))
    if shared < 2:
        return []
    return [f"{other} seems to be {one}: rename the tensors, with load_file and save_file of safetensors.torch"]


def plain_names(source: Path, found: Mapping[str, T], wanted: Iterable[str]) -> dict[str, T]:
    """`found` without buffers that hold no weights, and without a prefix that every name has (`_orig_mod.`, `module.`).

    What is left out is printed on standard error.
    """
    held = {name: value for name, value in found.items() if not name.endswith(BUFFERS)}
    first = next(iter(held), "")
    whole = max((name for name in wanted if first.endswith(f".{name}")), key=len, default=first)
    prefix = first.removesuffix(whole)
    if not prefix or not all(name.startswith(prefix) for name in held):
        return held
    print(f"{source}: the names of all tensors begin with {prefix}, which is left off", file=sys.stderr)
    return {name.removeprefix(prefix): value for name, value in held.items()}


def refuse(source: Path, problems: Iterable[str]) -> None:
    """Raise one line that names the first problems, if there are any."""
    problems = list(problems)
    if problems:
        raise HerdError(f"{source}: {'; '.join(problems[:8])}" + (" …" if len(problems) > 8 else ""))
