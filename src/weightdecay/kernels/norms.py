"""LayerNorm and RMSNorm of bfloat16 rows with float32 gains, sums over rows, and the norm of many tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from weightdecay.kernels.library import call, numbers, places, sums_over_rows, worth_threads


class Norm(NamedTuple):
    """y = (x − [mean x])/√(mean (x − [mean x])² + ε)·(gain + offset) + bias over the last axis.

    Attributes:
        gain, bias: [width], or none; gradients reach them in their own precision.
        centred: whether the mean is taken off, as LayerNorm does and RMSNorm does not.
    """

    gain: Tensor | None
    bias: Tensor | None
    eps: float
    centred: bool
    offset: float = 0.0


def normed(x: Tensor, norm: Norm) -> Tensor:
    """The norm of bfloat16 rows."""
    y: Tensor = _Norm.apply(x, *norm, False)  # type: ignore[no-untyped-call]
    return y


def normed_beside(x: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """x, to go on beside a branch, and its norm, for the branch: their gradients then meet in one pass."""
    x, y = _Norm.apply(x, *norm, True)  # type: ignore[no-untyped-call]
    return x, y


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor | None, bias: Tensor | None, eps: float, centred: bool, offset: float,
        beside: bool,
    ) -> Any:  # fmt: skip
        norm = Norm(gain, bias, eps, centred, offset)
        y, statistics = forward(rows_of_x := x.contiguous(), norm)
        ctx.save_for_backward(rows_of_x, gain, bias, statistics)
        ctx.settings, ctx.beside = norm[2:], beside
        return (x, y) if beside else y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, bias, statistics = ctx.saved_tensors
        dstream, dy = (of.contiguous() for of in gradients) if ctx.beside else (None, gradients[0].contiguous())
        norm = Norm(gain, bias, *ctx.settings)
        dx, dgain, dbias, _ = backward(dy, dstream, x, norm, statistics, torch.empty_like(x))
        return dx, dgain, dbias, None, None, None, None


def forward(x: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """The norm of rows, and their means and inverse deviations, [2, rows]."""
    y = torch.empty_like(x)
    width = x.shape[-1]
    statistics = torch.empty(2, x.numel() // width)
    gain, bias = (of.float() if of is not None else None for of in (norm.gain, norm.bias))
    call(
        "norm_forward", x, gain, bias, norm.offset, norm.eps, norm.centred, y, *statistics.unbind(),
        statistics.shape[1], width,
    )  # fmt: skip
    return y, statistics


def backward(
    dy: Tensor, dstream: Tensor | None, x: Tensor, norm: Norm, statistics: Tensor, dx: Tensor, *, sums: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, gain and bias, and, where they are wanted, Σ over rows of `dstream`.

    Args:
        dstream: what reaches x beside the norm, or nothing.
        dx: takes the gradient of x; it may be dy itself.
    """
    width = x.shape[-1]
    own = (norm.gain, norm.bias)
    dgain, dbias = (sums_over_rows(width) if of is not None else None for of in own)
    dsums = sums_over_rows(width) if sums else None
    gain = norm.gain.float() if norm.gain is not None else None
    call(
        "norm_backward", dy, dstream, x, gain, norm.offset, norm.centred, *statistics.unbind(), dx, dgain, dbias, dsums,
        statistics.shape[1], width,
    )  # fmt: skip
    dgain, dbias = (
        found[0].to(of.dtype) if found is not None and of is not None else None
        for found, of in zip((dgain, dbias), own, strict=True)
    )
    return dx, dgain, dbias, dsums[0] if dsums is not None else None


def column_sums(x: Tensor) -> Tensor:
    """Σ over all but the last axis, in float32."""
    x = x.contiguous()
    width = x.shape[-1]
    sums = sums_over_rows(width)
    call("column_sums", x, sums, x.numel() // width, width)
    return sums[0]


def norm_of_all(tensors: Iterable[Tensor]) -> Tensor:
    """‖x‖₂ over all numbers of float32 tensors in one call, a float64 scalar, summed in float64.

    Raises:
        TypeError: a tensor is of another dtype, does not lie in one piece, or not on the processor.
    """
    listed = list(tensors)
    counts = [x.numel() for x in listed]
    shares = worth_threads(sum(counts))
    sums = torch.empty(shares, dtype=torch.float64)
    call("sums_of_squares", places(listed, torch.float32), numbers(*counts), sums, len(listed), shares)
    return sums.sum().sqrt()
