"""C++ kernels for the CPU (AVX-512): training in bf16, products with low-bit weights. Each has a PyTorch twin.

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
from herd.native.lowbit import lowbit_product, multiplies_lowbit

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
    "lowbit_product",
    "momentum_update",
    "multiplies_lowbit",
    "rms_norm",
    "serves",
    "softmax_gradient",
    "swiglu",
]
