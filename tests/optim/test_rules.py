from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.references.rules import decay_per_step
from weightdecay import rules
from weightdecay.errors import OptimizerError
from weightdecay.optim import roundings
from weightdecay.optim.adafactor import Adafactor
from weightdecay.optim.adamw import AdamL2, AdamW
from weightdecay.optim.lion import Lion
from weightdecay.optim.muon import Muon
from weightdecay.optim.sgdw import SGDW
from weightdecay.rules import RULES, Rule, as_rule, group_decay_per_step
from weightdecay.schedules import Cosine, Warmup

FRACTIONAL = [name for name in RULES if name != "l2"]
DECOUPLED = [AdamW, Lion, SGDW, Adafactor, Muon]


def weight(value: float = 1.0, dtype: torch.dtype = torch.float64) -> torch.nn.Parameter:
    p = torch.nn.Parameter(torch.full((2, 3), value, dtype=dtype))
    p.grad = torch.zeros_like(p)
    return p


@given(
    name=st.sampled_from(FRACTIONAL),
    share=st.floats(0, 1),
    peak_lr=st.floats(1e-6, 1),
    weight_decay=st.floats(0, 1),
)
def test_the_decay_per_step_is_what_the_table_says(
    name: str, share: float, peak_lr: float, weight_decay: float
) -> None:
    lr = share * peak_lr
    found = as_rule(name).decay_per_step(lr, weight_decay, peak_lr)
    assert found == pytest.approx(decay_per_step(name, lr, weight_decay, peak_lr), rel=1e-12)
    group = {"lr": lr, "weight_decay": weight_decay, "rule": name, "peak_lr": peak_lr}
    assert group_decay_per_step(group) == pytest.approx(found)


@given(lr_power=st.floats(0, 3), peak_power=st.floats(0, 3), share=st.floats(0.1, 1), peak_lr=st.floats(1e-3, 10))
def test_powers_of_ones_own_are_taken_of_the_lr_and_of_its_peak(
    lr_power: float, peak_power: float, share: float, peak_lr: float
) -> None:
    found = Rule("mine", lr_power, peak_power).decay_per_step(share * peak_lr, 0.1, peak_lr)
    in_logarithms = math.log(0.1) + lr_power * math.log(share * peak_lr) - peak_power * math.log(peak_lr)
    assert math.log(found) == pytest.approx(in_logarithms, abs=1e-9)


def test_every_rule_says_its_equation() -> None:
    source = Path(rules.__file__).read_text()
    for name, chosen in RULES.items():
        assert chosen.name == name
        (equation,) = re.findall(rf'^{name.upper()} = Rule\(.*\)\n"""(.*)', source, re.MULTILINE)
        assert "←" in equation, name


def test_the_names_that_an_editor_knows_are_those_that_there_are() -> None:
    assert set(get_args(rules.RuleName)) == set(RULES)
    assert set(get_args(roundings.RoundingName)) == set(roundings.ROUNDINGS)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": ""}, "a rule needs one"),
        ({"lr_power": -1}, "lr_power: give a finite number of at least 0, got -1"),
        ({"lr_power": "2"}, "lr_power"),
        ({"peak_power": float("nan")}, "peak_power"),
        ({"peak_power": True}, "peak_power"),
        ({"target": "inital"}, "did you mean 'initial'"),
        ({"mask": "agreing"}, "did you mean 'agreeing'"),
        ({"coupled": 1}, "coupled: give True or False"),
        ({"coupled": True, "mask": "agreeing"}, "neither mask nor target"),
    ],
)
def test_a_rule_of_ones_own_that_makes_no_sense_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(OptimizerError, match=said):
        Rule(**{"name": "mine", **values})


def test_a_rule_comes_back_from_its_fields_and_unknown_ones_are_named() -> None:
    mine = Rule("mine", lr_power=2, mask="strictly_agreeing")
    assert as_rule(dataclasses.asdict(mine)) == mine
    with pytest.raises(OptimizerError, match=r"a rule has no 'lr_pwer'.*did you mean 'lr_power'"):
        as_rule({"name": "mine", "lr_pwer": 2})


def test_l2_has_no_decay_per_step_and_says_why() -> None:
    with pytest.raises(OptimizerError, match="adds λ·w to the gradient"):
        as_rule("l2").decay_per_step(0.1, 0.1)
    assert group_decay_per_step({"lr": 0.1, "weight_decay": 0.1, "rule": "l2"}) is None


def test_an_unknown_rule_brings_the_nearest() -> None:
    with pytest.raises(OptimizerError, match="did you mean 'independent'"):
        as_rule("independant")


@pytest.mark.parametrize("cls", DECOUPLED, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("name", ["decoupled", "independent", "fixed", "lr_squared", "corrected", "cautious"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)], ids=str)
def test_with_zero_gradients_weights_shrink_by_the_product_of_the_rule(
    cls: Any, name: str, dtype: torch.dtype, tolerance: float
) -> None:
    """w_T = w_0·Π(1 − a_t), through a warm-up and a cosine to 0; a gradient of zero decays, none does not."""
    steps, peak, weight_decay = 200, 0.02, 0.5 if name != "fixed" else 0.01
    lr = Warmup(20, then=Cosine(peak, 0.0, steps - 21))
    p, without = weight(dtype=dtype), weight(dtype=dtype)
    without.grad = None
    optimizer = cls([p, without], lr=peak, weight_decay=weight_decay, rule=name)
    expected = 1.0
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr(step)
        optimizer.step()
        expected *= 1 - decay_per_step(name, lr(step), weight_decay, peak)
    assert lr(steps - 1) == 0
    assert torch.allclose(p.double(), torch.full_like(p, expected, dtype=torch.float64), rtol=tolerance, atol=0)
    assert torch.equal(without, torch.ones_like(without))
    assert optimizer.param_groups[0]["weight_decay"] == weight_decay  # as given, after each step


