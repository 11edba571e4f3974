"""What `plan.check` sees: groups beside the plan, and a step beside what the groups ask for."""

from __future__ import annotations

import copy
import pickle
import types
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import weightdecay
from tests.covering import covering
from tests.probing.optimizers import DecaysLater
from weightdecay.errors import OptimizerError, PlanError
from weightdecay.planning.decay_plan import DecayPlan
from weightdecay.rules import FIXED, RULES, Rule
from weightdecay.schedules import Constant, Linear

LR = 1e-2


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4))


def planned(**settings: Any) -> DecayPlan:
    return weightdecay.plan(net(), weight_decay=0.1, **settings)


PLAIN = ["AdamW", "NAdam decoupled", "RAdam decoupled", "Adafactor"]


def torchs(name: str, groups: Any) -> Any:
    cls = getattr(torch.optim, name.split()[0])
    return cls(groups, **({"decoupled_weight_decay": True} if "decoupled" in name else {}))


@pytest.mark.parametrize(("name", "lr"), covering(PLAIN, [LR, 3e-4, 0.0]))
def test_an_optimizer_that_decays_as_planned_carries_the_plan(name: str, lr: float) -> None:
    plan = planned()
    found = plan.check(torchs(name, plan.param_groups(lr=lr)))
    assert found.ok, found
    assert not found.opaque


OURS = ["AdamW", "Lion", "SGDW", "Adafactor", "Muon"]


@pytest.mark.parametrize(("name", "rule"), covering(OURS, [name for name in RULES if name != "l2"]))
def test_ours_carry_the_plan_under_every_rule(name: str, rule: Any) -> None:
    plan = planned()
    assert plan.check(getattr(weightdecay, name)(plan, lr=LR, rule=rule)).ok


@pytest.mark.parametrize("name", ["Adam", "SGD", "RMSprop", "Adagrad", "Adadelta", "NAdam", "RAdam", "Adamax"])
def test_decay_through_the_gradient_is_a_fault_unless_it_is_meant(name: str) -> None:
    plan = planned()
    optimizer = getattr(torch.optim, name)(plan.param_groups(lr=LR))
    said = str(plan.check(optimizer))
    if name == "SGD":  # of which both are one
        assert plan.check(optimizer).ok or "coupled" in said
        return
    assert f"{name} adds λ·w to the gradient (coupled decay)" in said
    assert plan.check(optimizer, rule="l2").ok


@pytest.mark.parametrize("name", ["Rprop", "SparseAdam"])
def test_a_key_that_an_optimizer_does_not_read_is_a_fault(name: str) -> None:
    plan = planned()
    found = plan.check(getattr(torch.optim, name)(plan.param_groups(lr=LR)))
    assert f"{name} does not read weight_decay, so λ 0.1 decays nothing" in str(found)


@pytest.mark.parametrize("after", [6, 40, 200])
def test_a_decay_that_begins_later_is_no_fault_and_said_to_have_no_number(after: int) -> None:
    plan = planned()
    found = plan.check(DecaysLater(plan.param_groups(lr=LR), after))
    assert not found.faults
    assert f"changes nothing in its next {after} steps" in str(found)


def test_a_decay_that_no_group_asks_for_is_a_fault() -> None:
    plan = planned()
    said = str(plan.check(torch.optim.ASGD(plan.param_groups(lr=LR))))  # by its `lambd`
    assert "group 1 'no_decay': ASGD removes 1e-06 of its weights at each step even if weight_decay is 0" in said


class ByItself(torch.optim.SGD):
    """Decays by an attribute, whatever its groups say."""

    wd = 0.2

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - self.wd).sub_(p.grad, alpha=group["lr"])


