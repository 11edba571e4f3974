"""Where norms and rotation settle on noise, as the monitor sees it, beside what it predicts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import weightdecay
from tests.monitoring.noise import Matrices, of_tensors, settled, watched
from weightdecay import Monitor
from weightdecay.equilibrium import adamw_equilibrium, lion_equilibrium

SHAPE = (64, 128)


@pytest.mark.parametrize(("beta2", "tolerance"), [(0.999, 0.02), (0.95, 0.04)])
def test_adamw_settles_where_the_monitor_predicts(beta2: float, tolerance: float) -> None:
    model = Matrices(SHAPE, std=adamw_equilibrium(1e-2, 1e-2, 0.9).rms)
    monitor = watched(model, lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=1.0, betas=(0.9, beta2)), 500)
    rows = of_tensors(monitor)
    assert {row["theory"] for row in rows} == {"adamw"}
    for seen, theory in (("weight_rms", "equilibrium_rms"), ("angle", "equilibrium_angle")):
        assert settled(rows, seen) == pytest.approx(rows[-1][theory], rel=tolerance)
        expected = theory.replace("equilibrium", "expected")
        assert settled(rows, seen) == pytest.approx(settled(rows, expected), rel=tolerance)
    assert settled(rows, "cosine") == pytest.approx(rows[-1]["equilibrium_cosine"], rel=0.1)
    assert rows[-1]["steps_to_equilibrium"] == 0.0


def test_lion_settles_where_the_monitor_predicts() -> None:
    model = Matrices(SHAPE, std=lion_equilibrium(1e-3, 5e-3, 0.9, 0.99).rms)
    rows = of_tensors(watched(model, lambda p: weightdecay.Lion(p, lr=1e-3, weight_decay=5.0), 700))
    assert {row["theory"] for row in rows} == {"lion"}
    for seen, theory in (("weight_rms", "equilibrium_rms"), ("angle", "equilibrium_angle")):
        assert settled(rows, seen) == pytest.approx(rows[-1][theory], rel=0.08)
        assert rows[-1][theory.replace("equilibrium", "expected")] == pytest.approx(rows[-1][theory], rel=0.01)


@pytest.mark.parametrize("rule", ["l2", "decoupled"])
def test_sgd_settles_where_the_monitor_predicts_for_weights_without_a_length(rule: Any) -> None:
    lr, λ, μ, σ = 0.1, 0.05 if rule == "l2" else 0.2, 0.9, 0.3
    start = (lr * σ**2 / (2 * λ * (1 - μ) ** (1 if rule == "l2" else 2))) ** 0.25
    model = Matrices(SHAPE, std=start)
    rows = of_tensors(
        watched(
            model,
            lambda p: weightdecay.SGDW(p, lr=lr, weight_decay=λ, momentum=μ, rule=rule),
            500, std=σ, invariant=True,
        )
    )  # fmt: skip
    assert {row["theory"] for row in rows[1:]} == {"sgd"}
    assert settled(rows, "weight_rms") == pytest.approx(settled(rows, "equilibrium_rms"), rel=0.01)
    assert settled(rows, "angle") == pytest.approx(rows[-1]["equilibrium_angle"], rel=0.01)


@pytest.mark.parametrize("std", [1.0, 10.0])
def test_under_l2_each_matrix_has_a_speed_that_its_gradients_decide(std: float) -> None:
    lr, λ = 1e-2, 0.1
    model = Matrices(SHAPE, std=math.sqrt(lr * std / (2 * λ)))
    rows = of_tensors(
        watched(model, lambda p: torch.optim.Adam(p, lr=lr, weight_decay=λ), 700, std=std)
    )  # fmt: skip
    assert {row["theory"] for row in rows} == {"adam_l2"}
    assert {row["decay_requested"] for row in rows} == {None}
    assert settled(rows, "weight_rms") == pytest.approx(rows[-1]["equilibrium_rms"], rel=0.05)
    assert settled(rows, "angle") == pytest.approx(rows[-1]["equilibrium_angle"], rel=0.1)


def test_half_of_the_way_to_the_equilibrium_takes_ln2_over_twice_the_decay() -> None:
    a = 1e-2
    model = Matrices(SHAPE, std=4 * adamw_equilibrium(1e-2, a, 0.9).rms)
    rows = of_tensors(
        watched(model, lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=1.0), 250, interval=1)
    )  # fmt: skip

    def gap(row: Any) -> float:
        return float((row["weight_rms"] / row["equilibrium_rms"]) ** 2 - 1)

    first = rows[20]  # once weight and update overlap as they will
    half = next(row for row in rows[20:] if gap(row) < gap(first) / 2)
    assert half["step"] - first["step"] == pytest.approx(math.log(2) / (2 * a), rel=0.06)
    told = first["steps_to_equilibrium"]
    there = next((row for row in rows if row["steps_to_equilibrium"] == 0.0), None)
    assert there is not None
    assert there["step"] - first["step"] == pytest.approx(told, rel=0.06)


def half_cosine(steps: int) -> Callable[[int], float]:
    return lambda step: 5e-3 * (1 + math.cos(math.pi * step / steps)) + 1e-5


def test_under_a_cosine_the_scheduled_prediction_beats_the_constant_one() -> None:
    steps = 600
    rows = of_tensors(
        watched(
            Matrices(SHAPE, std=0.7),
            lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=1.0, betas=(0.9, 0.999)),
            steps, lr=half_cosine(steps),
        )
    )  # fmt: skip
    last = rows[-len(rows) // 4 :]
    for seen in ("rms", "angle"):
        measured = [row["weight_rms" if seen == "rms" else seen] for row in last]
        of_schedule = [abs(row[f"expected_{seen}"] / x - 1) for row, x in zip(last, measured, strict=True)]
        of_constant = [abs(row[f"equilibrium_{seen}"] / x - 1) for row, x in zip(last, measured, strict=True)]
        assert max(of_schedule) < 0.05
        assert sum(of_constant) > 3 * sum(of_schedule)


def test_muon_has_a_bound_and_no_equilibrium() -> None:
    model = Matrices((24, 16), (16, 40), std=1.0)
    make = lambda p: torch.optim.Muon(p, lr=0.05, weight_decay=2.0, adjust_lr_fn="match_rms_adamw")  # noqa: E731
    rows = of_tensors(watched(model, make, 120))
    assert {row["theory"] for row in rows} == {"muon"}
    assert all(row["equilibrium_rms"] is None and row["no_theory"] for row in rows)
    assert all(0 < row["sigma_max"] <= row["sigma_bound"] for row in rows)
    # Both began at once, and have come near to what is left of the bound: s/λ.
    last = rows[-1]
    assert last["sigma_bound"] == pytest.approx(0.2 * math.sqrt(40) * 1.25 / 2.0, rel=0.05)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.NAdam(p, lr=1e-2, weight_decay=0.1, decoupled_weight_decay=True),
        lambda p: torch.optim.RMSprop(p, lr=1e-3, weight_decay=0.1),
        lambda p: weightdecay.Adafactor(p, lr=1e-2, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda p: weightdecay.AdamW(p, lr=1e-2, weight_decay=0.1, rule="cautious"),
        lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.0),
    ],
)
def test_what_no_theory_is_known_of_is_measured_and_said_to_have_none(make: Callable[[Any], Any]) -> None:
    monitor: Monitor = watched(Matrices((20, 30), std=0.1), make, 20)
    rows = of_tensors(monitor)
    assert rows
    for row in rows:
        assert row["theory"] == ""
        assert row["no_theory"]
        assert (row["equilibrium_rms"], row["expected_rms"], row["distance"]) == (None, None, None)
        assert row["angle"] > 0
        assert row["weight_rms"] > 0
