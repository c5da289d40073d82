"""C++ kernels for the CPU (AVX-512): training in bf16, low-bit products, attention over pages. Each has a PyTorch twin.

`serves(x)` tells whether they can be used on `x`; who asks has the PyTorch twin at hand for when they cannot. Results
differ from the twin's by bf16 rounding only (fewer roundings, as sums and softmax stay in fp32 throughout), and do not
depend on the number of threads.
"""

from herd.native.functions import (
    attention,
    available,
    combine,
    dispatch,
    grouped_product,
    linear,
    rms_norm,
    serves,
    softmax_gradient,
    swiglu,
)
from herd.native.library import find, processor_flags
from herd.native.lowbit import lowbit_product, multiplies_lowbit
from herd.native.optimizer import adamw, adamw_8bit, apply_update, momentum_update, square_sum
from herd.native.paged import attend_pages, attends
from herd.native.sparse import arrange, attend_some, page_bounds, reads_some

__all__ = [
    "adamw",
    "adamw_8bit",
    "apply_update",
    "arrange",
    "attend_pages",
    "attend_some",
    "attends",
    "attention",
    "available",
    "combine",
    "dispatch",
    "find",
    "grouped_product",
    "linear",
    "lowbit_product",
    "momentum_update",
    "multiplies_lowbit",
    "page_bounds",
    "processor_flags",
    "reads_some",
    "rms_norm",
    "serves",
    "softmax_gradient",
    "square_sum",
    "swiglu",
]
