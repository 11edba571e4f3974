"""x·Wᵀ + b in bfloat16 of float32 parameters, which have been rounded already, and their gradients, on a processor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from weightdecay.kernels.library import call, has_tiles
from weightdecay.kernels.norms import column_sums

# A weight of more is laid out anew for so many rows at least, or that would cost more than it saves.
_SMALL, _ROWS = 1 << 17, 512

# Products with small weights are small where no other factor is larger.
_SMALL_FACTOR = 1 << 20

_ours_here = True


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
            single = ctx.weight_dtype == torch.float32
            dweight = weight_gradient(dy_NO, x_NI) if single else (dy_NO.t() @ x_NI).to(ctx.weight_dtype)
        if ctx.needs_input_grad[2]:
            dbias = column_sums(dy_NO).to(ctx.bias_dtype)
        return dx, dweight, dbias, None


def multiplied(
    x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None, stream_NO: Tensor | None = None
) -> Tensor:
    """x·Wᵀ + b + stream, all but the float32 bias bfloat16."""
    if _is_ours(len(x_NI), weight_OI):
        y_NO = x_NI.new_empty(len(x_NI), len(weight_OI))
        call("product", x_NI, weight_OI, bias_O, stream_NO, y_NO, *y_NO.shape, x_NI.shape[1])
        return y_NO
    y_NO = torch.mm(x_NI, weight_OI.t())
    if bias_O is not None or stream_NO is not None:
        call("add_branch", stream_NO, y_NO, bias_O, *y_NO.shape)
    return y_NO


def input_gradient(dy_NO: Tensor, weight_OI: Tensor, dx_NI: Tensor | None = None) -> Tensor:
    """dy·W of bfloat16 rows, to `dx_NI` where that is given."""
    dx_NI = dy_NO.new_empty(len(dy_NO), weight_OI.shape[1]) if dx_NI is None else dx_NI
    if not _is_ours(len(dy_NO), weight_OI):
        return torch.mm(dy_NO, weight_OI, out=dx_NI)
    call("input_gradient", dy_NO, weight_OI, dx_NI, *dy_NO.shape, dx_NI.shape[1])
    return dx_NI


@contextmanager
def products_by_torch() -> Iterator[None]:
    """Within, all products are torch's, so that its dispatcher shows them."""
    global _ours_here
    before, _ours_here = _ours_here, False
    try:
        yield
    finally:
        _ours_here = before


def _is_ours(rows: int, weight_OI: Tensor) -> bool:
    """Whether products of so many rows with the weight are our own kernels'."""
    return _ours_here and has_tiles() and (weight_OI.numel() <= _SMALL or rows >= _ROWS)


def are_small(rows: int, *weights: Tensor) -> bool:
    """Whether products of so many rows with these weights, and their gradients, are our own kernels' and small."""
    largest = max(max(weight_OI.shape) for weight_OI in weights)
    small = all(weight_OI.numel() <= _SMALL for weight_OI in weights) and rows * largest <= _SMALL_FACTOR
    return _ours_here and has_tiles() and small


def weight_gradient(dy_NO: Tensor, x_NI: Tensor, sums_OI: Tensor | None = None) -> Tensor:
    """dyᵀ·x in float32, of bfloat16 rows; added to `sums_OI` where that is given."""
    dy_NO, x_NI = dy_NO.contiguous(), x_NI.contiguous()
    if not _ours_here or not has_tiles():
        found_OI = torch.mm(dy_NO.t(), x_NI).float()
        return found_OI if sums_OI is None else sums_OI.add_(found_OI)

    (rows, outputs), inputs, adds = dy_NO.shape, x_NI.shape[1], sums_OI is not None
    sums_OI = torch.empty(outputs, inputs) if sums_OI is None else sums_OI
    call("weight_gradient", dy_NO, x_NI, sums_OI, adds, rows, outputs, inputs)
    return sums_OI
