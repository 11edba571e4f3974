from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightdecay.errors import ScheduleError
from weightdecay.schedules import (
    SCHEDULE_NAMES,
    Constant,
    Cosine,
    InverseSqrt,
    Linear,
    OneOverT,
    Piecewise,
    Schedule,
    Warmup,
    WarmupStableDecay,
    schedule,
)

rates = st.floats(1e-6, 1.0)
lengths = st.integers(1, 10_000)
shapes = st.sampled_from([Cosine, Linear])


@given(shape=shapes, start=rates, end=rates, steps=lengths)
def test_a_way_starts_and_ends_exactly_where_it_says_and_stays_there(
    shape: type[Cosine] | type[Linear], start: float, end: float, steps: int
) -> None:
    way = shape(start, end, steps)
    assert way(0) == pytest.approx(start, rel=1e-12)
    assert way(steps) == end
    assert way(steps + 1_000) == end


@given(shape=shapes, start=rates, end=rates, steps=lengths, step=st.integers(0, 20_000))
def test_a_way_goes_one_direction_and_never_leaves_its_range(
    shape: type[Cosine] | type[Linear], start: float, end: float, steps: int, step: int
) -> None:
    way = shape(start, end, steps)
    low, high = sorted((start, end))
    assert low - 1e-12 <= way(step) <= high + 1e-12
    assert (way(step + 1) - way(step)) * (end - start) >= -1e-15


def test_lambda_may_go_up() -> None:
    rising = Cosine(0.01, 0.1, steps=10)
    assert [rising(0), rising(5), rising(10)] == pytest.approx([0.01, 0.055, 0.1])


@given(peak=rates, warmup=lengths)
def test_a_warmup_rises_by_equal_steps_and_meets_its_successor(peak: float, warmup: int) -> None:
    rise = Warmup(warmup, then=Constant(peak))
    assert rise(0) == pytest.approx(peak / warmup)
    assert rise(warmup // 2) == pytest.approx(peak * (warmup // 2 + 1) / warmup)
    assert rise(warmup) == peak


def test_gpt3_small_at_the_steps_its_paper_fixes() -> None:
    """Brown et al. 2020, appendix B: warm-up over 375M tokens, cosine to 10 % at 260B, at 0.5M tokens a step."""
    lr = Warmup(750, then=Cosine(6e-4, 6e-5, steps=520_000 - 750))
    assert lr(749) == pytest.approx(6e-4)
    assert lr(520_000) == pytest.approx(6e-5)
    assert math.isclose(lr(600_000), 6e-5)


@given(step=st.integers(4_000, 1_000_000))
def test_the_transformers_schedule_is_a_warmup_and_an_inverse_square_root(step: int) -> None:
    """Vaswani et al. 2017, §5.3: d^−½ · min(t^−½, t · warmup^−3/2)."""
    lr = Warmup(4_000, then=InverseSqrt(512**-0.5 * 4_000**-0.5, timescale=4_000))
    assert lr(step) == pytest.approx(512**-0.5 * step**-0.5)
    assert lr(1_999) == pytest.approx(512**-0.5 * 2_000 * 4_000**-1.5)


@given(step=st.integers(0, 1_000_000))
def test_palms_learning_rate_is_constant_and_then_one_over_the_root_of_the_step(step: int) -> None:
    lr = Piecewise(((0, Constant(1e-2)), (10_000, InverseSqrt(1e-2, timescale=10_000))))
    assert lr(step) == pytest.approx(min(1e-2, 1 / math.sqrt(max(step, 1))))


def test_palms_decay_over_its_published_run_sums_to_4_24() -> None:
    """Under `lr_squared` a_t = η_t²; 255,000 steps. Decoupled 0.1 on the same schedule sums to about 91."""
    lr = Piecewise(((0, Constant(1e-2)), (10_000, InverseSqrt(1e-2, timescale=10_000))))
    assert sum(lr(step) ** 2 for step in range(255_000)) == pytest.approx(4.24, abs=0.005)
    assert sum(0.1 * lr(step) for step in range(255_000)) == pytest.approx(91, abs=0.5)


@pytest.mark.parametrize(
    ("shape", "halfway"), [("linear", 0.55), ("cosine", 0.55), ("sqrt", 0.1 + 0.9 * (1 - 0.5**0.5))]
)
def test_warmup_stable_decay_has_three_parts(shape: str, halfway: float) -> None:
    lr = WarmupStableDecay(1.0, 10, 70, 20, final=0.1, shape=shape)  # type: ignore[arg-type]
    assert lr(0) == pytest.approx(0.1)
    assert lr(9) == lr(10) == lr(79) == lr(80) == 1.0
    assert lr(90) == pytest.approx(halfway)
    assert lr(100) == lr(1_000) == 0.1


def test_one_over_t_counts_from_one_and_can_be_shifted_below_one() -> None:
    assert [OneOverT(4.0)(step) for step in (0, 1, 3)] == [4.0, 2.0, 1.0]
    assert OneOverT(4.0, offset=3)(0) == 1.0


@given(name=st.sampled_from(SCHEDULE_NAMES), peak=rates, steps=st.integers(2, 5_000), data=st.data())
def test_every_named_schedule_rises_to_its_peak_and_never_passes_it(
    name: str, peak: float, steps: int, data: st.DataObject
) -> None:
    warmup = data.draw(st.integers(0, steps - 1))
    named = schedule(name, peak=peak, steps=steps, warmup_steps=warmup, final_fraction=0.1)
    values = [named(step) for step in range(steps + 2)]
    assert max(values) <= peak * (1 + 1e-12)
    assert named(warmup) == pytest.approx(peak)
    assert values[:warmup] == sorted(values[:warmup])
    if name in ("cosine", "linear"):
        assert named(steps) == pytest.approx(0.1 * peak)


def test_schedules_are_values_that_can_be_compared_and_pickled() -> None:
    first = schedule("cosine", peak=6e-4, steps=100, warmup_steps=10)
    assert first == schedule("cosine", peak=6e-4, steps=100, warmup_steps=10)
    assert pickle.loads(pickle.dumps(first)) == first


def test_a_linear_schedule_to_zero_reaches_exactly_zero() -> None:
    assert schedule("linear", peak=0.3, steps=7)(7) == 0.0


def test_an_unknown_name_brings_the_nearest_and_every_other_fault() -> None:
    with pytest.raises(ScheduleError, match="did you mean 'cosine'") as caught:
        schedule("cosin", peak=float("nan"), steps=0, warmup_steps=-1, decay_fraction=2.0)
    assert len(caught.value.faults) == 5


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Cosine(1.0, 0.0, steps=0), "length in steps"),
        (lambda: Linear(-1.0, 0.0, steps=5), "start must be a finite number"),
        (lambda: Constant(math.inf), "value must be a finite number"),
        (lambda: Warmup(-1, then=Constant(1.0)), "give 0 or more"),
        (lambda: InverseSqrt(1.0, timescale=0), "at least 1 step"),
        (lambda: OneOverT(-4.0), "omega must be"),
        (lambda: Piecewise(()), "begin at step 0"),
        (lambda: Piecewise(((0, Constant(1.0)), (9, Constant(2.0)), (9, Constant(3.0)))), "rising steps"),
        (lambda: WarmupStableDecay(1.0, 1, -1, 1, shape="sqr"), "did you mean 'sqrt'"),  # type: ignore[arg-type]
    ],
)
def test_a_schedule_that_no_step_could_follow_says_why(build: object, words: str) -> None:
    assert callable(build)
    with pytest.raises(ScheduleError, match=words):
        build()


