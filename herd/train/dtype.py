"""The number format in which a stage trains: what the config names, or what the unfinished work has, or what is fast.

bf16 has its fp32 master in two halves (herd.train.passes), so both formats learn from the same 32 bits a weight; they
differ in the rounding of activations and gradients.
"""

from typing import Literal

import torch

from herd.core.device import choose_device
from herd.core.lineage import Stage
from herd.errors import HerdError
from herd.native import BF16_FLAGS, processor_flags
from herd.train.checkpoint import saved_dtype

FORMATS = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 faster than fp32."""
    return device.type != "cpu" or bool(BF16_FLAGS & processor_flags())


def training_dtype(name: Literal["auto", "bfloat16", "float32"], stage: Stage) -> torch.dtype:
    """The format of the weights in training. `auto`: that of the checkpoints of the stage's unfinished work; without
    any, bf16 where the processor (or a GPU) multiplies it fast, else fp32. Raises HerdError where the checkpoints are
    of another format than the one that is named."""
    saved = saved_dtype(stage.work / "state")
    if name == "auto":
        return saved or (torch.bfloat16 if has_fast_bf16(choose_device()) else torch.float32)
    wanted = FORMATS[name]
    if saved not in (None, wanted):
        raise HerdError(
            f"{stage.work} was begun in {str(saved).removeprefix('torch.')}, dtype={name} is asked for: "
            "set dtype=auto to resume, or --restart to move it aside and begin anew"
        )
    return wanted
