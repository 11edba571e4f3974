"""Matrices made orthogonal by a few products: U·Vᵀ of X = U·S·Vᵀ, its singular values all moved near 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

Coefficients: TypeAlias = tuple[float, float, float]

METHODS = ("newton_schulz", "polar_express")
ADJUSTMENTS = ("match_rms_adamw", "original")

# Steep at 0; ends between about 0.7 and 1.2.
NEWTON_SCHULZ: Coefficients = (3.4445, -4.7750, 2.0315)

# One polynomial a step, each the best after those before it; the last one may be repeated. As computed for 5 steps,
# a safety factor of 0.02 and a cushion of 2: karpathy/nanochat@92d63d4, nanochat/optim.py.
POLAR_EXPRESS: tuple[Coefficients, ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
# Keeps singular values that bfloat16 rounds up from passing 1, where the first polynomial would throw them far.
_SLACK = 1.01


def orthogonalised(
    matrices: Tensor, coefficients: Coefficients = NEWTON_SCHULZ, steps: int = 5, eps: float = 1e-7,
    dtype: torch.dtype = torch.bfloat16, *, method: str = "newton_schulz",
) -> Tensor:  # fmt: skip
    """About U·Vᵀ of each matrix X = U·S·Vᵀ: all singular values near 1.

        X ← X/‖X‖,   then `steps` times   A = XXᵀ,  X ← aX + (bA + cA²)X

    `polar_express` has a, b, c of its own for each step and begins at X/(1.01·‖X‖).

    Args:
        matrices: [rows, columns] or [n, rows, columns].
        coefficients: a, b, c of every step of `newton_schulz`.
        dtype: of the iteration; bfloat16 is enough, because the iteration corrects itself.
        method: one of `METHODS`.

    Reference: Jordan et al. 2024; Bernstein & Newhouse 2024, arXiv:2409.20325; Amsel et al. 2025 (Polar Express),
    arXiv:2505.16932.
    """
    table, slack = ((coefficients,), 1.0) if method == "newton_schulz" else (POLAR_EXPRESS, _SLACK)
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.to(dtype, copy=True)
    x = x.mT if tall else x
    x.div_((torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) * slack).clamp(min=eps))
    add_product = torch.addmm if x.ndim == 2 else torch.baddbmm
    for step in range(steps):
        a, b, c = table[min(step, len(table) - 1)]
        gram = x @ x.mT
        x = add_product(x, add_product(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def update_scale(rows: int, columns: int, adjustment: str | None) -> float:
    """s of w ← w − η·s·O: 0.2·√max(rows, columns) gives O the usual RMS of AdamW's update.

    Args:
        adjustment: one of `ADJUSTMENTS`; None, as torch writes it, is `original`, √max(1, rows/columns).
    """
    return (
        0.2 * math.sqrt(max(rows, columns)) if adjustment == "match_rms_adamw" else math.sqrt(max(1.0, rows / columns))
    )


def on_whole_matrices(function: Callable[[Tensor], Tensor], matrices: Tensor) -> Tensor:
    """The function of matrices whose rows or columns may lie on several ranks: those are gathered first.

    Every rank then computes the same, so that the result is that of one process; a stack that is sharded by matrices
    stays where it is.
    """
    if not hasattr(matrices, "to_local"):
        return function(matrices)
    from torch.distributed.tensor import DTensor, Replicate

    sharded: Any = matrices
    last = {sharded.ndim - 2, sharded.ndim - 1}
    cut = [p.is_partial() or (p.is_shard() and p.dim in last) for p in sharded.placements]
    placements = [Replicate() if here else p for here, p in zip(cut, sharded.placements, strict=True)]
    whole = sharded.redistribute(placements=placements)
    result = function(whole.to_local()).contiguous()
    return DTensor.from_local(result, whole.device_mesh, placements, shape=whole.shape, stride=whole.stride())
