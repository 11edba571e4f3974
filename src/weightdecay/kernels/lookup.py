"""The two uses of a tied table, whose gradients meet in one matrix.

    rows = W[tokens]      logits = x·Wᵀ      dW = dlogitsᵀ·x, to whose row of each token that token's drow is added

Left to autograd, the rows' gradient would be spread over a matrix of zeros as large as W first.

Shapes: B sequences, T time, D the table's width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from weightdecay.kernels.library import call


def tied(weight_VD: Tensor, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens' rows of a float32 table, and the table for the head: what follows must take the latter's place.

    The gradient that reaches the second is written into, so its maker must not need it any more.
    """
    rows_BTD, head_VD = _Tied.apply(weight_VD, tokens_BT)  # type: ignore[no-untyped-call]
    return rows_BTD, head_VD


class _Tied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_VD: Tensor, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(tokens_BT.long().contiguous())
        ctx.shape = weight_VD.shape
        ctx.set_materialize_grads(False)
        return F.embedding(tokens_BT, weight_VD), weight_VD.view_as(weight_VD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, drows_BTD: Tensor | None, dweight_VD: Tensor | None) -> tuple[Tensor | None, None]:
        (tokens_BT,) = ctx.saved_tensors
        if drows_BTD is None:
            return dweight_VD, None
        if dweight_VD is None:
            dweight_VD = drows_BTD.new_zeros(ctx.shape)
        drows_ND = drows_BTD.reshape(-1, drows_BTD.shape[-1]).contiguous()
        call("add_rows", dweight_VD, tokens_BT, drows_ND, *drows_ND.shape)
        return dweight_VD, None
