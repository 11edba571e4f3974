"""The non-linearities between up and down, one pass forward and one back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from weightdecay.kernels.library import call, sums_over_rows

GATED = ("swiglu", "geglu", "geglu_tanh")


def activation(h: Tensor, kind: str) -> Tensor:
    """act(h), or, gated, act(gate)·up of the two halves of the last axis; h is bfloat16."""
    y: Tensor = _Activation.apply(h, kind)  # type: ignore[no-untyped-call]
    return y


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, kind: str) -> Tensor:
        slopes = torch.empty_like(h, memory_format=torch.contiguous_format) if ctx.needs_input_grad[0] else None
        ctx.save_for_backward(slopes)
        return forward(h.contiguous(), None, kind, slopes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (slopes,) = ctx.saved_tensors
        return backward(dy.contiguous(), slopes, torch.empty_like(slopes), bias=False)[0], None


def forward(h: Tensor, bias: Tensor | None, kind: str, slopes: Tensor | None) -> Tensor:
    """The activation of h + bias.

    Args:
        slopes: takes what `backward` wants; it may be h itself.
    """
    width = h.shape[-1] // (2 if kind in GATED else 1)
    y = h.new_empty(*h.shape[:-1], width)
    call(kind, h, bias, y, slopes, y.numel() // width, width)
    return y


def backward(dy: Tensor, slopes: Tensor, dh: Tensor, *, bias: bool) -> tuple[Tensor, Tensor | None]:
    """The gradients of h and, where it is wanted, of the bias.

    Args:
        dh: takes the gradient of h; it may be dy itself where that has the shape of h.
    """
    width = dy.shape[-1]
    sums = sums_over_rows(slopes.shape[-1]) if bias else None
    call("times_slopes", dy, slopes, dh, sums, slopes.shape[-1] // width, dy.numel() // width, width)
    return dh, sums[0] if sums is not None else None
