"""C++ kernels for training in bf16 on the CPU (AVX-512), each beside the PyTorch code that it stands in for.

`serves(x)` tells whether they can be used on `x`; who asks has the PyTorch twin at hand for when they cannot. Results
differ from the twin's by bf16 rounding only (fewer roundings, as sums and softmax stay in fp32 throughout), and do not
depend on the number of threads.
"""

from herd.native.functions import (
    adamw,
    attention,
    available,
    combine,
    descend,
    dispatch,
    grouped_product,
    linear,
    momentum_update,
    rms_norm,
    serves,
    softmax_gradient,
    swiglu,
)
from herd.native.library import find

__all__ = [
    "adamw",
    "attention",
    "available",
    "combine",
    "descend",
    "dispatch",
    "find",
    "grouped_product",
    "linear",
    "momentum_update",
    "rms_norm",
    "serves",
    "softmax_gradient",
    "swiglu",
]
