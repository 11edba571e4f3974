"""The non-linearities between up and down, one pass forward and one back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from weightdecay.kernels.library import call

GATED = ("swiglu", "geglu", "geglu_tanh")


def activation(h: Tensor, kind: str) -> Tensor:
    """act(h), or, gated, act(gate)·up of the two halves of the last axis; h is bfloat16."""
    y: Tensor = _Activation.apply(h, kind)  # type: ignore[no-untyped-call]
    return y


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, kind: str) -> Tensor:
        h = h.contiguous()
        times = 2 if kind in GATED else 1
        width = h.shape[-1] // times
        y = h.new_empty(*h.shape[:-1], width)
        slopes = torch.empty_like(h) if ctx.needs_input_grad[0] else None
        call(kind, h, y, slopes, y.numel() // width, width)
        ctx.save_for_backward(slopes)
        ctx.times, ctx.width = times, width
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (slopes,) = ctx.saved_tensors
        dh = torch.empty_like(slopes)
        call("times_slopes", dy.contiguous(), slopes, dh, ctx.times, dy.numel() // ctx.width, ctx.width)
        return dh, None
