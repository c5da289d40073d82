"""The kernels as differentiable functions of tensors: bf16, CPU, contiguous unless noted otherwise."""

# N tokens, D in, F out or hidden width, E groups (experts), R rows sorted by group, H query heads, C head width

import torch
from jaxtyping import Float, Int
from torch import Tensor

from herd.native.library import Inputs, call

TRAINING, ATTENTION = Inputs(training=True), Inputs(training=True, multiple=16)
"""What the differentiable functions take, and what `attention` does."""


class _Product(torch.autograd.Function):
    """Rows times their group's matrix; `transposed` matrices are [out, in]."""

    @staticmethod
    def forward(ctx, rows_RD, weight, ends_E, transposed):  # type: ignore[no-untyped-def]
        rows_RD = rows_RD.contiguous()
        ctx.save_for_backward(rows_RD, weight, ends_E)
        ctx.transposed = transposed
        return product(rows_RD, weight, ends_E, transposed)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        rows_RD, weight, ends_E = ctx.saved_tensors
        grad = grad.contiguous()
        grad_rows = product(grad, weight, ends_E, not ctx.transposed) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            left, right = (grad, rows_RD) if ctx.transposed else (rows_RD, grad)
            grad_weight = torch.empty_like(weight)
            call("outer", left, right, grad_weight, ends_E, len(ends_E), left.shape[1], right.shape[1])
        return grad_rows, grad_weight, None, None


def product(rows_RD: Tensor, weight: Tensor, ends_E: Tensor, transposed: bool) -> Tensor:
    """Without gradient. An odd inner width is padded: the kernel multiplies pairs."""
    width, columns = rows_RD.shape[1], weight.shape[-2 if transposed else -1]
    out = rows_RD.new_empty(len(rows_RD), columns)
    if width % 2:
        rows_RD = torch.nn.functional.pad(rows_RD, (0, 1))
        weight = torch.nn.functional.pad(weight, (0, 1) if transposed else (0, 0, 0, 1))
    call("product", rows_RD, weight, out, ends_E, len(ends_E), rows_RD.shape[1], columns, int(transposed))
    return out


def linear(x_ND: Float[Tensor, "n d"], weight_FD: Float[Tensor, "f d"]) -> Float[Tensor, "n f"]:
    """`x @ weight.T`."""
    return _Product.apply(x_ND, weight_FD, torch.tensor([len(x_ND)]), True)


def grouped_product(
    rows_RD: Float[Tensor, "r d"], weight_EDF: Float[Tensor, "e d f"], ends_E: Int[Tensor, "e"]
) -> Float[Tensor, "r f"]:
    """Rows sorted by group times their group's matrix; group e ends before row `ends_E[e]`."""
    return _Product.apply(rows_RD, weight_EDF, ends_E.long(), False)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_ND, weight_D, eps):  # type: ignore[no-untyped-def]
        x_ND = x_ND.contiguous()
        out, scale_N = torch.empty_like(x_ND), torch.empty(len(x_ND))
        call("norm_forward", x_ND, weight_D, out, scale_N, *x_ND.shape, eps)
        ctx.save_for_backward(x_ND, weight_D, scale_N)
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x_ND, weight_D, scale_N = ctx.saved_tensors
        grad_x, grad_weight = torch.empty_like(x_ND), torch.empty(len(weight_D))
        call("norm_backward", grad.contiguous(), x_ND, weight_D, scale_N, grad_x, grad_weight, *x_ND.shape)
        return grad_x, grad_weight.to(weight_D.dtype), None


def rms_norm(x: Float[Tensor, "*n d"], weight_D: Float[Tensor, "d"], eps: float) -> Float[Tensor, "*n d"]:
    """x / sqrt(mean(x^2) + eps) * weight, over the last axis."""
    return _Norm.apply(x.reshape(-1, x.shape[-1]), weight_D, eps).view(x.shape)


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up):  # type: ignore[no-untyped-def]
        gate_up = gate_up.contiguous()
        ctx.save_for_backward(gate_up)
        out = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
        call("swiglu_forward", gate_up, out, *out.shape)
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (gate_up,) = ctx.saved_tensors
        grad_in = torch.empty_like(gate_up)
        call("swiglu_backward", grad.contiguous(), gate_up, grad_in, *grad.shape)
        return grad_in


