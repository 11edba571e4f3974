from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import weightdecay
from weightdecay.errors import OptimizerError
from weightdecay.optim.adamw import AdamW
from weightdecay.optim.lion import Lion
from weightdecay.optim.muon import Muon
from weightdecay.rules import FIXED, RULES, Rule, as_rule


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.first = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.lm_head = nn.Linear(8, 11, bias=False)
        self.lm_head.weight = self.embed.weight


def rules(optimizer: torch.optim.Optimizer) -> dict[str, str]:
    return {name: group["rule"] for group in optimizer.param_groups for name in group["param_names"]}


@pytest.mark.parametrize("cls", [AdamW, Lion, Muon], ids=lambda cls: cls.__name__)
def test_corrected_leaves_the_tied_head_decoupled(cls: Any) -> None:
    optimizer = cls(weightdecay.plan(Tied(), weight_decay=0.1), lr=0.01, rule="corrected")
    found = rules(optimizer)
    assert found.pop("embed.weight") == "decoupled"
    assert set(found.values()) == {"corrected"}
    assert all(group.get("peak_lr") == 0.01 for group in optimizer.param_groups if group["rule"] == "corrected")


@pytest.mark.parametrize("cls", [AdamW, Lion, Muon], ids=lambda cls: cls.__name__)
def test_rules_by_pattern_hold_for_the_tensors_they_name_in_their_order(cls: Any) -> None:
    given = {"norm.weight": "towards_one", "first.*": "cautious", "*.weight": "corrected", "*": "decoupled"}
    optimizer = cls(Tied().named_parameters(), lr=0.01, rule=given)
    assert rules(optimizer) == {
        "embed.weight": "corrected",
        "first.weight": "cautious",
        "first.bias": "cautious",
        "norm.weight": "towards_one",
        "norm.bias": "decoupled",
    }
    added = nn.Parameter(torch.ones(2, 2))
    optimizer.add_param_group({"params": [("later", added)]})
    assert optimizer.param_groups[-1]["rule"] == "decoupled"


def test_a_group_that_brings_its_own_rule_keeps_it() -> None:
    net = Tied()
    groups = [
        {"params": [("first.weight", net.first.weight)], "rule": "fixed", "weight_decay": 0.001},
        {"params": [("norm.weight", net.norm.weight)]},
    ]
    assert rules(AdamW(groups, lr=0.01, rule={"*": "cautious"})) == {"first.weight": "fixed", "norm.weight": "cautious"}


def test_patterns_that_match_nothing_and_tensors_that_none_matches_are_told_together() -> None:
    with pytest.raises(OptimizerError) as caught:
        AdamW(Tied().named_parameters(), rule={"lm_head.*": "decoupled", "*.weight": "corrected"})
    assert caught.value.faults == [
        "no pattern of `rule` matches 'first.bias': end with '*' for the rest",
        "no pattern of `rule` matches 'norm.bias': end with '*' for the rest",
        "the pattern 'lm_head.*' of `rule` matches no tensor: correct or remove it",
    ]
    with pytest.raises(OptimizerError, match="did you mean 'corrected'"):
        AdamW(Tied().named_parameters(), rule={"*": "correct"})  # type: ignore[dict-item]


def test_an_iterator_of_parameters_is_read_once() -> None:
    net = Tied()
    optimizer = Muon([{"params": net.parameters()}], lr=0.01)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 5


@pytest.mark.parametrize("shared", ["mine", "cautious"])
def test_rules_of_ones_own_that_share_a_name_stay_apart(shared: str) -> None:
    first, last = Rule(shared, lr_power=0.5), RULES.get(shared, Rule(shared, lr_power=2))
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = AdamW(model.named_parameters(), lr=0.01, rule={"0.*": first, "1.bias": "fixed", "*": last})
    found = {name: as_rule(group["rule"]) for group in optimizer.param_groups for name in group["param_names"]}
    assert found == {"0.weight": first, "0.bias": first, "1.weight": last, "1.bias": FIXED}


def test_patterns_that_are_no_text_are_refused_by_what_they_are() -> None:
    given: Any = {0: "fixed", "*": "decoupled"}
    with pytest.raises(OptimizerError, match="the pattern 0 of `rule` is no text"):
        AdamW(nn.Linear(4, 4).named_parameters(), rule=given)


