"""Controls that fail, come twice, or meet groups and states that were not there when they began."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import weightdecay
from tests.optim.test_control import OTHERS, PEAK, parameters, run
from weightdecay.errors import OptimizerError
from weightdecay.optim.adamw import AdamW
from weightdecay.optim.control import control
from weightdecay.schedules import Constant, Linear


def test_what_is_refused_leaves_no_hook_and_no_setting_behind() -> None:
    theirs, ours = parameters(), parameters()
    optimizer = torch.optim.AdamW(theirs, lr=PEAK, weight_decay=0.05)
    as_given = [set(group) for group in optimizer.param_groups]
    with pytest.raises(OptimizerError, match="above the declared peak"):
        control(optimizer, rule="independent", peak_lr=PEAK / 2, schedule=Constant(0.1))
    assert [set(group) for group in optimizer.param_groups] == as_given
    expected = run(torch.optim.AdamW(ours, lr=PEAK, weight_decay=0.05))
    assert all(torch.equal(a, b) for a, b in zip(run(optimizer), expected, strict=True))


def test_an_optimizer_is_controlled_once() -> None:
    """Two controls would decay twice, and the second would put back the first one's 0 for λ."""
    optimizer = torch.optim.SGD(parameters(), lr=PEAK, weight_decay=0.5)
    first = control(optimizer, rule="fixed")
    with pytest.raises(OptimizerError, match="under control already"):
        control(optimizer, rule="decoupled")
    first.remove()
    assert control(optimizer, rule="decoupled").decay_per_step() == pytest.approx([PEAK * 0.5])


def test_a_schedule_alone_leaves_our_optimizers_their_rule() -> None:
    optimizer = AdamW(parameters(), lr=PEAK, weight_decay=0.05, rule="independent")
    assert control(optimizer, schedule=Constant(0.3)).decay_per_step() == pytest.approx([0.3])


def test_another_rule_than_the_one_that_was_loaded_is_not_passed_over_in_silence() -> None:
    saved, resumed = (torch.optim.AdamW(parameters(), lr=PEAK, weight_decay=0.05) for _ in range(2))
    control(saved, rule="fixed")
    run(saved, last=2)
    resumed.load_state_dict(saved.state_dict())
    with pytest.raises(OptimizerError, match=r"'corrected' reaches no group: each has its own \(fixed\)"):
        control(resumed, rule="corrected", peak_lr=PEAK)
    assert control(resumed, rule="fixed").decay_per_step() == pytest.approx([0.05])


def test_groups_that_come_later_follow_the_rule_too() -> None:
    first, second = parameters()
    optimizer = torch.optim.SGD([first], lr=PEAK, weight_decay=0.25)
    control(optimizer, rule="fixed", schedule=Constant(0.25))
    optimizer.add_param_group({"params": [second], "weight_decay": 0.1})
    before = second.detach().clone()
    run(optimizer, zero=True, last=1)
    assert torch.equal(second, before * 0.75)
    optimizer.load_state_dict(
        torch.optim.SGD([{"params": [p]} for p in (first, second)], weight_decay=0.25).state_dict()
    )
    run(optimizer, zero=True, last=1)
    assert torch.equal(second, before * 0.75 * 0.75)


def test_a_later_group_without_a_peak_is_refused() -> None:
    first, second = parameters()
    optimizer = torch.optim.AdamW([first], lr=PEAK, weight_decay=0.25)
    control(optimizer, rule="independent", peak_lr=PEAK)
    optimizer.add_param_group({"params": [second]})
    with pytest.raises(OptimizerError, match="needs the peak lr"):
        run(optimizer, zero=True, last=1)


