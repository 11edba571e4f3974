"""LayerNorm and RMSNorm of bfloat16 rows with float32 gains, and sums over rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from weightdecay.kernels.library import call


def norm(
    x: Tensor, gain: Tensor | None, bias: Tensor | None, eps: float, *, centred: bool, offset: float = 0.0
) -> Tensor:
    """y = (x − [mean x])/√(mean (x − [mean x])² + ε)·(gain + offset) + bias over the last axis.

    Args:
        x: bfloat16.
        gain, bias: [width], or none; gradients reach them in their own precision.
        centred: whether the mean is taken off, as LayerNorm does and RMSNorm does not.
    """
    y: Tensor = _Norm.apply(x, gain, bias, eps, centred, offset)  # type: ignore[no-untyped-call]
    return y


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor | None, bias: Tensor | None, eps: float, centred: bool, offset: float
    ) -> Tensor:
        x = x.contiguous()
        ctx.dtypes = [of.dtype if of is not None else None for of in (gain, bias)]
        gain, bias = (of.float() if of is not None else None for of in (gain, bias))
        width = x.shape[-1]
        rows = x.numel() // width
        y = torch.empty_like(x)
        means, rstds = torch.empty(2, rows)
        call("norm_forward", x, gain, bias, offset, eps, centred, y, means, rstds, rows, width)
        ctx.save_for_backward(x, gain, means, rstds)
        ctx.centred, ctx.offset = centred, offset
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, means, rstds = ctx.saved_tensors
        width, threads = x.shape[-1], torch.get_num_threads()
        dx = torch.empty_like(x)
        dgain = torch.zeros(threads, width) if gain is not None else None
        dbias = torch.zeros(threads, width) if ctx.dtypes[1] is not None else None
        call(
            "norm_backward", dy.contiguous(), x, gain, ctx.offset, ctx.centred, means, rstds, dx, dgain, dbias,
            len(means), width,
        )  # fmt: skip
        summed = (
            of.sum(dim=0).to(dtype) if of is not None else None
            for of, dtype in zip((dgain, dbias), ctx.dtypes, strict=True)
        )
        return dx, *summed, None, None, None


def column_sums(x: Tensor) -> Tensor:
    """Σ over all but the last axis, in float32."""
    x = x.contiguous()
    width = x.shape[-1]
    sums = torch.zeros(torch.get_num_threads(), width)
    call("column_sums", x, sums, x.numel() // width, width)
    return sums.sum(dim=0)
