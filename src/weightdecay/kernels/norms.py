"""LayerNorm and RMSNorm of bfloat16 rows with float32 gains, and sums over rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from weightdecay.kernels.library import call


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
        rows_of_x = x.contiguous()
        ctx.dtypes = [of.dtype if of is not None else None for of in (gain, bias)]
        gain, bias = (of.float() if of is not None else None for of in (gain, bias))
        width = x.shape[-1]
        rows = x.numel() // width
        y = torch.empty_like(rows_of_x)
        means, rstds = torch.empty(2, rows)
        call("norm_forward", rows_of_x, gain, bias, offset, eps, centred, y, means, rstds, rows, width)
        ctx.save_for_backward(rows_of_x, gain, means, rstds)
        ctx.centred, ctx.offset, ctx.beside = centred, offset, beside
        return (x, y) if beside else y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, means, rstds = ctx.saved_tensors
        dstream, dy = (of.contiguous() for of in gradients) if ctx.beside else (None, gradients[0].contiguous())
        width, threads = x.shape[-1], torch.get_num_threads()
        dx = torch.empty_like(x)
        dgain, dbias = (torch.zeros(threads, width) if dtype is not None else None for dtype in ctx.dtypes)
        call(
            "norm_backward", dy, dstream, x, gain, ctx.offset, ctx.centred, means, rstds, dx, dgain, dbias,
            len(means), width,
        )  # fmt: skip
        summed = (
            of.sum(dim=0).to(dtype) if of is not None else None
            for of, dtype in zip((dgain, dbias), ctx.dtypes, strict=True)
        )
        return dx, *summed, None, None, None, None


def column_sums(x: Tensor) -> Tensor:
    """Σ over all but the last axis, in float32."""
    x = x.contiguous()
    width = x.shape[-1]
    sums = torch.zeros(torch.get_num_threads(), width)
    call("column_sums", x, sums, x.numel() // width, width)
    return sums.sum(dim=0)
