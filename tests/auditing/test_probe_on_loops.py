"""On every loop the probe says what a step does, measured by making it, and leaves the loop as it was."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import pytest
from examples.museum.collection import exhibits
from examples.museum.exhibit import Loop

import weightdecay
from tests.auditing.loops import gradients, hostile, mistakes, models, optimizers, rates, schedules
from tests.auditing.measuring import decay_per_step
from tests.auditing.witness import differences, facts_of

pytestmark = pytest.mark.long

LOOPS: dict[str, Callable[[], Loop]] = {
    **{make.__name__: make for module in (optimizers, schedules, rates, gradients, models) for make in module.LOOPS},
    **{one.make.__name__: one.make for one in (*hostile.LOOPS, *mistakes.LOOPS)},
    **{f"{one.project} {one.place}, wrong": one.wrong for one in exhibits()},
    **{f"{one.project} {one.place}, mended": one.mended for one in exhibits()},
}
# Where one step of the weights shows something else than the decay.
HIDDEN = {
    "schedule_free": "one step moves y by a part of it",
    "schedule_free_sgd": "one step moves y by a part of it",
    "our_AdamW_master": "the decay is in the master weights first",
    "our_AdamW_kahan": "the decay is in the compensation first",
    "optimi @02d8e75 adam.py, mended": "the decay is in the compensation first",
    "gradients_that_overflowed": "a step would make the weights NaN",
    "weights_set_to_unit_norm_after_each_step": "the norm takes back what decayed",
    "step_that_raises": "no step can be made",
    "step_that_wants_a_closure": "no step can be made",
}


@pytest.mark.parametrize("name", [name for name in LOOPS if name not in HIDDEN])
def test_the_probe_says_what_a_step_takes_from_each_tensor(name: str) -> None:
    measured, probed = decay_per_step(LOOPS[name]), weightdecay.probe(*LOOPS[name]()[:2])
    assert len(probed)

    together: dict[str, float] = defaultdict(float)  # a tensor that stands in two places decays twice
    uncertain: dict[str, float] = defaultdict(float)
    for tensor in probed:
        if tensor.has_gradient:
            assert tensor.realised is not None
            together[tensor.name] += tensor.realised
            uncertain[tensor.name] += tensor.uncertainty
    for tensor_name, seen in together.items():
        if measured.get(tensor_name) is not None and measured[tensor_name] == measured[tensor_name]:
            tolerance = max(0.03 * abs(measured[tensor_name]), 4 * uncertain[tensor_name], 1e-8)
            assert seen == pytest.approx(measured[tensor_name], abs=tolerance), tensor_name


@pytest.mark.parametrize("name", LOOPS)
def test_a_probe_leaves_the_loop_as_it_was(name: str) -> None:
    loop = LOOPS[name]()
    before = facts_of(loop)
    weightdecay.probe(loop.model, loop.optimizer)
    assert differences(before, facts_of(loop)) == []
