"""Cross-entropy of a linear head that never holds all logits: some rows at a time, the gradient in their place.

    logit = cap·tanh(m·x·Wᵀ/cap), or m·x·Wᵀ      L = mean −log p(target)      A = z·mean (log Σ exp logit)²

The gradients of L + A are formed with the logits, in the forward pass, and multiplied by what comes from above in the
backward pass.

Shapes: N tokens, D width of the head's input, V vocabulary, C tokens at a time.

Reference: linkedin/Liger-Kernel, src/liger_kernel/ops/fused_linear_cross_entropy.py, which orders the work like this.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from weightdecay.kernels.library import call
from weightdecay.kernels.products import input_gradient, multiplied, weight_gradient

# Logits that are held at once: 128 MiB of bfloat16. Each time, the gradient of W is gone through once more.
_LOGITS = 1 << 26


def head_loss(
    x_ND: Tensor, weight_VD: Tensor, rounded_VD: Tensor, targets_N: Tensor, *,
    z_loss: float = 0.0, multiplier: float = 1.0, softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The mean cross-entropy, and z_loss times the mean squared log-normaliser; float32.

    Args:
        weight_VD: the parameter, which gets a gradient and whose values are not read.
        rounded_VD: it in x's bfloat16.
        targets_N: int64.

    Raises:
        IndexError: a target that is no token.
    """
    if not bool(((targets_N >= 0) & (targets_N < len(rounded_VD))).all()):
        least, most = (int(end) for end in torch.aminmax(targets_N))
        raise IndexError(f"targets from {least} to {most} do not fit a vocabulary of {len(rounded_VD)}")
    loss, auxiliary = _HeadLoss.apply(  # type: ignore[no-untyped-call]
        x_ND, weight_VD, rounded_VD, targets_N, z_loss, multiplier, softcap
    )
    return loss, auxiliary


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weight_VD: Tensor, rounded_VD: Tensor, targets_N: Tensor,
        z_loss: float, multiplier: float, softcap: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        x_ND, targets_N = x_ND.contiguous(), targets_N.contiguous()
        tokens, vocabulary = len(x_ND), len(rounded_VD)
        needs_gradient = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        losses_N, logsums_N = torch.empty(2, tokens)
        rows = max(1, _LOGITS // vocabulary)
        dx_ND, dweight_VD = torch.empty_like(x_ND), None

        for begin in range(0, tokens, rows):
            part = slice(begin, begin + rows)
            x_CD = x_ND[part]
            logits_CV = multiplied(x_CD, rounded_VD)
            call(
                "cross_entropy", logits_CV, targets_N[part], losses_N[part], logsums_N[part], 1.0 / tokens,
                z_loss, multiplier, softcap, needs_gradient, len(x_CD), vocabulary,
            )  # fmt: skip
            if not needs_gradient:
                continue
            input_gradient(logits_CV, rounded_VD, dx_ND[part])
            dweight_VD = weight_gradient(logits_CV, x_CD, dweight_VD)

        ctx.save_for_backward(dx_ND, dweight_VD)
        ctx.weight_dtype = weight_VD.dtype
        loss = losses_N.mean()
        auxiliary = z_loss * logsums_N.square().mean() if z_loss else torch.zeros(())
        ctx.mark_non_differentiable(auxiliary)
        return loss, auxiliary

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        dx_ND, dweight_VD = ctx.saved_tensors
        if float(dloss) != 1.0:
            dx_ND, dweight_VD = dx_ND * dloss.to(dx_ND.dtype), dweight_VD.mul_(dloss)
        return dx_ND, dweight_VD.to(ctx.weight_dtype), None, None, None, None, None
