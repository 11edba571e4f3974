"""Where norms and rotation settle under pure noise, against theory: Kosson et al. 2023, arXiv:2305.17212."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from weightdecay.optim.adamw import AdamL2, AdamW
from weightdecay.optim.lion import Lion
from weightdecay.optim.sgdw import SGDW

pytestmark = pytest.mark.long
ELEMENTS = 20_000


class Noise:
    """Weights under gradients of pure noise; scale-invariant if asked: orthogonal to w and inverse to its norm."""

    def __init__(self, optimizer_of: Any, rms: float, *, sigma: float = 1.0, invariant: bool = False) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.weights = nn.Parameter(rms * torch.randn(ELEMENTS, generator=self.generator))
        self.optimizer = optimizer_of([self.weights])
        self.sigma, self.invariant = sigma, invariant

    def step(self) -> None:
        g = self.sigma * torch.randn(ELEMENTS, generator=self.generator)
        if self.invariant:
            w = self.weights.detach()
            norm = w.norm()
            g = (g - w * (w @ g) / norm**2) / norm
        self.weights.grad = g
        self.optimizer.step()

    def settled(self, warmup: int, steps: int) -> tuple[float, float]:
        """(RMS of the weights, radians a step), averaged over the last steps."""
        squares, angles = 0.0, 0.0
        for step in range(warmup + steps):
            before: Tensor = self.weights.detach().clone()
            self.step()
            if step >= warmup:
                after = self.weights.detach()
                squares += float(after.square().mean())
                angles += float(torch.acos((before @ after / (before.norm() * after.norm())).clamp(-1, 1)))
        return math.sqrt(squares / steps), angles / steps


@pytest.mark.parametrize(("beta2", "tolerance"), [(0.999, 0.02), (0.95, 0.04)])
def test_adamws_norm_and_rotation(beta2: float, tolerance: float) -> None:
    lr, weight_decay, beta1 = 1e-2, 0.1, 0.9
    alpha = 1 - lr * weight_decay
    update = math.sqrt((1 - beta1) / (1 + beta1))
    norm = lr * update * math.sqrt((1 + alpha * beta1) / ((1 - alpha**2) * (1 - alpha * beta1)))
    angle = math.sqrt((1 - alpha**2) * (1 - beta1**2)) / (1 + alpha * beta1)
    noise = Noise(lambda p: AdamW(p, lr=lr, weight_decay=weight_decay, betas=(beta1, beta2)), rms=norm)
    found_norm, found_angle = noise.settled(2_000, 2_000)
    assert found_norm == pytest.approx(norm, rel=tolerance)
    assert found_angle == pytest.approx(angle, rel=tolerance)


def test_the_norm_relaxes_with_half_life_ln2_over_two_lr_lambda() -> None:
    lr, weight_decay = 1e-2, 0.1
    settled = lr / (2 * weight_decay)
    noise = Noise(lambda p: AdamW(p, lr=lr, weight_decay=weight_decay), rms=5 * math.sqrt(settled))
    for _ in range(100):
        noise.step()
    start = float(noise.weights.detach().square().mean()) - settled
    steps = 0
    while float(noise.weights.detach().square().mean()) - settled > start / 2:
        noise.step()
        steps += 1
    assert steps == pytest.approx(math.log(2) / (2 * lr * weight_decay), rel=0.03)


def test_sgds_norm_and_rotation_on_scale_invariant_weights() -> None:
    lr, weight_decay, momentum = 0.1, 0.01, 0.9
    squared = ELEMENTS  # ‖g̃‖² of unit noise
    norm = (lr * squared / (2 * weight_decay * (1 - momentum))) ** 0.25
    noise = Noise(
        lambda p: SGDW(p, lr=lr, weight_decay=weight_decay, momentum=momentum, rule="l2"),
        rms=norm / math.sqrt(ELEMENTS),
        invariant=True,
    )
    found_norm, found_angle = noise.settled(3_000, 3_000)
    assert found_norm * math.sqrt(ELEMENTS) == pytest.approx(norm, rel=0.01)
    assert found_angle == pytest.approx(math.sqrt(2 * lr * weight_decay / (1 + momentum)), rel=0.02)


def test_lions_norm_and_rotation() -> None:
    lr, weight_decay, beta1, beta2 = 1e-3, 1.0, 0.9, 0.99
    angle = math.sqrt(math.pi / 2) * math.sqrt(2 * lr * weight_decay)
    angle *= math.sqrt((1 - beta1) ** 2 + beta1**2 * (1 - beta2) / (1 + beta2))
    noise = Noise(lambda p: Lion(p, lr=lr, weight_decay=weight_decay, betas=(beta1, beta2)), rms=lr / angle)
    norm, found_angle = noise.settled(3_000, 2_000)
    assert found_angle == pytest.approx(angle, rel=0.08)
    assert norm == pytest.approx(_lions_rms(lr, weight_decay, beta1, beta2), rel=0.08)


def _lions_rms(lr: float, weight_decay: float, beta1: float, beta2: float) -> float:
    """η²(1 + 2Σ α^k r_k)/(1 − α²), r_k = (2/π)·asin ρ_k, ρ_k the autocorrelation of the interpolated momentum."""
    alpha = 1 - lr * weight_decay
    fresh, kept = 1 - beta1, beta1 * (1 - beta2)  # c_t = fresh·g_t + kept·Σ β2^(j−1)·g_{t−j}
    variance = fresh**2 + kept**2 / (1 - beta2**2)

    def correlation(k: int) -> float:
        return (fresh * kept * beta2 ** (k - 1) + kept**2 * beta2**k / (1 - beta2**2)) / variance

    signs = (alpha**k * 2 / math.pi * math.asin(correlation(k)) for k in range(1, 3_000))
    return lr * math.sqrt((1 + 2 * sum(signs)) / (1 - alpha**2))


@pytest.mark.parametrize(("sigma", "seen"), [(1.0, 0.224), (10.0, 0.707), (100.0, 2.24)])
def test_adam_with_l2_settles_by_the_gradients_size(sigma: float, seen: float) -> None:
    """RMS = √(ησ/2λ): each layer at its own norm and speed, which is what decoupling ends."""
    lr, weight_decay = 1e-2, 0.1
    assert seen == pytest.approx(math.sqrt(lr * sigma / (2 * weight_decay)), rel=0.01)
    noise = Noise(lambda p: AdamL2(p, lr=lr, weight_decay=weight_decay), rms=seen, sigma=sigma)
    norm, angle = noise.settled(4_000 if sigma < 50 else 10_000, 2_000)
    assert norm == pytest.approx(seen, rel=0.05)
    assert angle == pytest.approx(math.sqrt(2 * lr * weight_decay / sigma * 0.1 / 1.9), rel=0.1)