class Fixed(torch.optim.SGD):
    """Decays by λ at each step, as pytorch_optimizer's `fixed_decay` does."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["weight_decay"]).sub_(p.grad, alpha=group["lr"])


def test_an_optimizer_with_a_decay_of_its_own_is_a_fault_for_what_should_not_decay_too() -> None:
    plan = planned()
    found = plan.check(ByItself(plan.param_groups(lr=LR), lr=LR))
    assert "group 1 'no_decay': ByItself removes 0.2 of its weights at each step even if weight_decay is 0" in str(
        found
    )


def test_another_amount_than_lr_times_lambda_is_a_fault_with_both_numbers() -> None:
    plan = planned()
    optimizer = Fixed(plan.param_groups(lr=LR), lr=LR)
    found = plan.check(optimizer)
    assert "removes 0.1 of a weight where lr·λ = 0.001 is meant: weightdecay.convert" in str(found)
    assert plan.check(optimizer, rule="fixed").ok


# --- hooks


def test_decay_that_a_hook_adds_is_a_fault_and_moves_no_weight() -> None:
    plan = planned()
    model: Any = plan._model
    before = copy.deepcopy(model.state_dict())
    optimizer: Any = torch.optim.AdamW(plan.param_groups(lr=LR))
    optimizer.register_step_pre_hook(
        lambda o, *_: [q.data.mul_(1 - g["lr"] * 0.1) for g in o.param_groups for q in g["params"]]
    )
    said = str(plan.check(optimizer))
    assert "group 0 'decay': with its step hooks AdamW removes 0.002" in said
    assert "group 1 'no_decay': with its step hooks AdamW removes 0.001" in said
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_hook_that_reaches_for_the_model_itself_is_kept_from_it_and_said_to_be_unseen() -> None:
    plan = planned()
    model: Any = plan._model
    before = copy.deepcopy(model.state_dict())
    optimizer: Any = torch.optim.AdamW(plan.param_groups(lr=LR))
    optimizer.register_step_post_hook(lambda *_: [p.data.mul_(0.5) for p in model.parameters()])
    found = plan.check(optimizer)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert any("hooks of AdamW" in reason for reason in found.opaque)


def halve(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.data.mul_(0.5)


@pytest.mark.parametrize("register", [register_optimizer_step_pre_hook, register_optimizer_step_post_hook])
def test_hooks_of_all_optimizers_are_said_to_be_unseen(register: Any) -> None:
    plan = planned()
    optimizer = torch.optim.AdamW(plan.param_groups(lr=LR))
    handle = register(halve)
    try:
        assert any("hooks of the steps of all optimizers (halve)" in reason for reason in plan.check(optimizer).opaque)
    finally:
        handle.remove()
    assert not plan.check(optimizer).opaque


def test_a_function_in_the_place_of_step_is_said_to_be_unseen_and_a_schedulers_is_none() -> None:
    plan = planned()
    optimizer: Any = torch.optim.AdamW(plan.param_groups(lr=LR))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    assert not plan.check(optimizer).opaque
    own = optimizer.step

    def step(self: Any, closure: Any = None) -> Any:
        halve(self)
        return own(closure)

    optimizer.step = types.MethodType(step, optimizer)
    del own._wrapped_by_lr_sched  # or a second scheduler is content with the first
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    assert any(
        "step` does, which stands in the place of `step` of this AdamW" in r for r in plan.check(optimizer).opaque
    )


def test_a_hook_that_only_looks_on_is_none() -> None:
    plan = planned()
    optimizer: Any = torch.optim.AdamW(plan.param_groups(lr=LR))
    optimizer.register_step_post_hook(lambda o, *_: [float(p.norm()) for g in o.param_groups for p in g["params"]])
    assert plan.check(optimizer).ok


# --- under control


@pytest.mark.parametrize(
    ("name", "rule"), covering(["AdamW", "Adam", "NAdam", "SGD"], ["decoupled", "independent", "fixed"])
)
def test_an_optimizer_under_control_carries_the_plan(name: str, rule: Any) -> None:
    plan = planned()
    optimizer = getattr(torch.optim, name)(plan.param_groups(lr=LR))
    weightdecay.control(optimizer, rule=rule, peak_lr=LR)
    assert plan.check(optimizer).ok, plan.check(optimizer)


@pytest.mark.parametrize(
    ("name", "rule", "lr", "scheduled"),
    covering(["AdamW", "Adam", "NAdam", "SGD", "RMSprop", "Rprop"], list(RULES), [LR, 0.0], [False, True]),
)
def test_no_rule_that_control_accepts_is_a_fault_at_any_lr_or_under_a_schedule(
    name: str, rule: Any, lr: float, scheduled: bool
) -> None:
    plan = planned()
    optimizer = getattr(torch.optim, name)(plan.param_groups(lr=LR))
    for group in optimizer.param_groups:
        group["lr"] = lr
    try:
        weightdecay.control(
            optimizer, rule=rule, peak_lr=LR, schedule=Linear(0.1, 0.0, steps=10) if scheduled else None
        )
    except OptimizerError:  # such as initial weights, and λ·w in the gradient of AdamW
        return
    assert plan.check(optimizer, rule="l2" if rule == "l2" else None).ok


@pytest.mark.parametrize("way", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_a_copy_that_lost_its_control_is_a_fault(way: Any) -> None:
    holder: Any = nn.Module()
    holder.net = net()
    plan = weightdecay.plan(holder.net, weight_decay=0.1)
    optimizer = torch.optim.AdamW(plan.param_groups(lr=LR))
    weightdecay.control(optimizer, rule="independent", peak_lr=LR)
    twin, optimizer_of_twin = way((holder.net, optimizer))
    said = str(plan.on(twin).check(optimizer_of_twin))
    assert "has the rule 'independent', and nothing on this AdamW makes it" in said
    assert "control the copy anew" in said


def test_lambda_and_lr_in_float32_are_those_of_the_plan() -> None:
    plan = planned(overrides=[weightdecay.Override("2.weight", None, lr_multiplier=0.3)])
    for key in ("lr", "weight_decay"):
        groups = [{**group, key: torch.tensor(group[key])} for group in plan.param_groups(lr=LR)]
        assert plan.check(torch.optim.AdamW(groups)).ok
    off = [{**group, "weight_decay": group["weight_decay"] * (1 + 1e-5)} for group in plan.param_groups(lr=LR)]
    assert "has λ 0.100001, the plan says 0.1" in str(plan.check(torch.optim.AdamW(off)))


class HandingOn(torch.optim.Optimizer):
    """As torch's PostLocalSGDOptimizer: the groups and the state of what it wraps, and no defaults."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.state, self.param_groups = inner, inner.state, inner.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


