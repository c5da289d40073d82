"""A model's weights as every format gives and takes them: our parameters by name, one at a time.

A reader finds out what a folder holds, refuses what does not fit, and gives `Weights`; a writer takes `Weights`; so a
conversion holds one parameter at a time, and `assemble` one model.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from herd.config import ModelConfig
from herd.core.errors import HerdError
from herd.model.formats.stored import CHECKED, Stored
from herd.model.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What `config` needs, wherever it lies."""

    config: ModelConfig
    dtype: torch.dtype
    """Of the embedding, as stored: what a converted folder keeps."""
    read: Callable[[str], Tensor]
    """A parameter of `Transformer` by its name, on the CPU, in its stored type."""

    @staticmethod
    def of(model: Transformer) -> "Weights":
        """Those of a model in memory."""
        parameters = dict(model.named_parameters())
        dtype = parameters["embedding.weight"].dtype
        return Weights(config=model.config, dtype=dtype, read=lambda name: parameters[name].detach().cpu())


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
    """The model with its weights; `dtype` None keeps the stored one. Takes little more memory than the weights."""
    model = skeleton(weights.config)
    names = [name for name, _ in model.named_parameters()]
    state = {}
    for name in names:
        tensor = weights.read(name)
        state[name] = tensor.to(device or "cpu", dtype or tensor.dtype)
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


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
    return [f"{name} is missing" for name in sorted(wanted - found)] + [
        f"{name} is not a tensor of this model" for name in sorted(found - wanted)
    ]


def refuse(source: Path, problems: Iterable[str]) -> None:
    """Raise one line that names the first problems, if there are any."""
    problems = list(problems)
    if problems:
        raise HerdError(f"{source}: {'; '.join(problems[:8])}" + (" …" if len(problems) > 8 else ""))
