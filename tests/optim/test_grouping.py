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