def test_a_wrapper_of_what_makes_its_rules_has_lost_no_control() -> None:
    plan = planned()
    theirs = torch.optim.AdamW(plan.param_groups(lr=LR))
    weightdecay.control(theirs, rule="independent", peak_lr=LR)
    for inner in (weightdecay.AdamW(plan, lr=LR, rule="independent"), theirs):
        assert plan.check(HandingOn(inner)).ok
    assert "nothing on this HandingOn makes it" in str(plan.check(HandingOn(copy.deepcopy(theirs))))


def test_our_own_schedule_of_lambda_is_no_fault_and_one_lost_share_is() -> None:
    model = net()
    plan = weightdecay.plan(model, overrides=[weightdecay.Override("2.weight", 0.5)])
    optimizer = weightdecay.AdamW(plan, lr=LR)
    weightdecay.control(optimizer, schedule=Linear(0.1, 0.0, steps=10))
    for step in range(12):
        model(torch.randn(4, 8)).sum().backward()
        optimizer.step()
        if step in (0, 6, 11):  # in the midst, and once λ is 0
            assert plan.check(optimizer).ok, plan.check(optimizer)
    optimizer.param_groups[0]["decay_multiplier"] = 0.7
    assert "has decay_multiplier 0.7, the plan says 1" in str(plan.check(optimizer))


def test_a_lambda_that_no_schedule_set_is_a_fault() -> None:
    plan = planned()
    optimizer = torch.optim.AdamW(plan.param_groups(lr=LR))
    optimizer.param_groups[0]["weight_decay"] = 0.08
    assert "has λ 0.08, the plan says 0.1" in str(plan.check(optimizer))
    weightdecay.apply_schedules(optimizer, 3, weight_decay=Constant(0.08))
    assert plan.check(optimizer).ok


# --- rates


def test_a_lost_lr_multiplier_is_a_fault_and_a_schedule_that_keeps_it_is_none() -> None:
    plan = planned(overrides=[weightdecay.Override("0.weight", None, lr_multiplier=10.0)])
    groups = plan.param_groups(lr=LR)
    kept = torch.optim.AdamW(groups)
    assert plan.check(kept).ok
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(kept, 10)
    for _ in range(3):
        kept.step()
        scheduler.step()
    assert plan.check(kept).ok
    for lost in ([{**g, "lr": LR} for g in groups], [{**g, "lr": LR, "lr_scale": g["lr_multiplier"]} for g in groups]):
        assert "one of its lr multipliers is lost" in str(plan.check(torch.optim.AdamW(lost)))


# --- several optimizers


def test_several_optimizers_carry_one_plan_together_and_alone_they_do_not() -> None:
    plan = planned()
    groups = plan.param_groups(lr=LR)
    one, other = (torch.optim.AdamW([dict(group)]) for group in groups)
    assert plan.check([one, other]).ok
    assert "in no group and will not train" in str(plan.check(one))
    assert "listed more than once" in str(plan.check([one, other, torch.optim.SGD([dict(groups[1])])]))
    said = str(plan.check([torch.optim.Adam([dict(groups[0])]), other]))
    assert "of Adam: Adam adds λ·w to the gradient" in said
    assert "AdamW:" not in said