def test_a_schedule_is_a_function_of_the_step_alone() -> None:
    lr: Schedule = schedule("warmup_stable_decay", peak=1.0, steps=100, warmup_steps=10)
    forward = [lr(step) for step in range(120)]
    assert [lr(step) for step in reversed(range(120))] == forward[::-1]


WHOLE: dict[Any, dict[str, Any]] = {
    Constant: {"value": 0.1},
    Cosine: {"start": 0.1, "end": 0.0, "steps": 5},
    Linear: {"start": 0.1, "end": 0.0, "steps": 5},
    Warmup: {"steps": 3, "then": Constant(0.1)},
    InverseSqrt: {"start": 0.1, "timescale": 5},
    OneOverT: {"omega": 4.0, "offset": 3.0},
    WarmupStableDecay: {
        "peak": 0.1,
        "warmup_steps": 2,
        "stable_steps": 2,
        "decay_steps": 2,
        "final": 0.0,
        "shape": "sqrt",
    },
    Piecewise: {"pieces": ((0, Constant(0.1)),)},
    schedule: {
        "name": "cosine",
        "peak": 0.1,
        "steps": 9,
        "warmup_steps": 1,
        "final_fraction": 0.1,
        "decay_fraction": 0.2,
    },
}


@pytest.mark.parametrize(("build", "key"), [(build, key) for build, whole in WHOLE.items() for key in whole])
@pytest.mark.parametrize("wrong", ["1e-3", None, True, [1.0], {}, math.nan, -1.0, 1j, Linear], ids=repr)
def test_a_wrong_type_anywhere_is_our_error_with_the_parameters_name(build: Any, key: str, wrong: Any) -> None:
    build(**WHOLE[build])
    name = {"name": "unknown schedule", "shape": "shape"}.get(key, key)
    with pytest.raises(ScheduleError, match=name):
        build(**WHOLE[build] | {key: wrong})


@pytest.mark.parametrize("wrong", [((0, 0.1),), (("0", Constant(0.1)),), ((0,),), (0.1,)], ids=repr)
def test_a_wrong_piece_is_named_by_its_place(wrong: Any) -> None:
    with pytest.raises(ScheduleError, match=r"pieces\[0\]"):
        Piecewise(wrong)


def test_numbers_of_other_libraries_are_numbers() -> None:
    end: Any = np.float32(0.0)
    steps: Any = np.int64(4)
    assert Cosine(np.float64(0.1), end, steps)(2) == pytest.approx(0.05)