def swiglu(gate_up: Float[Tensor, "n f2"]) -> Float[Tensor, "n f"]:
    """silu(first half of the columns) * second half."""
    return _Swiglu.apply(gate_up)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv_NHC, begins_S, num_kv, rotation_NC, temperature_N, norm_eps):  # type: ignore[no-untyped-def]
        qkv = qkv_NHC.contiguous()
        num_tokens, num_all, width = qkv.shape
        heads = num_all - 2 * num_kv
        shape = (num_tokens, heads, num_kv, width)
        ready, scale_NH = torch.empty_like(qkv), torch.empty(num_tokens, heads + num_kv)
        out, lse_NH = qkv.new_empty(num_tokens, heads, width), torch.empty(num_tokens, heads)
        turn = None if rotation_NC is None else torch.view_as_real(rotation_NC)
        normed = norm_eps is not None
        call("prepare_forward", qkv, ready, turn, temperature_N, scale_NH, *shape, float(norm_eps or 0), int(normed))
        call("attention_forward", ready, out, lse_NH, begins_S, len(begins_S) - 1, *shape[1:])
        ctx.save_for_backward(ready, scale_NH, out, lse_NH, begins_S, turn, temperature_N)
        ctx.shape, ctx.normed = shape, normed
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        ready, scale_NH, out, lse_NH, begins_S, turn, temperature_N = ctx.saved_tensors
        grad_in, shape = torch.empty_like(ready), ctx.shape
        runs = len(begins_S) - 1
        call("attention_backward", grad.contiguous(), ready, out, lse_NH, grad_in, begins_S, runs, *shape[1:])
        call("prepare_backward", grad_in, ready, turn, temperature_N, scale_NH, *shape, int(ctx.normed))
        return grad_in, None, None, None, None, None


def attention(
    qkv_NHC: Float[Tensor, "n h c"],
    begins_S: Int[Tensor, "s1"],
    *,
    num_kv_heads: int,
    rotation_NC: Tensor | None,
    temperature_N: Float[Tensor, "n"] | None,
    norm_eps: float | None,
) -> Float[Tensor, "n q c"]:
    """Causal attention within each run, from projected to attended heads. Run i is tokens begins[i] .. begins[i + 1].

    With `rotation_NC` (complex numbers), queries and keys are rotated, then normed if there is a `norm_eps`; without
    it, queries are scaled by `temperature_N`, if that is given. C is a multiple of 16.
    """
    return _Attention.apply(qkv_NHC, begins_S, num_kv_heads, rotation_NC, temperature_N, norm_eps)


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_ND, gate_Nk, order_R, back_R):  # type: ignore[no-untyped-def]
        x_ND, gate_Nk = x_ND.contiguous(), gate_Nk.contiguous()
        ctx.save_for_backward(x_ND, gate_Nk, back_R)
        rows = x_ND.new_empty(len(order_R), x_ND.shape[1])
        call("dispatch_forward", x_ND, gate_Nk, order_R, rows, *rows.shape, gate_Nk.shape[1])
        return rows

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x_ND, gate_Nk, back_R = ctx.saved_tensors
        grad_x, grad_gate = torch.empty_like(x_ND), torch.empty_like(gate_Nk)
        shape = (*x_ND.shape, gate_Nk.shape[1])
        call("dispatch_backward", grad.contiguous(), x_ND, gate_Nk, back_R, grad_x, grad_gate, *shape)
        return grad_x, grad_gate, None, None


def dispatch(
    x_ND: Float[Tensor, "n d"], gate_Nk: Float[Tensor, "n k"], order_R: Int[Tensor, "r"], back_R: Int[Tensor, "r"]
) -> Float[Tensor, "r d"]:
    """Every token k times, scaled by its gates (fp32), in the order of the experts; `back_R` inverts `order_R`."""
    return _Dispatch.apply(x_ND, gate_Nk, order_R, back_R)


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, base_ND, rows_RD, order_R, back_R):  # type: ignore[no-untyped-def]
        base_ND, rows_RD = base_ND.contiguous(), rows_RD.contiguous()
        ctx.top_k = max(len(rows_RD) // max(len(base_ND), 1), 1)
        ctx.save_for_backward(order_R)
        out = torch.empty_like(base_ND)
        call("combine", base_ND, rows_RD, back_R, out, *base_ND.shape, ctx.top_k)
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (order_R,) = ctx.saved_tensors
        return grad, grad.index_select(0, order_R // ctx.top_k), None, None


def combine(
    base_ND: Float[Tensor, "n d"], rows_RD: Float[Tensor, "r d"], order_R: Int[Tensor, "r"], back_R: Int[Tensor, "r"]
) -> Float[Tensor, "n d"]:
    """`base` plus the sum of each token's rows, which are in the order of the experts."""
    return _Combine.apply(base_ND, rows_RD, order_R, back_R)


def softmax_gradient(logits_NV: Float[Tensor, "n v"], targets_N: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """-log softmax(logits)[target] in fp32; in place, the logits become its gradient, softmax - onehot(target)."""
    losses_N = torch.empty(len(logits_NV))
    call("softmax_gradient", logits_NV, targets_N, losses_N, *logits_NV.shape)
    return losses_N
