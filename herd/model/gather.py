"""Rows of a tensor gathered into padded slots and back, with backwards that gather too."""

# N tokens

import torch


class Gather(torch.autograd.Function):
    """`source[rows]` whose backward is a gather too, by `back` (faster and more exact than adding by index)."""

    @staticmethod
    def forward(ctx, source, rows, back):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(back)
        ctx.shape = source.shape
        return source.index_select(0, rows)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (back,) = ctx.saved_tensors
        return grad.index_select(0, back).view(ctx.shape), None, None


class Restore(torch.autograd.Function):
    """From slots back to tokens; the gradient of padding slots is zero."""

    @staticmethod
    def forward(ctx, slots, slot_N):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(slot_N)
        ctx.shape = slots.shape
        return slots.index_select(0, slot_N)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (slot_N,) = ctx.saved_tensors
        return grad.new_zeros(ctx.shape).index_copy_(0, slot_N, grad), None