@pytest.mark.parametrize("key", ["weigth_decay", "wieght_decay", "weight_decy"])
def test_a_misspelt_key_is_a_fault_with_the_nearest_name(key: str) -> None:
    plan = planned()
    groups = plan.param_groups(lr=LR)
    assert f"has '{key}', which nothing reads: did you mean 'weight_decay'?" in str(
        plan.check(torch.optim.AdamW([{**group, key: 0.3} for group in groups]))
    )


# --- shares, rules and what is given


def test_a_lambda_out_of_its_share_is_a_fault_while_a_schedule_sets_lambda() -> None:
    plan = planned(overrides={"2.weight": 0.5})
    optimizer = torch.optim.AdamW(plan.param_groups(lr=LR))
    weightdecay.apply_schedules(optimizer, 3, weight_decay=0.04)
    assert plan.check(optimizer).ok
    optimizer.param_groups[1]["weight_decay"] = 0.5
    assert "λ are not in the proportions of their shares" in str(plan.check(optimizer))


def test_one_group_for_tensors_of_two_lr_multipliers_is_a_fault() -> None:
    model: Any = net()
    plan = weightdecay.plan(model, overrides=[weightdecay.Override("0.weight", None, lr_multiplier=10.0)])
    decaying = [model[0].weight, model[2].weight]
    rest = [p for p in model.parameters() if all(p is not one for one in decaying)]
    groups = [{"params": decaying, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    assert "group 0 has one lr for tensors whose lr multipliers the plan keeps apart: 1, 10" in str(
        plan.check(torch.optim.AdamW(groups, lr=LR))
    )


@pytest.mark.parametrize("rule", [FIXED, "fixed", Rule("mine", lr_power=0)])
def test_a_rule_that_is_given_says_how_much_a_step_should_remove(rule: Any) -> None:
    plan = planned()
    assert plan.check(Fixed(plan.param_groups(lr=LR), lr=LR), rule=rule).ok
    for other in ("lr_squared", Rule("other", lr_power=2)):
        found = plan.check(Fixed(plan.param_groups(lr=LR), lr=LR), rule=other)
        assert "removes 0.1 of a weight where 1e-05 is meant" in str(found)


def test_a_rule_on_groups_that_no_control_makes_is_a_fault_beside_hooks_of_others_too() -> None:
    plan = planned()
    optimizer = torch.optim.AdamW([{**group, "rule": "independent"} for group in plan.param_groups(lr=LR)])
    optimizer.register_step_pre_hook(lambda *_: None)
    assert "control the copy anew" in str(plan.check(optimizer))


def test_plain_sgd_decays_through_the_gradient_and_beside_it_alike() -> None:
    plan = planned()
    optimizer = torch.optim.SGD(plan.param_groups(lr=LR))
    assert plan.check(optimizer).ok
    assert plan.check(optimizer, rule="l2").ok


@pytest.mark.parametrize("given", [None, 3, [], [3], "AdamW", nn.Linear(2, 2), torch.optim.AdamW])
def test_what_is_no_optimizer_is_named(given: Any) -> None:
    plan = planned()
    for ask in (plan.check, plan.add_to):
        with pytest.raises(PlanError, match=r"optimizer is .*: give a torch optimizer"):
            ask(given)


@pytest.mark.parametrize("rule", ["l3", 3, {"name": "x"}, True])
def test_what_is_no_rule_is_named(rule: Any) -> None:
    plan = planned()
    with pytest.raises(PlanError, match="unknown rule"):
        plan.check(torch.optim.AdamW(plan.param_groups(lr=LR)), rule=rule)


@pytest.mark.parametrize("bad", [None, "0.1", [0.1], float("nan"), float("inf"), -1.0, True, torch.tensor([1.0, 2.0])])
@pytest.mark.parametrize("key", ["lr", "weight_decay", "lr_multiplier", "decay_multiplier"])
def test_settings_that_are_no_amounts_are_named_by_check_and_control(key: str, bad: Any) -> None:
    net = nn.Linear(4, 3)
    plan = weightdecay.plan(net, weight_decay=0.1)
    optimizer = torch.optim.AdamW(plan.param_groups(lr=0.1))
    optimizer.param_groups[1][key] = bad
    assert any(f"group 1 'no_decay' has {key} " in fault for fault in plan.check(optimizer).faults)
    if "multiplier" not in key:
        with pytest.raises(OptimizerError, match=f"has {key} .*: it must be a finite number"):
            weightdecay.control(optimizer, rule="fixed")
