"""Norms and angles under pure noise, beside the formulas; tolerances are those seen over several sizes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import weightdecay
from weightdecay.equilibrium import (
    NormPath,
    adam_l2_equilibrium,
    adamw_equilibrium,
    lion_equilibrium,
    memory_steps,
    muon_bound,
    relaxation_steps,
    sgd_equilibrium,
)
from weightdecay.errors import ConfigError

ELEMENTS = 20_000


def measured(optimizer: torch.optim.Optimizer, w: torch.Tensor, steps: int, std: float = 1.0) -> tuple[float, float]:
    """(rms, angle) over the last quarter of steps on white noise."""
    generator = torch.Generator().manual_seed(3)
    norms, angles = [], []
    for step in range(steps):
        w.grad = torch.randn(w.shape, generator=generator) * std
        before = w.detach().double()
        optimizer.step()
        if step >= steps * 3 // 4:
            after = w.detach().double()
            norms.append(float(after.square().mean().sqrt()))
            angles.append(math.acos(min(1.0, float(torch.cosine_similarity(before, after, dim=0)))))
    return sum(norms) / len(norms), sum(angles) / len(angles)


def weight(rms: float) -> torch.nn.Parameter:
    return torch.nn.Parameter(rms * torch.randn(ELEMENTS, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(("beta2", "tolerance"), [(0.999, 0.02), (0.95, 0.04)])
@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_adamw_comes_to_its_norm_and_turns_by_its_angle(beta1: float, beta2: float, tolerance: float) -> None:
    predicted = adamw_equilibrium(1e-2, 1e-2, beta1)
    w = weight(predicted.rms)
    rms, angle = measured(torch.optim.AdamW([w], lr=1e-2, weight_decay=1.0, betas=(beta1, beta2)), w, 1200)
    assert rms == pytest.approx(predicted.rms, rel=tolerance)
    assert angle == pytest.approx(predicted.angle, rel=tolerance)


@pytest.mark.parametrize("decay", [1e-3, 5e-3, 5e-2])
def test_lions_signs_agree_with_each_other_as_its_momentum_does(decay: float) -> None:
    predicted = lion_equilibrium(1e-3, decay, 0.9, 0.99)
    w = weight(predicted.rms)
    rms, angle = measured(weightdecay.Lion([w], lr=1e-3, weight_decay=decay * 1e3, betas=(0.9, 0.99)), w, 1600)
    assert rms == pytest.approx(predicted.rms, rel=0.03)
    assert angle == pytest.approx(predicted.angle, rel=0.03)


@pytest.mark.parametrize(("std", "rms"), [(1.0, 0.224), (10.0, 0.707), (100.0, 2.24)])
def test_under_l2_the_gradients_size_decides(std: float, rms: float) -> None:
    predicted = adam_l2_equilibrium(1e-2, 0.1, 0.9, std)
    assert predicted.rms == pytest.approx(rms, rel=2e-3)
    w = weight(predicted.rms)
    optimizer = torch.optim.Adam([w], lr=1e-2, weight_decay=0.1)
    assert measured(optimizer, w, 2000, std)[0] == pytest.approx(predicted.rms, rel=0.05)


def test_sgd_on_weights_without_a_length() -> None:
    lr, λ, μ = 0.1, 0.01, 0.9
    generator = torch.Generator().manual_seed(3)
    w = weight(1.0)
    optimizer = torch.optim.SGD([w], lr=lr, weight_decay=λ, momentum=μ)
    gradient_rms = 0.3
    norms = []
    for step in range(3000):
        noise = torch.randn(w.shape, generator=generator) * gradient_rms
        flat = w.detach()
        noise -= flat * (noise @ flat) / (flat @ flat)  # such gradients are orthogonal to the weight
        w.grad = noise / w.detach().square().mean().sqrt()
        optimizer.step()
        if step >= 2250:
            norms.append(float(w.detach().square().mean().sqrt()))
    predicted = sgd_equilibrium(lr, λ, μ, gradient_rms, 1.0)
    assert sum(norms) / len(norms) == pytest.approx(predicted.rms, rel=0.01)
    assert predicted.angle == pytest.approx(math.sqrt(2 * lr * λ / (1 + μ)))


def test_the_norm_relaxes_with_the_half_life_of_twice_its_decay() -> None:
    """λ 0.1 → 0.4 at η = 1e-2 from equilibrium; 87 and 173 steps later."""
    start = adamw_equilibrium(1e-2, 1e-3, 0.9)
    path = NormPath(start.rms, 0.9)
    path.follow([(1e-2, 1e-3)] * 4000)  # the overlap of weight and update comes to its own
    first = path.rms
    norms = [(path.follow([(1e-2, 4e-3)]) / first) ** 2 for _ in range(173)]
    assert norms[86] == pytest.approx(0.624, rel=0.03)
    assert norms[172] == pytest.approx(0.438, rel=0.03)
    assert relaxation_steps(1e-3) == pytest.approx(346.6, rel=1e-3)
    assert memory_steps(1e-3) == pytest.approx(2 * relaxation_steps(1e-3))


@given(lr=st.floats(1e-5, 0.1), decay=st.floats(1e-3, 0.2), beta=st.floats(0.0, 0.99))
def test_a_path_at_constant_values_ends_in_the_equilibrium(lr: float, decay: float, beta: float) -> None:
    predicted = adamw_equilibrium(lr, decay, beta)
    path = NormPath(3 * predicted.rms, beta)
    path.follow([(lr, decay)] * int(20 / decay + 40 / (1 - beta)))
    assert path.rms == pytest.approx(predicted.rms, rel=1e-6)
    # The angle's formula is that of a small one; the path's is exact.
    assert 2 * math.sin(path.angle / 2) == pytest.approx(predicted.angle, rel=0.02 + 2 * predicted.angle**2)


def test_under_a_cosine_the_path_is_nearer_to_the_truth_than_the_last_steps_equilibrium() -> None:
    steps, w = 1500, weight(0.7)
    optimizer = torch.optim.AdamW([w], lr=1e-2, weight_decay=1.0, betas=(0.9, 0.999))
    path = NormPath(float(w.detach().square().mean().sqrt()), 0.9)
    generator = torch.Generator().manual_seed(3)
    for step in range(steps):
        lr = 5e-3 * (1 + math.cos(math.pi * step / steps)) + 1e-5
        optimizer.param_groups[0]["lr"] = lr
        w.grad = torch.randn(w.shape, generator=generator)
        optimizer.step()
        path.step(lr, lr)
    seen = float(w.detach().square().mean().sqrt())
    constant = adamw_equilibrium(lr, lr, 0.9).rms
    assert abs(path.rms / seen - 1) < 0.03 < abs(constant / seen - 1)


def test_muon_stays_within_its_bound_and_comes_into_it() -> None:
    torch.manual_seed(0)
    w = torch.nn.Parameter(5 * torch.eye(24, 16))
    optimizer: torch.optim.Optimizer = torch.optim.Muon([w], lr=0.05, weight_decay=2.0, adjust_lr_fn="match_rms_adamw")
    scale = 0.2 * math.sqrt(24)
    bound = muon_bound(2.0, 1.3 * scale, 5.0)  # torch's five iterations leave singular values up to about 1.2
    largest = 0.0
    for _ in range(200):
        w.grad = torch.randn_like(w)
        optimizer.step()
        largest = max(largest, float(torch.linalg.matrix_norm(w.detach(), 2)))
    assert largest <= bound
    assert float(torch.linalg.matrix_norm(w.detach(), 2)) <= 1.3 * scale / 2.0
    assert muon_bound(0.0, 1.0, 1.0) == math.inf


@pytest.mark.parametrize(("lr", "decay", "beta"), [(0.0, 0.1, 0.9), (0.1, 0.0, 0.9), (0.1, 1.0, 0.9), (0.1, 0.1, 1.0)])
def test_without_decay_or_step_there_is_no_equilibrium(lr: float, decay: float, beta: float) -> None:
    with pytest.raises(ConfigError, match="got"):
        adamw_equilibrium(lr, decay, beta)