@pytest.mark.parametrize("cls", DECOUPLED, ids=lambda cls: cls.__name__)
def test_decay_towards_a_target_ends_at_the_target(cls: Any) -> None:
    gain, pretrained, start = weight(3.0), weight(3.0), weight(3.0)
    optimizer = cls(
        [
            {"params": [gain], "rule": "towards_one"},
            {"params": [pretrained], "rule": "towards_initial"},
            {"params": [start], "rule": "decoupled"},
        ],
        lr=0.1,
        weight_decay=0.5,
    )
    with torch.no_grad():
        optimizer.step()  # remembers 3 as the initial value
        pretrained.fill_(7.0)
    for _ in range(500):
        optimizer.step()
    assert torch.allclose(gain, torch.ones_like(gain), rtol=1e-9)
    assert torch.allclose(pretrained, torch.full_like(pretrained, 3.0), rtol=1e-9)
    assert float(start.detach().abs().max()) < 1e-9


@pytest.mark.parametrize("name", ["independent", "corrected"])
def test_each_group_has_its_own_peak(name: Any) -> None:
    """A group at ten times the lr must decay no more than the others under `independent`."""
    optimizer = AdamW(
        [{"params": [weight()]}, {"params": [weight()], "lr": 0.1}], lr=0.01, weight_decay=0.05, rule=name
    )
    assert [group["peak_lr"] for group in optimizer.param_groups] == [0.01, 0.1]
    given_for_all = AdamW(
        [{"params": [weight()]}, {"params": [weight()], "lr": 0.1}], lr=0.01, weight_decay=0.05, rule=name, peak_lr=0.02
    )
    assert [group["peak_lr"] for group in given_for_all.param_groups] == pytest.approx([0.02, 0.2])
    if name == "independent":
        optimizer.step()
        first, second = (group["params"][0].detach() for group in optimizer.param_groups)
        assert torch.equal(first, second)
        assert float(first[0, 0]) == pytest.approx(0.95)


def test_an_lr_above_the_declared_peak_is_refused_before_anything_moves() -> None:
    p = weight()
    optimizer = AdamW([p], lr=0.01, weight_decay=0.05, rule="independent")
    optimizer.param_groups[0]["lr"] = 0.02
    with pytest.raises(OptimizerError, match="above the declared peak"):
        optimizer.step()
    assert torch.equal(p, torch.ones_like(p))
    assert not optimizer.state


def test_a_decay_per_step_over_one_is_refused_before_anything_moves() -> None:
    p, q = weight(), weight()
    optimizer = AdamW([{"params": [p]}, {"params": [q], "name": "wild"}], lr=0.1, weight_decay=1.0)
    optimizer.param_groups[1]["weight_decay"] = 11.0
    with pytest.raises(OptimizerError, match=r"'wild'.*sign of the weights"):
        optimizer.step()
    assert torch.equal(p, torch.ones_like(p))


@pytest.mark.parametrize("cls", [AdamW, Lion, Adafactor, Muon], ids=lambda cls: cls.__name__)
def test_adaptive_directions_refuse_the_coupled_rule_with_the_reason(cls: Any) -> None:
    with pytest.raises(OptimizerError, match=r"AdamL2"):
        cls([weight()], rule="l2")


def test_adam_l2_refuses_every_other_rule() -> None:
    with pytest.raises(OptimizerError, match="use AdamW"):
        AdamL2([weight()], rule="decoupled")


def test_two_groups_may_follow_two_rules() -> None:
    hidden, head = weight(), weight()
    optimizer = AdamW(
        [{"params": [hidden], "rule": "corrected"}, {"params": [head]}], lr=0.1, weight_decay=0.5, peak_lr=0.1
    )
    for group in optimizer.param_groups:
        group["lr"] = 0.05
    optimizer.step()
    assert float(hidden.detach()[0, 0]) == pytest.approx(1 - 0.05 * 0.5 * 0.5)
    assert float(head.detach()[0, 0]) == pytest.approx(1 - 0.05 * 0.5)


def test_fixed_decays_where_lr_is_zero_and_the_others_do_not() -> None:
    for name in ("fixed", "decoupled", "independent", "lr_squared", "corrected", "cautious"):
        p = weight()
        optimizer = AdamW([p], lr=0.1, weight_decay=0.01, rule=name)
        optimizer.param_groups[0]["lr"] = 0.0
        optimizer.step()
        assert float(p.detach()[0, 0]) == pytest.approx(0.99 if name == "fixed" else 1.0)


@pytest.mark.parametrize("setting", ["lr", "weight_decay"])
def test_weights_never_grow_by_their_decay(setting: str) -> None:
    """torch checks lr and λ when an optimizer is made; a scheduler or a hand may change them afterwards."""
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = AdamW([p], lr=0.1, weight_decay=0.1)
    optimizer.param_groups[0][setting] = -0.1
    p.grad = torch.zeros_like(p)
    with pytest.raises(OptimizerError, match="would make the weights grow"):
        optimizer.step()
    assert torch.equal(p, torch.ones(3))
    assert group_decay_per_step({"lr": -1e-16, "weight_decay": 0.1}) == pytest.approx(0.0, abs=1e-15)
