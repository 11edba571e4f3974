"""Loops that are right give no error and no warning; loops that are wrong are called by the name of their fault."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from examples.museum.exhibit import Loop

import weightdecay
from tests.auditing.loops import gradients, hostile, mistakes, models, optimizers, rates, schedules, trainers
from tests.auditing.loops.parts import Hostile
from tests.auditing.measuring import decay_per_step
from tests.auditing.witness import differences, facts_of

HEALTHY: list[Callable[[], Loop]] = [
    make for module in (optimizers, schedules, rates, gradients, models) for make in module.LOOPS
]
HOSTILE = [*hostile.LOOPS, *mistakes.LOOPS]

# Where one step takes something else than lr·λ, or where one step cannot tell.
OF_ANOTHER_FORM = {
    "lars": "the rate is the tensor's own",
    "dampened_momentum": "λ·w is dampened with the gradient",
    "no_step_yet_by_its_own_warm_up": "no step is made yet",
    "small_rate_of_a_fine_tuning": "float32 removes too much this near to its floor",
    "weights_clipped_after_each_step": "what is clipped is clipped in both",
    "rows_of_the_head_held_below_a_norm": "the norm takes back what decayed",
    "sgd_with_nesterov_asked_by_a_policy": "λ·w enters the momentum and the step",
    "adam_with_l2_that_is_wanted": "λ·w goes through the moments",
    "schedule_free": "the decay acts at y",
    "schedule_free_sgd": "the decay acts at y",
    "controlled_to_be_independent": "λ itself",
    "our_AdamW_independent": "λ itself",
    "our_AdamW_fixed": "λ itself",
    "our_SGDW_fixed": "λ itself",
    "our_AdamW_lr_squared": "lr²·λ",
    "our_AdamW_cautious": "half of the weights at a time",
    "our_Lion_cautious": "half of the weights at a time",
    "our_AdamW_master": "one step moves few bfloat16 weights",
    "our_AdamW_kahan": "one step moves few bfloat16 weights",
    "our_AdamW_stochastic": "one step moves few bfloat16 weights",
    "bfloat16_weights_with_rounding_that_keeps_decay": "one step moves few bfloat16 weights",
    "last_steps_of_an_anneal_below_what_float32_can_tell": "below float32's floor",
    "gradients_that_overflowed": "gradients are not finite",
}


def id_of(loop: Callable[[], Loop] | Hostile) -> str:
    return f"{loop.make.__name__} {loop.code}" if isinstance(loop, Hostile) else loop.__name__


def every(nth: int, loops: Sequence[Any]) -> list[Any]:
    """All loops, of which the default suite takes every nth, so that it stays short."""
    return [
        pytest.param(loop, id=id_of(loop), marks=[] if index % nth == 0 else pytest.mark.long)
        for index, loop in enumerate(loops)
    ]


def groups_of(loop: Loop) -> list[tuple[str, Any, dict[str, Any]]]:
    names = {id(p): name for name, p in loop.model.named_parameters()}
    groups = [group for optimizer in loop.optimizers for group in optimizer.param_groups]
    return [(names[id(p)], p, group) for group in groups for p in group["params"] if id(p) in names]


@pytest.mark.long
@pytest.mark.parametrize("make", [make for make in HEALTHY if make.__name__ not in OF_ANOTHER_FORM], ids=id_of)
def test_a_healthy_loop_takes_lr_times_weight_decay_off_what_has_a_gradient(make: Callable[[], Loop]) -> None:
    seen = decay_per_step(make)
    for name, p, group in groups_of(make()):
        asked = float(group["lr"]) * float(group.get("weight_decay", 0.0)) if p.grad is not None else 0.0
        if p.detach().any():
            assert seen[name] == pytest.approx(asked, rel=0.02, abs=1e-9), name


WRONG = [one for one in HOSTILE if one.code not in ("opaque", "by-design", "coupled", "decoupled")]


@pytest.mark.long
@pytest.mark.parametrize("one", WRONG, ids=id_of)
def test_a_hostile_loop_is_really_wrong(one: Hostile) -> None:
    seen = decay_per_step(one.make)
    loop = one.make()
    rates = {name: float(group["lr"]) for name, _, group in groups_of(loop)}
    weight_decay = float(loop.asked.get("weight_decay", 0.1))
    for name in one.tensors:
        share = seen[name] / (weight_decay * rates.get(name, 1e-3))
        match one.code:
            case "not-decaying" | "lost-to-rounding" | "ignored-key" | "exempt-matrix" | "missing":
                assert share < 0.5
            case "decays-twice":
                assert share > 1.5
            case "decays-exempt" | "idle-decay" | "doubled":
                assert share > 0.5
            case "stale" | "wrong-scale":
                assert abs(seen[name] / (weight_decay * loop.asked.get("lr", rates[name])) - 1) > 0.5


@pytest.mark.parametrize("one", [one for one in HOSTILE if one.code in ("coupled", "decoupled")], ids=id_of)
def test_hostile_loops_couple_and_decouple_as_their_names_say(one: Hostile) -> None:
    seen = decay_per_step(one.make)
    follows = [seen[name] == pytest.approx(1e-4, rel=0.02) for name in one.tensors]
    assert all(follows) if one.code == "decoupled" else not any(follows)


def test_rows_that_are_normalised_after_each_step_have_norm_1() -> None:
    head: Any = hostile.weights_set_to_unit_norm_after_each_step().model
    torch.testing.assert_close(head.head.weight.norm(dim=1), torch.ones(48))


@pytest.mark.parametrize("make", [hostile.step_that_raises, hostile.step_that_wants_a_closure])
def test_a_step_that_cannot_be_taken_raises(make: Callable[[], Loop]) -> None:
    loop = make()
    for p in loop.model.parameters():
        p.grad = torch.zeros_like(p)
    with pytest.raises((RuntimeError, TypeError)):
        loop.optimizer.step()


def said_of(loop: Loop) -> list[tuple[str, str, tuple[str, ...]]]:
    """Errors and warnings; whatever an audit finds, the loop is left as it was."""
    before = facts_of(loop)
    findings = weightdecay.audit(loop.model, loop.optimizer, **loop.asked).findings
    assert differences(before, facts_of(loop)) == []
    return [(found.code, found.severity, found.tensors) for found in findings]


@pytest.mark.parametrize("make", every(4, HEALTHY))
def test_a_healthy_loop_has_no_error_and_no_warning(make: Callable[[], Loop]) -> None:
    assert [found for found in said_of(make()) if found[1] != "note"] == []


@pytest.mark.long
@pytest.mark.transformers
def test_the_trainers_groups_are_right_by_its_own_policy() -> None:
    assert [found for found in said_of(trainers.trainers_groups_by_transformers_policy()) if found[1] != "note"] == []


@pytest.mark.parametrize("one", every(3, HOSTILE))
def test_a_hostile_loop_is_called_by_the_name_of_its_fault(one: Hostile) -> None:
    found = said_of(one.make())
    assert any(f[:2] == (one.code, one.severity) and set(one.tensors) <= set(f[2]) for f in found), found
    # One tensor, one cause: nothing else is said of them but what is only worth knowing.
    others = {f[0] for f in found if f[1] != "note" and set(one.tensors) & set(f[2])} - {one.code}
    assert others == set()


@pytest.mark.long
@pytest.mark.parametrize("make", [*HEALTHY[::9], *(one.make for one in hostile.LOOPS[::5])], ids=id_of)
def test_an_audited_run_goes_on_as_its_twin_that_was_not(make: Callable[[], Loop]) -> None:
    twins = [gone_on(make(), audits=audits) for audits in (True, False)]
    assert differences(*twins) == []


def gone_on(loop: Loop, *, audits: bool) -> dict[str, Any]:
    torch.manual_seed(1)
    for _ in range(2):
        if audits:
            weightdecay.audit(loop.model, loop.optimizer, **loop.asked)
        for optimizer in loop.optimizers:
            optimizer.step()
    return {name: p.detach().clone().view(torch.uint8).tolist() for name, p in loop.model.named_parameters()}
