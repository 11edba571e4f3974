"""x·Wᵀ + b in bfloat16 of float32 parameters, which have been rounded already."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from weightdecay.kernels.library import usable
from weightdecay.kernels.norms import column_sums


def product(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, rounded_OI: Tensor) -> Tensor:
    """`torch.nn.functional.linear` in x's precision, whose gradients reach the parameters in their own.

    Args:
        weight_OI, bias_O: the parameters; the weight's values are not read.
        rounded_OI: the weight in x's precision.
    """
    y: Tensor = _Product.apply(x, weight_OI, bias_O, rounded_OI)  # type: ignore[no-untyped-call]
    return y


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, rounded_OI: Tensor) -> Tensor:
        ctx.save_for_backward(x, rounded_OI)
        ctx.weight_dtype = weight_OI.dtype
        ctx.bias_dtype = bias_O.dtype if bias_O is not None else None
        return F.linear(x, rounded_OI, bias_O.to(x.dtype) if bias_O is not None else None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, rounded_OI = ctx.saved_tensors
        dy_NO, x_NI = dy.flatten(0, -2), x.flatten(0, -2)
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            dx = (dy_NO @ rounded_OI).view(x.shape)
        if ctx.needs_input_grad[1]:
            dweight = (dy_NO.t() @ x_NI).to(ctx.weight_dtype)
        if ctx.needs_input_grad[2]:
            dbias = column_sums(dy_NO) if usable(dy_NO) else dy_NO.sum(dim=0, dtype=ctx.bias_dtype)
        return dx, dweight, dbias, None
