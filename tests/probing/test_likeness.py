"""When two ways are the same: what a direction that reads weights may be off by, and what it may not."""

from __future__ import annotations

import pytest
import torch

from weightdecay.probing.walks import Likeness
from weightdecay.probing.watch import _ROUGHLY, SHRINK


def holds(off: float, relative: float) -> bool:
    """Whether a step of 0.1 may end `off` of it elsewhere."""
    w = torch.ones(3, dtype=torch.float64)
    now = w - 0.1
    return Likeness(SHRINK, relative).holds([w], [now], [now + off * 0.1])


@pytest.mark.parametrize(("off", "plain", "reading"), [
    (1e-6, True, True),  # a rounding of float64, made larger by some preconditioner
    (1e-4, False, True),  # one of float32 in an orthogonalisation
    (5e-4, False, True),
    (5e-3, False, False),
    (SHRINK, False, False),  # a step in which decay and none are mistaken
    (float("nan"), False, False),
])  # fmt: skip
def test_a_direction_that_reads_weights_may_be_off_by_a_thousandth_and_others_by_rounding(
    off: float, plain: bool, reading: bool
) -> None:
    assert holds(off, 0.0) is plain
    assert holds(off, _ROUGHLY) is reading


def test_a_difference_is_told_from_the_largest_step_of_late_and_not_for_ever() -> None:
    likeness = Likeness(SHRINK, _ROUGHLY)
    w = torch.zeros(1, dtype=torch.float64)
    assert likeness.holds([w], [w + 1.0], [w + 1.0])
    assert likeness.holds([w], [w], [w + 5e-4])
    for _ in range(100):
        likeness.holds([w], [w], [w])
    assert not likeness.holds([w], [w], [w + 5e-4])