def test_a_schedule_that_stood_at_zero_is_resumed() -> None:
    """λ was 0 when the state was saved; whose share it is must not be lost with it."""
    first, second = parameters()

    def make() -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = [{"params": [first]}, {"params": [second], "weight_decay": 0.25}]
        return torch.optim.SGD(groups, lr=PEAK, weight_decay=0.5)

    saved, resumed, rising = make(), make(), Linear(0.0, 1.0, 10)
    control(saved, schedule=rising)
    run(saved, zero=True, last=1)
    assert [group["weight_decay"] for group in saved.param_groups] == [0, 0]
    resumed.load_state_dict(saved.state_dict())
    lr = resumed.param_groups[0]["lr"]
    assert control(resumed, schedule=rising).decay_per_step() == pytest.approx([lr * 0.1, lr * 0.05])


@pytest.mark.parametrize("name", ["torch AdamW", "torch SGD", "somebody's own", "ours"])
def test_saving_a_fresh_optimizer_under_control_is_no_step(name: str) -> None:
    """torch's checkpointing steps it at lr 0 to see its state; `fixed` decays at lr 0."""
    net = nn.Linear(3, 3)
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = {**OTHERS, "ours": AdamW}[name](net.parameters(), lr=PEAK, weight_decay=0.25)
    control(optimizer, rule="fixed", schedule=Linear(0.25, 0.0, 4))
    get_optimizer_state_dict(net, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert all(torch.equal(0.75 * a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copied_control_says_that_it_is_not_in_effect_and_the_copy_can_be_controlled_anew(copied: Any) -> None:
    optimizer = torch.optim.Adam(parameters(), lr=PEAK, weight_decay=0.05)
    held = control(optimizer, rule="fixed", schedule=Constant(0.1))
    theirs, copied_control = copied((optimizer, held))
    assert "not in effect" in repr(copied_control)
    assert "rule fixed, λ 0.1" in repr(held)
    assert "rule fixed, λ 0.1" in repr(control(theirs, rule="fixed", schedule=Constant(0.1)))
    held.remove()
    assert "not in effect" in repr(held)


@pytest.mark.parametrize("rule", ["decoupled", "fixed", "lr_squared", "cautious"])
@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop", "SGD"])
def test_hooks_that_come_after_control_set_lr_and_lambda_of_their_step(name: str, rule: Any) -> None:
    def set_both(optimizer: Any, *_: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = 0.05, 0.4

    def stepped(late: bool) -> torch.Tensor:
        p = torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))
        optimizer = getattr(torch.optim, name)([p], lr=0.1, weight_decay=0.2)
        control(optimizer, rule=rule)
        if late:
            optimizer.register_step_pre_hook(lambda *_: None)
            optimizer.register_step_pre_hook(set_both)
        for step in range(3):
            if late is (step == 1):
                optimizer.register_step_pre_hook(lambda *_: None)
            if not late:
                set_both(optimizer)
            p.grad = torch.linspace(-1, 2, 12).view(3, 4) + step
            optimizer.step()
        return p.detach()

    assert torch.equal(stepped(late=True), stepped(late=False))


@pytest.mark.parametrize("early", [False, True])
def test_hooks_after_a_masked_step_find_the_weights_that_it_leaves(early: bool) -> None:
    seen: list[torch.Tensor] = []
    p = torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))
    optimizer = torch.optim.Adam([p], lr=0.1, weight_decay=0.2)
    if early:
        optimizer.register_step_post_hook(lambda *_: seen.append(p.detach().clone()))
    control(optimizer, rule="cautious")
    if not early:
        optimizer.register_step_post_hook(lambda *_: seen.append(p.detach().clone()))
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.equal(seen[-1], p)


def test_a_removed_schedule_leaves_lambda_to_be_compared_with_the_plan_again() -> None:
    model = torch.nn.Linear(4, 4)
    plan = weightdecay.plan(model, weight_decay=0.1)
    optimizer = torch.optim.AdamW(plan.param_groups(lr=1e-2))
    held = control(optimizer, schedule=Linear(0.1, 0.0, steps=10))
    for _ in range(5):
        model(torch.randn(4, 4)).sum().backward()
        optimizer.step()
    assert plan.check(optimizer).ok
    held.remove()
    assert "the plan says 0.1" in str(plan.check(optimizer))
