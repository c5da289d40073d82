"""A pretended device: tensors whose `device` is a card, computed on the CPU.

Within `PretendedDevice` a tensor that is made on the device or sent there is a `Pretended`, whose `device` is that of a
card. Operators that mix it with the host's tensors raise, as a card's would, and so do those that PyTorch would resolve
by a copy of its own (an index on the host). What makes the host wait for the device is counted by the operator in
`reads`: a number or a copy that is read, and operators whose result's shape depends on data. With `fp64=False` it has
no double precision, like mps.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from herd.model import attention, vision

aten = torch.ops.aten
WAITING = {
    aten.nonzero.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.masked_select.default,
    aten.repeat_interleave.Tensor,
    aten.bincount.default,
    aten.equal.default,
    aten.is_nonzero.default,
}
"""Operators that wait for the device, to know the shape or the value of what they give."""
TAKING_INDICES = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


class MixedDevices(RuntimeError):
    """An operator that a device would refuse, or resolve by a silent copy."""


class Pretended(Tensor):
    """A tensor that says it is on a device; `inner` holds its numbers. To PyTorch's own C++, which knows no device that
    it was not built for, it is on meta."""

    inner: Tensor
    there: torch.device

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> "Pretended":
        # A sparse tensor has no strides.
        options = {"strides": inner.stride()} if inner.layout == torch.strided else {"layout": inner.layout}
        made: Pretended = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, device="meta", **options
        )
        made.inner, made.there = inner, device
        return made

    def __init__(self, inner: Tensor, device: torch.device) -> None:
        pass

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.there

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretended({tuple(self.shape)}, {self.dtype}, {self.device})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise MixedDevices(f"{func} on a device that is not there any more")


class PretendedDevice(TorchDispatchMode):
    """See above."""

    def __init__(self, *, fp64: bool = True) -> None:
        super().__init__()
        self.device, self.fp64 = torch.device("cuda", 0), fp64
        self.reads: Counter[str] = Counter()
        self.uploads = 0

    def send(self, x: Any) -> Any:
        """What a test gives, on the device; parameters stay parameters."""
        if isinstance(x, torch.nn.Module):
            for module in x.modules():
                for name, parameter in module._parameters.items():
                    if parameter is not None:
                        there = Pretended(parameter.detach(), self.device)
                        module._parameters[name] = torch.nn.Parameter(there, requires_grad=parameter.requires_grad)
                for name, buffer in module._buffers.items():
                    if buffer is not None:
                        module._buffers[name] = Pretended(buffer, self.device)
            return x
        return tree_map(lambda leaf: Pretended(leaf, self.device) if isinstance(leaf, Tensor) else leaf, x)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        there: list[Pretended] = []
        here: list[Tensor] = []

        def inner(x: Any) -> Any:
            if isinstance(x, Pretended):
                there.append(x)
                return x.inner
            if isinstance(x, Tensor):
                here.append(x)
            return [inner(one) for one in x] if isinstance(x, list | tuple) else x

        first = args[0] if args else None
        args, kwargs = [inner(x) for x in args], {name: inner(x) for name, x in (kwargs or {}).items()}
        owners = {id(x.inner): x for x in there}
        kwargs.pop("pin_memory", None)
        asked = kwargs.get("device")
        if asked is not None and asked.type != "cpu":
            kwargs["device"] = torch.device("cpu")
        if asked is not None and asked.type == "meta" and func is aten._to_copy.default and here:
            raise MixedDevices(f"{tuple(here[0].shape)} on the host is moved by PyTorch itself, as an index is")
        self.check(func, there, here, args)
        if func is aten._conj.default:  # within a mode, nobody looks at the bit of a tensor that is conjugated lazily
            func = aten.conj_physical.default
        result = func(*args, **kwargs)
        if func is aten.copy_.default:
            if there and here:
                self.count(func, reading=not isinstance(first, Pretended))
            return owners.get(id(result), result)
        if func is aten._to_copy.default and asked is not None and (asked.type == "cpu") == bool(there):
            self.count(func, reading=bool(there))
        if (asked.type == "cpu") if asked is not None else not there:
            return result

        def tag(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return type(x)(map(tag, x)) if isinstance(x, list | tuple) else x
            assert self.fp64 or x.dtype not in {torch.float64, torch.complex128}, f"{func} gives fp64"
            return owners[id(x)] if id(x) in owners else Pretended(x, self.device)

        return tag(result)

    def check(self, func: Any, there: list[Any], here: list[Any], args: Any) -> None:
        """Count what waits, refuse what mixes."""
        if not there:
            return
        if func in WAITING or func is aten._local_scalar_dense.default:
            self.reads[func.overloadpacket.__name__] += 1
        if func in TAKING_INDICES and any(x is not None and x.dtype == torch.bool for x in args[1]):
            self.reads["index by a mask"] += 1
        if func in {aten.copy_.default, aten._to_copy.default}:
            return
        # A number on the host goes along with tensors on a device, but for an index.
        if any(x.ndim for x in here) or (here and func in TAKING_INDICES and any(x in args[1] for x in here)):
            shapes = [tuple(x.shape) for x in here]
            raise MixedDevices(f"{func} of {[tuple(x.shape) for x in there]} on {self.device} and {shapes} on the host")

    def count(self, func: Any, *, reading: bool) -> None:
        if reading:
            self.reads["copy to the host"] += 1
        else:
            self.uploads += 1


@contextmanager
def pretended_device(*, fp64: bool = True) -> Iterator[PretendedDevice]:
    """The device while a test uses it. Backward runs in this thread, as the mode is this thread's."""

    def clear() -> None:
        attention.frequencies_on.cache_clear()
        vision.rotations_on.cache_clear()

    with pytest.MonkeyPatch.context() as patch, torch.autograd.set_multithreading_enabled(False):
        # PyTorch starts a device that a tensor is made on, before it asks the mode.
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        for module in ("core.device", "model.attention", "model.moe"):
            patch.setattr(f"herd.{module}.has_fp64", lambda device: fp64 or device.type == "cpu")
        patch.setattr("herd.train.checkpoint.wait_for_copies", lambda state: None)
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        # Inference tensors have no version, and PyTorch looks for that of a view of a subclass.
        patch.setattr(torch._C, "_InferenceMode", lambda on: torch.no_grad() if on else nullcontext())
        clear()
        try:
            with PretendedDevice(fp64=fp64) as device:
                yield device
        finally:
            clear()
