"""Every fault on every optimizer, and every optimizer without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import schedulefree
import torch
from examples.museum.exhibit import Loop
from examples.museum.language_model import two_groups
from torch import nn

import weightdecay
from tests.auditing.loops.parts import seeded, train

pytestmark = pytest.mark.long

Groups = list[dict[str, Any]]
LAMBDA = 0.1


def schedule_free(groups: Groups) -> Any:
    optimizer = schedulefree.AdamWScheduleFree(groups, lr=1e-3)
    optimizer.train()
    return optimizer


def fixed(groups: Groups) -> Any:
    """λ itself is taken off at each step."""
    return weightdecay.AdamW([{**g, "weight_decay": 1e-3 * g["weight_decay"]} for g in groups], lr=1e-3, rule="fixed")


OPTIMIZERS: dict[str, Callable[[Groups], Any]] = {
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=1e-3),
    "fused": lambda groups: torch.optim.AdamW(groups, lr=1e-3, fused=True),
    "foreach": lambda groups: torch.optim.AdamW(groups, lr=1e-3, foreach=True, amsgrad=True),
    "NAdam": lambda groups: torch.optim.NAdam(groups, lr=1e-3, decoupled_weight_decay=True),
    "RAdam": lambda groups: torch.optim.RAdam(groups, lr=1e-3, decoupled_weight_decay=True),
    "Adafactor": lambda groups: torch.optim.Adafactor(groups, lr=1e-2),
    "SGD": lambda groups: torch.optim.SGD(groups, lr=1e-2),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9),
    "Nesterov": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9, nesterov=True),
    "schedule-free": schedule_free,
    "our AdamW": lambda groups: weightdecay.AdamW(groups, lr=1e-3),
    "our fixed AdamW": fixed,
    "our cautious AdamW": lambda groups: weightdecay.AdamW(groups, lr=1e-3, rule="cautious"),
    "our Lion": lambda groups: weightdecay.Lion(groups, lr=1e-4),
    "our SGDW": lambda groups: weightdecay.SGDW(groups, lr=1e-2, momentum=0.9),
    "our Adafactor": lambda groups: weightdecay.Adafactor(groups, lr=1e-2),
    # λ·w goes through their moments, so that there is no amount to compare with.
    "Adam": lambda groups: torch.optim.Adam(groups, lr=1e-3),
    "Adamax": lambda groups: torch.optim.Adamax(groups, lr=1e-3),
    "Adagrad": lambda groups: torch.optim.Adagrad(groups, lr=1e-2),
    "RMSprop": lambda groups: torch.optim.RMSprop(groups, lr=1e-3),
}
OF_NO_AMOUNT = ("Adam", "Adamax", "Adagrad", "RMSprop")


def loop_of(name: str, groups: Groups | None = None, model: Any = None, *, steps: int = 3, **asked: Any) -> Loop:
    model = seeded() if model is None else model
    optimizer = OPTIMIZERS[name](groups or two_groups(model.parameters(), LAMBDA))
    train(model, optimizer, steps=steps)
    weight_decay = max(group["weight_decay"] for group in optimizer.param_groups)
    wanted = {"rule": "l2"} if name in OF_NO_AMOUNT else {}
    return Loop(model, optimizer, {"weight_decay": weight_decay, **wanted, **asked})


def healthy(name: str) -> Loop:
    return loop_of(name)


def nothing_asked(name: str) -> Loop:
    loop = loop_of(name)
    return loop._replace(asked={key: value for key, value in loop.asked.items() if key == "rule"})


def before_the_first_step(name: str) -> Loop:
    return loop_of(name, steps=0)


def at_a_rate_of_zero(name: str) -> Loop:
    loop = loop_of(name)
    for group in loop.optimizer.param_groups:
        group["lr"] = 0.0
    return loop


def with_hook(name: str, change: Callable[[nn.Parameter, float], Any], *, before: bool) -> Loop:
    loop = loop_of(name)

    @torch.no_grad()
    def hook(optimizer: Any, *_: Any) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                change(p, group["lr"] * LAMBDA if group["weight_decay"] else 0.0)

    register = loop.optimizer.register_step_pre_hook if before else loop.optimizer.register_step_post_hook
    register(hook)
    return loop


def decays_in_a_hook_too(name: str) -> Loop:
    return with_hook(name, lambda p, amount: p.mul_(1 - amount), before=True)


def taken_back_by_a_hook(name: str) -> Loop:
    return with_hook(name, lambda p, amount: p.div_(1 - amount), before=False)


def gains_decay(name: str) -> Loop:
    model = seeded()
    return loop_of(name, [{"params": list(model.parameters()), "weight_decay": LAMBDA}], model, policy="default")


def a_matrix_does_not_decay(name: str) -> Loop:
    model = seeded()
    groups, matrix = two_groups(model.parameters(), LAMBDA), model.blocks[0].up.weight
    groups[0]["params"] = [p for p in groups[0]["params"] if p is not matrix]
    groups[1]["params"].append(matrix)
    return loop_of(name, groups, model, policy="default")


def head_is_missing(name: str) -> Loop:
    model = seeded()
    return loop_of(name, two_groups([p for p in model.parameters() if p is not model.head.weight], LAMBDA), model)


def head_is_there_twice(name: str) -> Loop:
    model = seeded()
    loop = loop_of(name, model=model)
    loop.optimizer.param_groups[1]["params"].append(model.head.weight)
    return loop


def another_weight_decay_was_asked(name: str) -> Loop:
    loop = loop_of(name)
    return loop._replace(asked={**loop.asked, "weight_decay": 3 * loop.asked["weight_decay"]})


def another_rate_was_asked(name: str) -> Loop:
    loop = loop_of(name)
    return loop._replace(asked={**loop.asked, "lr": 3 * loop.optimizer.param_groups[0]["lr"]})


FAULTS: dict[Callable[[str], Loop], str | None] = {
    healthy: None,
    nothing_asked: None,
    before_the_first_step: None,
    at_a_rate_of_zero: None,
    decays_in_a_hook_too: "decays-twice",
    taken_back_by_a_hook: "not-decaying",
    gains_decay: "decays-exempt",
    a_matrix_does_not_decay: "exempt-matrix",
    head_is_missing: "missing",
    head_is_there_twice: "doubled",
    another_weight_decay_was_asked: "stale",
    another_rate_was_asked: "stale",
}
# What a hook does to y is averaged away by the step, and where λ is in the moments there is no amount.
UNTOLD = {
    (name, fault.__name__)
    for name in ("schedule-free", *OF_NO_AMOUNT)
    for fault in (decays_in_a_hook_too, taken_back_by_a_hook)
}


CASES = [(name, fault) for name in OPTIMIZERS for fault in FAULTS if (name, fault.__name__) not in UNTOLD]


@pytest.mark.parametrize(("name", "fault"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_a_fault_has_its_name_on_every_optimizer(name: str, fault: Callable[[str], Loop]) -> None:
    loop = fault(name)
    findings = weightdecay.audit(loop.model, loop.optimizer, **loop.asked).findings
    code = FAULTS[fault]
    assert {found.code for found in findings if found.severity != "note"} == (set() if code is None else {code})
