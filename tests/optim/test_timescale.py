from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightdecay.errors import ConfigError
from weightdecay.optim.timescale import decay_over_run, memory_coefficients, optimal_timescale, optimal_weight_decay


@given(st.lists(st.floats(0.0, 1.0), max_size=200))
def test_what_is_remembered_and_what_is_left_of_the_start_sum_to_one(decay_per_step: list[float]) -> None:
    coefficients, left = memory_coefficients(decay_per_step)
    assert math.fsum(coefficients) + left == pytest.approx(1.0, abs=1e-12)


def test_a_coefficient_is_the_weight_of_one_update_in_the_recursion() -> None:
    """w ← (1 − a)·w + a·u, unrolled by hand."""
    decay = [0.1, 0.5, 0.2]
    coefficients, left = memory_coefficients(decay)
    for step in range(3):
        weight = 0.0
        for t, a in enumerate(decay):
            weight = (1 - a) * weight + a * (t == step)
        assert coefficients[step] == pytest.approx(weight)
    assert left == pytest.approx(0.9 * 0.5 * 0.8)


@pytest.mark.parametrize(
    ("parameters", "tokens", "batch", "lr", "steps", "expected"),
    [(10e6, 200e6, 65_536, 1e-3, 3052, 1.466), (3e6, 60e6, 16_384, 3e-3, 3662, 0.407)],
)
def test_the_law_gives_the_reference_values(
    parameters: float, tokens: float, batch: int, lr: float, steps: int, expected: float
) -> None:
    assert math.ceil(tokens / batch) in (steps, steps + 1)
    found = optimal_weight_decay(lr=lr, steps=steps, tokens_per_parameter=tokens / parameters)
    assert found == pytest.approx(expected, rel=1e-3)
    assert optimal_timescale(20) == pytest.approx(0.2236, rel=1e-3)


def test_the_law_stays_at_its_edge_outside_the_range_that_was_fitted() -> None:
    assert optimal_timescale(0.1) == optimal_timescale(20)
    assert optimal_timescale(1e6) == optimal_timescale(1_280)
    assert optimal_timescale(100) < optimal_timescale(20)


def test_a_short_run_at_a_tenth_is_said_not_to_matter() -> None:
    short = decay_over_run([6e-3 * 0.1 * (1 - t / 800) for t in range(800)], batch_tokens=2048)
    assert short.total == pytest.approx(0.2403, rel=1e-3)
    assert not short.matters
    assert short.half_life_tokens == pytest.approx(math.log(2) / 6e-4 * 2048)
    long = decay_over_run([6e-4] * 10_000, batch_tokens=2048)
    assert long.matters
    assert long.shrink == pytest.approx((1 - 6e-4) ** 10_000)


def test_no_decay_is_remembered_forever() -> None:
    none = decay_over_run([0.0] * 10, batch_tokens=8)
    assert (none.total, none.shrink, none.half_life_tokens) == (0.0, 1.0, math.inf)


def test_a_decay_that_would_turn_signs_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lower lr·λ"):
        memory_coefficients(np.array([0.5, 1.5]))
    with pytest.raises(ConfigError, match="positive lr"):
        optimal_weight_decay(lr=0.0, steps=10, tokens_per_parameter=20)
