from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightdecay.errors import ConfigError
from weightdecay.schedules import Constant, Cosine, Linear
from weightdecay.timescale import decay_over_run, memory_coefficients, origins


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


def test_a_short_run_at_a_tenth_is_said_not_to_matter() -> None:
    short = decay_over_run(lambda t: 6e-3 * 0.1 * (1 - t / 800), 800, batch_tokens=2048)
    assert short.total == pytest.approx(0.2403, rel=1e-3)
    assert not short.matters
    assert short.half_life_tokens == pytest.approx(math.log(2) / 6e-4 * 2048)
    long = decay_over_run(lambda _: 6e-4, 10_000, batch_tokens=2048)
    assert long.matters
    assert long.shrink == pytest.approx((1 - 6e-4) ** 10_000)


def test_no_decay_is_remembered_forever() -> None:
    none = decay_over_run(lambda _: 0.0, 10, batch_tokens=8)
    assert (none.total, none.shrink, none.half_life_tokens) == (0.0, 1.0, math.inf)


def test_a_decay_that_would_turn_signs_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lower lr·λ"):
        memory_coefficients(np.array([0.5, 1.5]))
    with pytest.raises(ConfigError, match="more than all of it"):
        origins(Constant(0.5), 2.1, 10)


@given(st.floats(0.0, 1.0), st.integers(1, 400), st.floats(0.0, 1.0))
def test_the_final_weights_come_from_the_start_and_the_steps_alone(peak: float, steps: int, end: float) -> None:
    for schedule in (Constant(peak), Linear(peak, peak * end, steps), Cosine(peak, peak * end, steps)):
        found = origins(schedule, 1.0, steps)
        assert math.fsum(found.coefficients) + found.start == pytest.approx(1.0, abs=1e-12)


def test_a_long_run_in_blocks_comes_from_where_its_steps_say() -> None:
    """Against every step by itself; and the sums stay 1 within 1e-12."""
    steps, lr = 350_000, Linear(6e-4, 0.0, 350_000)
    every, left = memory_coefficients([lr(step) * 0.1 for step in range(steps)])
    blocks = origins(lr, 0.1, steps)
    assert math.fsum(blocks.coefficients) + blocks.start == pytest.approx(1.0, abs=1e-12)
    assert blocks.start == pytest.approx(left, rel=1e-3)
    enough = int(np.searchsorted(np.cumsum(every[::-1]), 0.95)) + 1
    assert blocks.last_part(0.95) == pytest.approx(enough / steps, abs=1e-4)


def test_a_run_of_any_length_is_summed_up_at_once() -> None:
    """Σ and half-life of a straight way down have a closed form; a list of these steps would fill any memory."""
    steps = 10**19 // 2
    found = decay_over_run(lambda t: 1e-19 * (1 - t / steps), steps, batch_tokens=3)
    assert found.total == pytest.approx(1e-19 * steps / 2, rel=1e-3)
    assert found.shrink == pytest.approx(math.exp(-1e-19 * steps / 2), rel=1e-3)
    assert found.half_life_tokens == pytest.approx(math.log(2) / 1e-19 * 3, rel=1e-3)


def test_the_last_part_of_a_run_that_makes_the_weights_is_found_by_hand() -> None:
    """At a constant a the last k steps make 1 − (1 − a)^k."""
    found = origins(Constant(0.1), 1.0, 100).last_part(0.95)
    assert found == math.ceil(math.log(0.05) / math.log(0.9)) / 100
    assert origins(Constant(1e-3), 0.1, 100).last_part(0.95) is None  # 99 % of the start is left
