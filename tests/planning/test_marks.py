"""What a model's author wrote on tensors: honoured as it is meant, shown as the reason, never silently overruled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import weightdecay
from weightdecay import Override, PlanError
from weightdecay.planning.lockfile import read_lock, write_lock
from weightdecay.planning.render import story
from weightdecay.schedules import Linear


class Net(nn.Module):
    """Two matrices, of which tests mark one."""

    def __init__(self) -> None:
        super().__init__()
        self.marked = nn.Linear(6, 6)
        self.plain = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.plain(self.marked(x))
        return out


def marked(**attributes: Any) -> Net:
    model = Net()
    for name, value in attributes.items():
        setattr(model.marked.weight, name, value)
    return model


class NoWeightDecayParameter(nn.Parameter):
    """As several public repositories write it."""


def of_its_class() -> Net:
    model = Net()
    model.marked.weight = NoWeightDecayParameter(torch.randn(6, 6))
    return model


def with_method(**methods: Callable[[Any], Any]) -> Net:
    model: Net = type("Listing", (Net,), methods)()
    return model


def names_it(_: Any) -> set[str]:
    return {"marked.weight"}


def says_a_word(_: Any) -> set[str]:
    return {"rked.we"}


EXEMPTING: dict[str, Callable[[], nn.Module]] = {
    "its `_no_weight_decay`": lambda: marked(_no_weight_decay=True),
    "its `no_weight_decay`": lambda: marked(no_weight_decay=True),
    "its `_no_wd`": lambda: marked(_no_wd=True),
    "its `skip_weight_decay`": lambda: marked(skip_weight_decay=True),
    "its `_optim`": lambda: marked(_optim={"weight_decay": 0.0}),
    "its `_weight_decay`": lambda: marked(_weight_decay=0.0),
    "its `optim_overrides`": lambda: marked(optim_overrides={"optimizer": {"weight_decay_scale": 0}}),
    "its class `NoWeightDecayParameter`": of_its_class,
    "the model's `no_weight_decay()`": lambda: with_method(no_weight_decay=names_it),
    "the model's `no_weight_decay_keywords()`": lambda: with_method(no_weight_decay_keywords=says_a_word),
}


@pytest.mark.parametrize("where", EXEMPTING)
@pytest.mark.parametrize("λ", [0.1, 0.0])
def test_each_way_to_exempt_is_honoured_and_is_the_reason(where: str, λ: float) -> None:
    plan = weightdecay.plan(EXEMPTING[where](), λ)
    assert not plan["marked.weight"].decays
    assert plan["marked.weight"].reason == f"exempt by its author: {where}"
    assert plan["marked.weight"].given
    assert plan["plain.weight"].decays
    assert plan["marked.weight"].role == plan["plain.weight"].role  # what it is for, no mark changes
    assert where in str(plan)


@pytest.mark.parametrize("where", EXEMPTING)
def test_a_mark_inside_a_larger_model_counts_there_and_says_where(where: str) -> None:
    inner = EXEMPTING[where]()
    plan = weightdecay.plan(nn.ModuleDict({"body": inner, "other": Net()}), trace=False)
    assert not plan["body.marked.weight"].decays
    assert plan["body.plain.weight"].decays
    assert plan["other.marked.weight"].decays  # the keyword of one model says nothing of its neighbour
    assert where.replace("the model's `", "`body.") in plan["body.marked.weight"].reason


def test_a_module_may_exempt_all_that_it_holds() -> None:
    model = Net()
    model.marked.no_weight_decay = True  # type: ignore[assignment]
    plan = weightdecay.plan(model)
    assert not plan["marked.weight"].decays
    assert plan["plain.weight"].decays


@pytest.mark.parametrize("value", [False, None, 0, {}, "yes", {"optimizer": None}, {"weight_decay": None}, 3.5, [1]])
def test_what_is_no_mark_changes_nothing(value: Any) -> None:
    names = ("_no_weight_decay", "no_weight_decay", "_no_wd", "_optim", "optim_overrides")
    model = marked(**dict.fromkeys(names, value))
    assert weightdecay.plan(model)["marked.weight"].decays


def test_a_decay_of_its_own_may_stand_alone() -> None:
    tensor = weightdecay.plan(marked(_weight_decay=0.02), 0.1)["marked.weight"]
    assert tensor.weight_decay == 0.02
    assert tensor.multiplier == pytest.approx(0.2)
    assert tensor.reason == "λ 0.02 by its author: its `_weight_decay`"


# --- rates


@pytest.mark.parametrize("λ", [0.1, 0.05, 0.013, 3.0])
def test_rates_of_its_own_stay_what_they_are_whatever_the_runs_are(λ: float) -> None:
    plan = weightdecay.plan(marked(_optim={"weight_decay": 0.05, "lr": 1e-3}), λ)
    tensor = plan["marked.weight"]
    assert (tensor.weight_decay, tensor.lr) == (0.05, 1e-3)
    assert tensor.multiplier == pytest.approx(0.05 / λ)
    assert tensor.reason == "λ 0.05, lr 0.001 by its author: its `_optim`"
    for lr in (6e-4, 1e-3, 0.5):
        (group,) = [group for group in plan.param_groups(lr=lr) if "marked.weight" in group["param_names"]]
        assert (group["lr"], group["weight_decay"]) == (1e-3, 0.05)
        assert group["lr_multiplier"] == pytest.approx(1e-3 / lr)
        assert group["decay_multiplier"] == pytest.approx(0.05 / λ)


def test_a_schedule_scales_them_and_the_optimizer_still_carries_the_plan() -> None:
    plan = weightdecay.plan(marked(_optim={"weight_decay": 0.05, "lr": 1e-3}), 0.1)
    optimizer = torch.optim.AdamW(plan.param_groups(lr=6e-4))
    plan.check(optimizer).raise_if_wrong()
    halved = Linear(6e-4, 0.0, steps=10), Linear(0.1, 0.0, steps=10)
    weightdecay.apply_schedules(optimizer, 5, lr=halved[0], weight_decay=halved[1])
    (group,) = [group for group in optimizer.param_groups if "marked.weight" in group["param_names"]]
    assert group["lr"] == pytest.approx(5e-4)
    assert group["weight_decay"] == pytest.approx(0.025)
    plan.check(optimizer).raise_if_wrong()


def test_a_lost_rate_is_found_by_the_check() -> None:
    plan = weightdecay.plan(marked(_optim={"lr": 1e-2}))
    optimizer = torch.optim.AdamW(plan.param_groups(lr=1e-3))
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    assert any("lr multipliers is lost" in fault for fault in plan.check(optimizer).faults)


@pytest.mark.parametrize("λ", [0.0, 5e-324])
def test_of_a_lambda_of_zero_a_decay_of_its_own_is_no_share_and_stays(λ: float) -> None:
    plan = weightdecay.plan(marked(_optim={"weight_decay": 0.05}), λ)
    groups = {name: group for group in plan.param_groups(lr=1e-3) for name in group["param_names"]}
    assert groups["marked.weight"]["weight_decay"] == 0.05
    assert groups["plain.weight"]["weight_decay"] == λ
    assert groups["marked.weight"]["decay_multiplier"] == 1.0
    plan.check(torch.optim.AdamW(plan.param_groups(lr=1e-3))).raise_if_wrong()


def test_of_an_lr_of_zero_a_rate_of_its_own_is_no_share_and_stays() -> None:
    plan = weightdecay.plan(marked(_optim={"lr": 0.01}))
    groups = {name: group for group in plan.param_groups(lr=0.0) for name in group["param_names"]}
    assert (groups["marked.weight"]["lr"], groups["plain.weight"]["lr"]) == (0.01, 0.0)


def test_a_rate_alone_leaves_the_decay_to_the_policy() -> None:
    plan = weightdecay.plan(marked(_optim={"lr": 1e-3}), policy="none")
    tensor = plan["marked.weight"]
    assert (tensor.decays, tensor.lr, tensor.given) == (False, 1e-3, False)
    assert tensor.reason.startswith("linear weight: ")
    assert tensor.reason.endswith("; lr 0.001 by its author: its `_optim`")
    assert "lr:        0.001, whatever the run's" in story(tensor)


@given(share=st.floats(0.0, 4.0), lr_share=st.floats(0.01, 4.0), λ=st.floats(0.001, 1.0))
def test_shares_are_of_the_runs_rates(share: float, lr_share: float, λ: float) -> None:
    overrides = {"optimizer": {"weight_decay_scale": share, "lr_scale": lr_share}}
    plan = weightdecay.plan(marked(optim_overrides=overrides), λ, trace=False)
    tensor = plan["marked.weight"]
    assert (tensor.multiplier, tensor.lr_multiplier) == (share, lr_share)
    assert tensor.weight_decay == pytest.approx(share * λ)


@pytest.mark.parametrize("attribute", ["lr_scale", "_lr_scale", "lr_mult"])
def test_an_lr_scale_on_a_tensor_is_its_share(attribute: str) -> None:
    assert weightdecay.plan(marked(**{attribute: 0.25}))["marked.weight"].lr_multiplier == 0.25


def test_what_no_plan_carries_is_named() -> None:
    plan = weightdecay.plan(marked(_optim={"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": "small"}))
    assert "its `_optim` also says betas, weight_decay 'small'" in plan["marked.weight"].reason


def test_a_lock_keeps_them(tmp_path: Path) -> None:
    for λ in (0.1, 0.0):
        plan = weightdecay.plan(marked(_optim={"weight_decay": 0.05, "lr": 1e-3}), λ)
        write_lock(plan, tmp_path / "plan.json")
        locked = read_lock(tmp_path / "plan.json")
        assert list(locked) == list(plan)
        assert "lr 0.001 → the run's" in str(plan.diff(weightdecay.plan(Net(), λ)))


def test_new_tensors_join_an_optimizer_at_their_own_rates() -> None:
    model = marked(_optim={"weight_decay": 0.05, "lr": 1e-3})
    model.marked.requires_grad_(False)
    optimizer = torch.optim.AdamW(weightdecay.plan(model).param_groups(lr=6e-4))
    model.marked.requires_grad_(True)
    plan = weightdecay.plan(model)
    assert "marked.weight" in plan.add_to(optimizer)
    (group,) = [group for group in optimizer.param_groups if "marked.weight" in group["param_names"]]
    assert (group["lr"], group["weight_decay"]) == pytest.approx((1e-3, 0.05))
    plan.check(optimizer).raise_if_wrong()


# --- contradictions


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({"_no_weight_decay": True, "_optim": {"weight_decay": 0.05}}, r"decay` says λ 0, .*`_optim` says λ 0.05"),
        ({"_no_wd": True, "optim_overrides": {"optimizer": {"weight_decay_scale": 2}}}, r"says λ 0, .* says λ 0.2"),
        ({"_optim": {"lr": 1e-3}, "lr_scale": 0.5}, r"`_optim` says lr 0.001, .*`lr_scale` says lr 0.5 of η"),
    ],
)  # fmt: skip
def test_marks_that_contradict_each_other_are_an_error_that_an_override_settles(
    attributes: dict[str, Any], says: str
) -> None:
    model = marked(**attributes)
    with pytest.raises(PlanError, match=rf"marked\.weight: .*{says}\. .*remove one mark, or decide by an override"):
        weightdecay.plan(model)
    settled = weightdecay.plan(model, overrides=[Override("marked.weight", 0.5, lr_multiplier=3.0)])["marked.weight"]
    assert (settled.multiplier, settled.lr_multiplier, settled.lr) == (0.5, 3.0, None)


def test_marks_that_say_the_same_in_two_ways_are_one() -> None:
    agreeing = {"_no_weight_decay": True, "_optim": {"weight_decay": 0.0}}
    assert not weightdecay.plan(marked(**agreeing))["marked.weight"].decays
    same = {"_optim": {"weight_decay": 0.05}, "optim_overrides": {"optimizer": {"weight_decay_scale": 0.5}}}
    assert weightdecay.plan(marked(**same), 0.1)["marked.weight"].weight_decay == 0.05
    with pytest.raises(PlanError, match="marked it twice"):
        weightdecay.plan(marked(**same), 0.2)


def test_all_contradictions_and_other_faults_of_a_model_come_together() -> None:
    model = marked(_no_weight_decay=True, _optim={"weight_decay": 0.05})
    model.plain.weight._no_wd = True  # type: ignore[attr-defined]
    model.plain.weight._optim = {"weight_decay": 1.0}  # type: ignore[attr-defined]
    model.thing = nn.Parameter(torch.ones(2, 3))
    with pytest.raises(PlanError) as caught:
        weightdecay.plan(model)
    assert [fault.partition(":")[0] for fault in caught.value.faults] == [
        "marked.weight",
        "plain.weight",
        "unknown role",
    ]


def test_contradictions_of_sisters_are_one_fault() -> None:
    model = nn.ModuleList(marked(_no_wd=True, _optim={"weight_decay": 0.05}) for _ in range(40))
    with pytest.raises(PlanError) as caught:
        weightdecay.plan(model, trace=False)
    (fault,) = caught.value.faults
    assert fault.startswith("{0-39}.marked.weight: its `_no_wd` says λ 0, its `_optim` says λ 0.05.")


def test_an_override_goes_before_a_mark_and_says_so() -> None:
    plan = weightdecay.plan(marked(_no_weight_decay=True), overrides=[Override("marked", 1.0, reason="it is a matrix")])
    tensor = plan["marked.weight"]
    assert tensor.decays
    assert tensor.reason == (
        "override 'marked': it is a matrix; it goes before its `_no_weight_decay`, by which the author says otherwise"
    )
    agreeing = weightdecay.plan(marked(_no_weight_decay=True), overrides={"marked": 0.0})["marked.weight"]
    assert agreeing.reason == "override 'marked'"


def test_an_override_of_the_rate_alone_leaves_the_marks_decay() -> None:
    model = marked(_optim={"weight_decay": 0.05, "lr": 1e-3})
    tensor = weightdecay.plan(model, overrides=[Override("marked.weight", lr_multiplier=2.0)])["marked.weight"]
    assert (tensor.weight_decay, tensor.lr, tensor.lr_multiplier) == (0.05, None, 2.0)
    assert "goes before its `_optim`" in tensor.reason
    assert "λ 0.05 by its author" in tensor.reason


def test_a_frozen_tensor_stays_frozen_whatever_its_mark_says() -> None:
    model = marked(_optim={"weight_decay": 0.05})
    model.marked.weight.requires_grad_(False)
    tensor = weightdecay.plan(model)["marked.weight"]
    assert tensor.frozen
    assert not tensor.decays


def test_a_tensor_of_unknown_role_is_settled_by_its_mark() -> None:
    model = Net()
    model.thing = nn.Parameter(torch.ones(2, 3))
    with pytest.raises(PlanError, match="unknown role: thing"):
        weightdecay.plan(model)
    model.thing._no_weight_decay = True  # type: ignore[attr-defined]
    assert not weightdecay.plan(model)["thing"].decays


def test_a_list_that_cannot_be_asked_for_is_told() -> None:
    def broken(_: Any) -> set[str]:
        raise RuntimeError("no such attribute")

    with pytest.warns(UserWarning, match=r"no_weight_decay\(\) raised RuntimeError: no such attribute"):
        plan = weightdecay.plan(with_method(no_weight_decay=broken))
    assert plan["marked.weight"].decays


def test_emulated_rules_read_what_their_originals_read() -> None:
    assert weightdecay.plan(marked(_no_weight_decay=True), policy="timm")["marked.weight"].decays
    assert not weightdecay.plan(EXEMPTING["the model's `no_weight_decay()`"](), policy="timm")["marked.weight"].decays
    assert weightdecay.plan(with_method(no_weight_decay_keywords=says_a_word), policy="timm")["marked.weight"].decays
