"""Where updates and decay hold a matrix: its norm, how far it turns in a step, and the way there under schedules.

Once gradients are mostly noise, a step lengthens a weight (the update is nearly orthogonal to it) and decay shortens
it. Both balance at a norm that neither the start nor the loss decides, and there a matrix turns by a fixed angle in
each step. With α = 1 − a, a the decay per step, u the update that is subtracted, and d numbers in the matrix:

    w_{t+1} = α_t·w_t − η_t·u_t,       E‖u‖² = d·U²,       E⟨u_t, u_{t+k}⟩ = d·U²·ρ_k

The numbers here are root mean squares of one element, so that matrices of all sizes compare.

Reference: Kosson et al. 2023, arXiv:2305.17212, tables 1 and 2; the autocorrelation of Lion's signs and the way under
schedules are derived here and checked against noise in tests/test_equilibrium.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from weightdecay.errors import ConfigError

# Below it the sum over Lion's autocorrelation has no part left.
_NEGLIGIBLE = 1e-12


@dataclass(frozen=True)
class Equilibrium:
    """What a matrix comes to.

    Attributes:
        rms: √(‖w‖²/d).
        angle: radians that it turns in a step.
        cosine: between the weight and the update that is subtracted; None where no formula is known.
    """

    rms: float
    angle: float
    cosine: float | None = None


def adamw_equilibrium(lr: float, decay: float, beta1: float) -> Equilibrium:
    """AdamW, whose second moment makes gradients' elements one in size.

        rms = η·U·√((1 + αβ₁) / ((1 − α²)(1 − αβ₁))),    U² = (1 − β₁)/(1 + β₁);     ≈ √(η/2λ)
        angle = √((1 − α²)(1 − β₁²)) / (1 + αβ₁);                                   ≈ √(2ηλ(1 − β₁)/(1 + β₁))
        cos = −β₁·√((1 − α²) / ((1 + αβ₁)(1 − αβ₁)))

    Args:
        lr: η, in (0, ∞).
        decay: a, the fraction that a step removes, in (0, 1): η·λ for torch.optim.AdamW.
        beta1: of the first moment.

    Raises:
        ConfigError: a value outside its range.
    """
    _check(lr=lr, decay=decay, beta=beta1)
    α = 1 - decay
    size = math.sqrt((1 - beta1) / (1 + beta1))
    rms = lr * size * math.sqrt((1 + α * beta1) / ((1 - α * α) * (1 - α * beta1)))
    angle = math.sqrt((1 - α * α) * (1 - beta1 * beta1)) / (1 + α * beta1)
    cosine = -beta1 * math.sqrt((1 - α * α) / ((1 + α * beta1) * (1 - α * beta1)))
    return Equilibrium(rms, angle, cosine)


def adam_l2_equilibrium(lr: float, weight_decay: float, beta1: float, gradient_std: float) -> Equilibrium:
    """Adam with λ·w in the gradient: each matrix turns at a speed of its own, which its gradients' size decides.

        rms = √(ησ/2λ),    angle = √((2ηλ/σ)·(1 − β₁)/(1 + β₁))

    Args:
        gradient_std: σ, of the gradient's elements.
    """
    _check(lr=lr, decay=min(lr * weight_decay, 1), beta=beta1)
    if gradient_std <= 0:
        raise ConfigError(f"gradient_std must be positive, got {gradient_std:g}")
    rms = math.sqrt(lr * gradient_std / (2 * weight_decay))
    return Equilibrium(rms, math.sqrt(2 * lr * weight_decay / gradient_std * (1 - beta1) / (1 + beta1)))


def sgd_equilibrium(lr: float, weight_decay: float, momentum: float, gradient_rms: float, rms: float) -> Equilibrium:
    """SGD with L2 on a weight whose length its output does not feel (it is normalised after).

    There g = g̃/‖w‖, and g̃ is what gradients have of their own: with g̃² = gradient_rms²·rms²·d, seen at any norm,

        rms⁴ = η·g̃² / (2λ(1 − μ)),    angle = √(2ηλ/(1 + μ))

    Args:
        momentum: μ.
        gradient_rms: root mean square of the gradient's elements …
        rms: … where the weight's elements have this one.
    """
    _check(lr=lr, decay=min(lr * weight_decay, 1), beta=momentum)
    own = (gradient_rms * rms) ** 2
    fourth = lr * own / (2 * weight_decay * (1 - momentum))
    return Equilibrium(fourth**0.25, math.sqrt(2 * lr * weight_decay / (1 + momentum)))


def lion_equilibrium(lr: float, decay: float, beta1: float, beta2: float) -> Equilibrium:
    """Lion, whose update is a sign: consecutive signs agree as the interpolated momentum does.

        r_k = (2/π)·asin ρ_k,    rms² = η²·(1 + 2·Σ_k α^k·r_k) / (1 − α²),    E w·u = −η·Σ_k α^(k−1)·r_k
        angle = acos(α − η·E w·u / rms²)

    ρ_k is the autocorrelation of c = β₁·m + (1 − β₁)·g on white noise. For small ηλ the angle is nearly Kosson's
    √(π/2)·√(2ηλ)·√((1 − β₁)² + β₁²(1 − β₂)/(1 + β₂)), which at ηλ = 5e-3 is 14 % short.
    """
    _check(lr=lr, decay=decay, beta=beta1)
    _check(lr=lr, decay=decay, beta=beta2)
    α, ρ = 1 - decay, lion_correlation(beta1, beta2)
    agreeing, factor = 0.0, 1.0
    while factor * ρ > _NEGLIGIBLE:
        agreeing += factor * 2 / math.pi * math.asin(min(ρ, 1.0))
        factor, ρ = factor * α, ρ * beta2
    squared = lr * lr * (1 + 2 * α * agreeing) / (1 - α * α)
    overlap = -lr * agreeing
    angle = math.acos(max(-1.0, min(1.0, α - lr * overlap / squared)))
    return Equilibrium(math.sqrt(squared), angle, overlap / math.sqrt(squared))


def lion_correlation(beta1: float, beta2: float) -> float:
    """ρ₁ of what Lion takes the sign of, c = β₁·m + (1 − β₁)·g, on white noise; ρ_k = ρ₁·β₂^(k−1)."""
    kept = (1 - beta2) / (1 + beta2)  # variance of the momentum
    variance = (1 - beta1) ** 2 + beta1**2 * kept
    # k − 1 steps later the momentum holds g with (1 − β₂)β₂^(k−1), and its own past with β₂^k.
    return beta1 * ((1 - beta1) * (1 - beta2) + beta1 * beta2 * kept) / variance


def muon_bound(weight_decay: float, update_norm: float, start: float) -> float:
    """What the spectral norm under Muon cannot exceed: ‖W‖₂ ≤ max(‖W₀‖₂, s/λ), for any gradients.

    W ← (1 − ηλ)·W − η·u with ‖u‖₂ ≤ s never leaves the ball of radius s/λ, and comes into it from outside.

    Args:
        weight_decay: λ of the decoupled rule.
        update_norm: s, the spectral norm of one update with its scale, without η.
        start: ‖W₀‖₂.

    Reference: Chen, Li & Liu 2025, arXiv:2506.15054.
    """
    return math.inf if weight_decay <= 0 else max(start, update_norm / weight_decay)


def memory_steps(decay: float) -> float:
    """Steps after which half of an update is forgotten: ln 2/a."""
    return math.inf if decay <= 0 else math.log(2) / decay


def relaxation_steps(decay: float) -> float:
    """Steps in which ‖w‖² comes half way to its equilibrium: ln 2/2a."""
    return memory_steps(decay) / 2


class NormPath:
    """The norm that a matrix is expected to have, step by step, while η and the decay move.

        N' = α²·N − 2αη·C + η²·U²,    C' = ρ·α·C − η·ρ₁·U²,    N = E w², C = E w·u for one element

    with an update of size U whose autocorrelation is ρ₁·ρ^(k−1): AdamW's first moment has ρ₁ = ρ = β₁. Constant values
    lead to `adamw_equilibrium`. Nothing but these two numbers is kept.

    Args:
        rms: of the weight's elements before the first step.
        beta: ρ; AdamW's β₁.
        size: U; AdamW's √((1 − β₁)/(1 + β₁)) where None.
        first: ρ₁; `beta` where None.
    """

    def __init__(self, rms: float, beta: float, size: float | None = None, first: float | None = None) -> None:
        _check(lr=1.0, decay=0.5, beta=beta)
        self._beta, self._first = beta, beta if first is None else first
        self._size = (1 - beta) / (1 + beta) if size is None else size * size
        self.square, self.overlap = rms * rms, 0.0
        self.angle = 0.0
        """Radians turned by the last step."""

    @property
    def rms(self) -> float:
        return math.sqrt(self.square)

    def go_on(self, square: float, overlap: float) -> None:
        """Stand where N and C are these."""
        self.square, self.overlap = square, overlap

    def step(self, lr: float, decay: float) -> None:
        """One step with this η and this decay per step."""
        α = 1 - decay
        along = α * self.square - lr * self.overlap  # E w·w'
        square = max(α * α * self.square - 2 * α * lr * self.overlap + lr * lr * self._size, 0.0)
        both = math.sqrt(self.square * square)
        self.angle = math.acos(max(-1.0, min(1.0, along / both))) if both else 0.0
        self.overlap = self._beta * α * self.overlap - lr * self._first * self._size
        self.square = square

    def follow(self, steps: Iterable[tuple[float, float]]) -> float:
        """The rms after steps of (lr, decay)."""
        for lr, decay in steps:
            self.step(lr, decay)
        return self.rms


def _check(*, lr: float, decay: float, beta: float) -> None:
    faults = []
    if not 0 < lr < math.inf:
        faults.append(f"lr must be positive, got {lr!r}")
    if not 0 < decay < 1:
        faults.append(f"the decay per step must lie in (0, 1), got {decay!r}: without decay no norm is an equilibrium")
    if not 0 <= beta < 1:
        faults.append(f"a moment's factor must lie in [0, 1), got {beta!r}")
    if faults:
        raise ConfigError(*faults)
