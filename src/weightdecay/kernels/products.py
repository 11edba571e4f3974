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

# Up to so many numbers, a factor's columns are in the cache, and read as fast as its rows.
_CACHED = 1 << 19

# Numbers of a factor that are laid out anew at once: they stay in the cache until the product has read them.
_LAID_OUT = 1 << 21

# Weights of no more are multiplied by our own kernels, and their gradients made of factors of no more: both are packed
# anew in each call and are to stay in the cache. Of larger ones torch's products are faster.
_SMALL, _PACKED = 1 << 17, 1 << 20

# No factor's rows are longer: some of them are copied to a thread's stack.
_LONGEST = 1 << 12

_small_here = _SMALL

# Numbers of a product that wait to be widened: less than the allocator would give back, see `memory`.
_WAITING = 1 << 23


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
    if _is_small(weight_OI):
        y_NO = x_NI.new_empty(len(x_NI), len(weight_OI))
        call("small_product", x_NI, weight_OI, bias_O, stream_NO, y_NO, *y_NO.shape, x_NI.shape[1])
        return y_NO
    y_NO = torch.mm(x_NI, weight_OI.t())
    if bias_O is not None or stream_NO is not None:
        call("add_branch", stream_NO, y_NO, bias_O, *y_NO.shape)
    return y_NO


def input_gradient(dy_NO: Tensor, weight_OI: Tensor, dx_NI: Tensor | None = None) -> Tensor:
    """dy·W of bfloat16 rows, to `dx_NI` where that is given."""
    dx_NI = dy_NO.new_empty(len(dy_NO), weight_OI.shape[1]) if dx_NI is None else dx_NI
    if not _is_small(weight_OI):
        return torch.mm(dy_NO, weight_OI, out=dx_NI)
    call("small_input_gradient", dy_NO, weight_OI, dx_NI, *dy_NO.shape, dx_NI.shape[1])
    return dx_NI


@contextmanager
def products_by_torch() -> Iterator[None]:
    """Within, small products are torch's, too, so that its dispatcher shows them all."""
    global _small_here
    before, _small_here = _small_here, 0
    try:
        yield
    finally:
        _small_here = before


def _is_small(weight_OI: Tensor) -> bool:
    return weight_OI.numel() <= _small_here and max(weight_OI.shape) <= _LONGEST and has_tiles()


def are_ours(rows: int, *weights: Tensor) -> bool:
    """Whether products of so many rows with these weights, and the gradients of both, are our own kernels'."""
    return all(_is_small(weight_OI) and rows * max(weight_OI.shape) <= _PACKED for weight_OI in weights)


def weight_gradient(dy_NO: Tensor, x_NI: Tensor, sums_OI: Tensor | None = None) -> Tensor:
    """dyᵀ·x in float32, of bfloat16 rows; added to `sums_OI` where that is given.

    The products read the columns of their first factor, at half the rate of rows. A large one is laid out anew, some of
    the columns at once, unless the second factor would have to be gone through too often.
    """
    dy_NO, x_NI = dy_NO.contiguous(), x_NI.contiguous()
    (rows, outputs), inputs = dy_NO.shape, x_NI.shape[1]
    if outputs * inputs <= _small_here and rows * max(outputs, inputs) <= _PACKED and sums_OI is None and has_tiles():
        sums_OI = torch.empty(outputs, inputs)
        call("small_weight_gradient", dy_NO, x_NI, sums_OI, rows, outputs, inputs)
        return sums_OI
    columns = min(outputs, max(1, _LAID_OUT // rows))
    lays_out = rows * outputs > _CACHED and (columns == outputs or columns >= 2 * inputs)
    if not lays_out:
        columns = max(1, _WAITING // inputs)
        if columns >= outputs and sums_OI is None:
            return torch.mm(dy_NO.t(), x_NI).float()

    adds = sums_OI is not None
    sums_OI = torch.empty(outputs, inputs) if sums_OI is None else sums_OI
    for first in range(0, outputs, columns):
        sums_CI = sums_OI[first : first + columns]
        dy_NC = dy_NO[:, first : first + columns]
        dy_CN = _transposed(dy_NO, first, len(sums_CI)) if lays_out else dy_NC.t()
        call("widen", sums_CI, torch.mm(dy_CN, x_NI), adds, sums_CI.numel())
    return sums_OI


def _transposed(x_NO: Tensor, first: int, columns: int) -> Tensor:
    """Some columns as rows.

    Rows as long as whole cache lines lie a line further apart than that, or all would share a few places of the cache.
    Others do not: products read on behind their last number, which must not be NaN.
    """
    rows, width = x_NO.shape
    apart = rows + 32 if rows % 32 == 0 else rows
    y_CN = x_NO.new_empty(columns, apart)
    call("transpose", x_NO, y_CN, rows, width, first, columns, apart)
    return y_CN[:, :rows]
