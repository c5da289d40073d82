"""C++ kernels for the CPU (AVX-512 or AVX2), each with a PyTorch twin.

They serve training in bf16, low-bit products and inference over pages.

`why_not(x, inputs)` is None where they can be used on `x`, else the reason; the caller then uses the PyTorch twin.
Results differ from the twin's by bf16 rounding only (fewer roundings, as sums and softmax stay in fp32 throughout), and
do not depend on the number of threads.
"""

from herd.native.functions import (
    ATTENTION,
    TRAINING,
    attention,
    combine,
    dispatch,
    grouped_product,
    linear,
    rms_norm,
    softmax_gradient,
    swiglu,
)
from herd.native.library import BF16, BF16_FLAGS, FLOATS, find, instructions, processor_flags, why_not
from herd.native.lowbit import lowbit_product
from herd.native.optimizer import adamw, adamw_8bit, apply_update, momentum_update, square_sum
from herd.native.paged import PAGES, attend_pages
from herd.native.sparse import SPARSE, arrange, attend_selected, page_bounds

__all__ = [
    "ATTENTION",
    "BF16",
    "BF16_FLAGS",
    "FLOATS",
    "PAGES",
    "SPARSE",
    "TRAINING",
    "adamw",
    "adamw_8bit",
    "apply_update",
    "arrange",
    "attend_pages",
    "attend_selected",
    "attention",
    "combine",
    "dispatch",
    "find",
    "grouped_product",
    "instructions",
    "linear",
    "lowbit_product",
    "momentum_update",
    "page_bounds",
    "processor_flags",
    "rms_norm",
    "softmax_gradient",
    "square_sum",
    "swiglu",
    "why_not",
]
