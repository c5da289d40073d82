"""The whole forward in one call: the kernel's structs and its call. herd.model.fused fills them from a Transformer.

It is the second implementation of the model, beside herd/model: herd/model/agreement.py compares the two whenever an
engine is started on a model.
"""

# R wanted rows, V vocabulary

import ctypes
from ctypes import c_double, c_int64, c_void_p
from enum import IntEnum

from torch import Tensor

from herd.native.library import call, find


class Kind(IntEnum):
    """The layout of a matrix's weights: [out, in], or transposed [in, out]."""

    FP32 = 0
    BF16 = 1
    INT8 = 2
    INT4 = 3
    FP8 = 4
    FP32_TRANSPOSED = 5
    BF16_TRANSPOSED = 6


class Matrix(ctypes.Structure):
    """One matrix, or one for each expert; `detail` as in herd.native.lowbit."""

    _fields_ = [
        ("data", c_void_p),
        ("scales", c_void_p),
        *((name, c_int64) for name in ("kind", "num_in", "num_out", "detail")),
    ]


class Layer(ctypes.Structure):
    """`router` is null in a dense layer; `router_bias`, fp32, where experts are chosen without one."""

    _fields_ = [
        *((name, c_void_p) for name in ("attention_norm", "ffn_norm", "router", "router_bias")),
        *((name, Matrix) for name in ("qkv", "out", "gate_up", "down", "expert_gate_up", "expert_down")),
        *((name, c_void_p) for name in ("keys", "values")),
        ("is_global", c_int64),
    ]


SIZES = (
    *("narrow", "num_layers", "dim", "heads", "kv_heads", "head_dim", "experts", "top_k", "qk_norm", "temperature"),
    *("page_tokens", "narrow_pages"),
)


class Model(ctypes.Structure):
    """All that stays from call to call."""

    _fields_ = [
        *((name, c_void_p) for name in ("embedding", "norm", "frequencies")),
        ("layers", ctypes.POINTER(Layer)),
        ("unembedding", Matrix),
        *((name, c_int64) for name in SIZES),
        *((name, c_double) for name in ("eps", "temperature_floor", "temperature_scale")),
    ]


class Batch(ctypes.Structure):
    """One call: `tables`, `seen` and `blocks` of local layers, then of global ones; `routes`, to be filled with the
    experts of each row in each mixture, is null where these are not wanted."""

    _fields_ = [
        *((name, c_void_p) for name in ("tokens", "embedded", "positions", "starts")),
        *((name, c_void_p * 2) for name in ("tables", "seen")),
        ("blocks", c_int64 * 2),
        *((name, c_void_p) for name in ("wanted", "hidden", "routes")),
        *((name, c_int64) for name in ("rows", "sequences", "num_wanted")),
    ]


def huge_pages(weight: Tensor) -> None:
    """Ask for huge pages under a weight: its values stay."""
    call("huge_pages", weight, weight.nbytes)


def forward(model: Model, batch: Batch) -> None:
    """Store the keys and values of all rows, fill the hidden states of the wanted ones."""
    library = find().library
    assert library is not None
    library.forward.restype = None
    library.forward(ctypes.byref(model), ctypes.byref(batch))


def unembed(model: Model, hidden_RD: Tensor, logits_RV: Tensor) -> None:
    """Fill the logits of hidden states, all fp32."""
    call("unembed", ctypes.addressof(model), hidden_RD, logits_RV, len(hidden_RD))
