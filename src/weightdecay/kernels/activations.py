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
        width = h.shape[-1] // 2 if kind in GATED else h.shape[-1]
        y = h.new_empty(*h.shape[:-1], width)
        call(f"{kind}_forward", h, y, y.numel() // width, width)
        ctx.save_for_backward(h)
        ctx.kind, ctx.width = kind, width
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (h,) = ctx.saved_tensors
        dh = torch.empty_like(h)
        call(f"{ctx.kind}_backward", dy.contiguous(), h, dh, dy.numel() // ctx.width, ctx.width)
        return dh, None