@pytest.mark.parametrize("cls", [AdamW, Lion, Muon], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("group", [{"params": nn.Linear(2, 2)}, {"params": 3}, {"lr": 0.1}], ids=str)
def test_groups_of_no_tensors_are_explained(cls: Any, group: dict[str, Any]) -> None:
    for rule in ("decoupled", {"*": "decoupled"}):
        with pytest.raises(OptimizerError, match=r"params is .*: give a decay plan, parameters"):
            cls([group], rule=rule)


# --- groups that somebody changed, or that hold nothing

OURS: dict[str, Any] = {
    "AdamW": weightdecay.AdamW,
    "AdamL2": weightdecay.AdamL2,
    "Lion": weightdecay.Lion,
    "SGDW": lambda groups, **kw: weightdecay.SGDW(groups, momentum=0.9, **kw),
    "Adafactor": weightdecay.Adafactor,
    "Muon": weightdecay.Muon,
}


@pytest.mark.parametrize("where", ["first", "last", "between", "added", "named is added"])
@pytest.mark.parametrize("name", OURS)
def test_a_group_without_tensors_stands_beside_named_ones_wherever_it_is(name: str, where: str) -> None:
    net = nn.Linear(4, 3)
    named: list[dict[str, Any]] = [{"params": [pair]} for pair in net.named_parameters()]
    groups = {
        "first": [{"params": []}, *named],
        "last": [*named, {"params": []}],
        "between": [named[0], {"params": []}, named[1]],
        "added": named,
        "named is added": [{"params": []}],
    }[where]
    optimizer = OURS[name](groups, lr=0.01)
    for group in [{"params": []}] if where == "added" else named if where == "named is added" else []:
        optimizer.add_param_group(group)
    assert [name for group in optimizer.param_groups for name in group["param_names"]] == ["weight", "bias"]
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert len(weightdecay.state_by_name(optimizer)) >= 2


@pytest.mark.parametrize("rule", ["decoupled", "cautious", "towards_one", "towards_initial"])
@pytest.mark.parametrize("name", OURS)
def test_a_setting_that_was_taken_out_of_a_group_is_named_before_anything_has_moved(name: str, rule: str) -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 4))
    if name == "AdamL2":
        rule = "l2"
    groups = [{"params": list(layer.named_parameters(prefix=str(i)))} for i, layer in enumerate(net)]
    optimizer = OURS[name](groups, lr=0.01, weight_decay=0.1, rule=rule)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    before = [p.detach().clone() for p in net.parameters()]
    last = optimizer.param_groups[-1]
    for key in [key for key in last if key not in ("params", "param_names", "differentiable", "name")]:
        value = last.pop(key)
        with pytest.raises(OptimizerError, match=rf"group {len(optimizer.param_groups) - 1} has no .*{key}"):
            optimizer.step()
        assert all(torch.equal(old, p) for old, p in zip(before, net.parameters(), strict=True)), key
        last[key] = value
    optimizer.step()


@pytest.mark.parametrize("rule", ["decoupled", "cautious", "towards_one"])
@pytest.mark.parametrize("name", ["AdamW", "Muon"])
@pytest.mark.parametrize("written", [{"lr": torch.tensor(0.01)}, {"betas": (torch.tensor(0.9), torch.tensor(0.99))}])
def test_a_tensor_that_foreach_does_not_take_is_named_before_anything_has_moved(
    written: dict[str, Any], name: str, rule: str
) -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 4))
    groups = [{"params": list(layer.parameters()), "algorithm": "adamw"} for layer in net]
    groups = groups if name == "Muon" else [{"params": group["params"]} for group in groups]
    optimizer = OURS[name](groups, lr=0.01, weight_decay=0.1, rule=rule, foreach=True)
    before = [p.detach().clone() for p in net.parameters()]
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.param_groups[-1].update(written)
    with pytest.raises(OptimizerError, match="as a Tensor is not supported for capturable=False and foreach=True"):
        optimizer.step()
    assert all(torch.equal(old, p) for old, p in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize("rule", ["decoupled", "towards_one", "towards_initial"])
@pytest.mark.parametrize("name", ["AdamW", "SGDW"])
def test_complex_weights_under_fused_are_named_before_anything_has_moved(name: str, rule: str) -> None:
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, dtype=torch.complex64))]
    optimizer = OURS[name]([{"params": [p]} for p in params], lr=0.01, weight_decay=0.1, rule=rule)
    for p in params:
        p.grad = torch.ones_like(p)
    for group in optimizer.param_groups:
        group["fused"] = True
    with pytest.raises(OptimizerError, match=r"group 1: fused=True .* takes no complex weights"):
        optimizer.step()
    assert all(torch.equal(p, torch.ones_like(p)) for p in params)


def test_a_tensor_whose_first_gradient_comes_later_joins_under_every_kernel_bit_for_bit() -> None:
    """torch's fused SGD takes no mixture of momenta that are there and such as are not."""
    for settings in ({"fused": True}, {"foreach": True}, {"foreach": False}):
        results = []
        for cls in (weightdecay.SGDW, torch.optim.SGD):
            torch.manual_seed(0)
            params = [nn.Parameter(torch.randn(5)) for _ in range(3)]
            kernel = settings if cls is weightdecay.SGDW else {"foreach": False}
            optimizer = cls(params, lr=0.1, momentum=0.9, dampening=0.3, **kernel)  # type: ignore[arg-type]
            for step in range(4):
                for place, p in enumerate(params):
                    p.grad = torch.full_like(p, 0.5 + place) if step >= place else None
                optimizer.step()
            results.append(params)
        assert all(torch.equal(p, q) for p, q in zip(*results, strict=True)), settings
