"""Means, differences in pairs and Holm's correction, beside scipy and numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from weightdecay.studies import catalogue
from weightdecay.studies.analysis import Analysis, Comparison, answer, verdict_on
from weightdecay.studies.design import Contrast
from weightdecay.studies.results import RunResult
from weightdecay.studies.statistics import holm, mean_of, paired_difference

losses = st.floats(-100, 100).map(lambda value: round(value, 6))


@given(st.lists(losses, min_size=2, max_size=8))
def test_a_mean_and_its_interval_are_scipys(values: list[float]) -> None:
    assume(np.std(values) > 1e-4)
    found = mean_of(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert found.interval == pytest.approx((low, high), rel=1e-9, abs=1e-9)
    assert found.n == len(values)
    assert found.mean == pytest.approx(float(np.mean(values)), abs=1e-9)


def test_one_value_has_no_interval() -> None:
    assert (mean_of([2.5]).std, mean_of([2.5]).interval) == (None, None)


@given(st.lists(st.tuples(losses, losses), min_size=2, max_size=8))
def test_a_difference_in_pairs_is_scipys_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    first, second = ({seed: pair[side] for seed, pair in enumerate(pairs)} for side in (0, 1))
    assume(np.std([a - b for a, b in pairs]) > 1e-4)
    found = paired_difference(first, second)
    expected = stats.ttest_rel([a for a, _ in pairs], [b for _, b in pairs])
    interval = expected.confidence_interval(0.95)
    assert found is not None
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert found.interval == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)


def test_pairs_are_made_by_seed_and_what_one_arm_lacks_is_left_out() -> None:
    found = paired_difference({0: 1.0, 1: 2.0, 7: 5.0}, {7: 4.0, 1: 1.5, 3: 9.0})
    assert found is not None
    assert (found.n, found.mean, found.same_sign) == (2, 0.75, True)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_a_worked_example_in_pairs() -> None:
    # d = 1, 2, 3: mean 2, s = 1, t = 2·√3; t of 2 degrees at 97.5 % is 4.3027.
    found = paired_difference({0: 2.0, 1: 4.0, 2: 6.0}, {0: 1.0, 1: 2.0, 2: 3.0})
    assert found is not None
    half = 4.302652729911275 / math.sqrt(3)
    assert found.interval == pytest.approx((2 - half, 2 + half))
    assert found.p == pytest.approx(0.0741799)


def test_pairs_that_are_equal_to_the_bit_differ_by_nothing_and_a_constant_difference_is_certain() -> None:
    same = paired_difference({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})
    constant = paired_difference({0: 1.5, 1: 2.5}, {0: 1.0, 1: 2.0})
    assert same is not None
    assert constant is not None
    assert (same.p, same.same_sign) == (1.0, False)
    assert (constant.p, constant.same_sign) == (0.0, True)


def test_holms_correction_by_hand() -> None:
    # sorted .01 .02 .03 .04, times 4 3 2 1: .04 .06 .06 .04, and none below the one before it
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])


def test_what_has_no_p_is_counted_all_the_same() -> None:
    assert holm([0.01, None, None]) == [pytest.approx(0.03), None, None]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_a_corrected_p_is_no_smaller_than_the_plain_one_nor_larger_than_bonferronis(values: list[float]) -> None:
    for plain, corrected in zip(values, holm(values), strict=True):
        assert corrected is not None
        assert plain <= corrected <= min(1.0, plain * len(values)) + 1e-12


@pytest.mark.parametrize(
    ("holds_if", "sign", "verdict"),
    [
        ("lower", -1, "shown"), ("lower", 1, "the opposite is shown"), ("higher", 1, "shown"),
        ("higher", -1, "the opposite is shown"), ("alike", 1, "the opposite is shown"),
        ("alike", -1, "the opposite is shown"),
        ("better", -1, "shown"), ("better", 1, "the opposite is shown"),
    ],
)  # fmt: skip
def test_a_difference_against_a_claim_refutes_it(holds_if: Any, sign: int, verdict: str) -> None:
    pairs = {seed: (sign * (1 + 0.01 * seed), 0.0) for seed in range(5)}
    difference = paired_difference({s: a for s, (a, _) in pairs.items()}, {s: b for s, (_, b) in pairs.items()})
    contrast = Contrast("val_bits_per_byte", "arm", "against")  # of which less is better
    (said,) = verdict_on("it is so", Comparison(contrast, difference, p_holm=0.001, counted=1), holds_if)
    assert said.verdict == verdict
    (unsure,) = verdict_on("it is so", Comparison(contrast, difference, p_holm=0.2, counted=1), holds_if)
    assert unsure.verdict == "not shown"


@pytest.mark.parametrize(
    ("arms", "means", "contains"),
    [
        # An arm that is only shown lies below: the best is said of those that are compared, and by how much.
        (
            ("a", "b", "shown"),
            (1.0, 2.0, 0.5),
            ("Of the 2 arms that are compared, a has the lowest", "b against a: +1"),
        ),
        (("a", "b"), (1.0, 2.0), ("a has the lowest", "b against a: +1")),
        (("a", "b"), (2.0, 1.0), ("b has the lowest", "b against a: -0.98")),
        (("a", "b", "c"), (1.0, 2.0, 3.0), ("a has the lowest", "None of the others is below it.")),
    ],
)
def test_the_answer_says_of_which_arms_it_speaks(
    arms: tuple[str, ...], means: tuple[float, ...], contains: tuple[str, ...]
) -> None:
    study = catalogue.study("lambda")
    compared = [arm for arm in arms[1:] if arm != "shown"]
    asked = {
        "arms": [{"name": arm, "labels": {}} for arm in arms],
        "contrasts": [vars(Contrast(study.headline, arm, arms[0])) for arm in compared],
    }
    runs = [
        RunResult(f"{arm}-{seed}", arm, seed, "finished", values={study.headline: mean + 0.01 * seed * (1 + i)})
        for i, (arm, mean) in enumerate(zip(arms, means, strict=True))
        for seed in range(5)
    ]
    said = answer(study, Analysis(asked, runs))
    assert all(part in said for part in contains), said
    assert ("Of the" in said) == ("shown" in arms)
