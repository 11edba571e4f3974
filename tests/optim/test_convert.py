from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from weightdecay.errors import ConfigError
from weightdecay.optim.adamw import AdamW
from weightdecay.optim.convert import CONVENTIONS, convert
from weightdecay.rules import CAUTIOUS, L2, RULES, Rule, as_rule
from weightdecay.schedules import Constant, Schedule, schedule

names = st.sampled_from(sorted(CONVENTIONS))
STEPS, LR = 1_000, 6e-4
WARM_COSINE = schedule("cosine", peak=LR, steps=STEPS, warmup_steps=100, final_fraction=0.1)


@st.composite
def runs(draw: st.DrawFn) -> tuple[Schedule, float, int]:
    steps = draw(st.integers(2, 300))
    lr = draw(st.floats(1e-5, 1e-1))
    name = draw(st.sampled_from(["constant", "cosine", "linear", "warmup_stable_decay", "inverse_sqrt"]))
    warmup = draw(st.integers(0, steps - 1))
    return schedule(name, peak=lr, steps=steps, warmup_steps=warmup), lr, steps


def test_the_example_of_the_literature() -> None:
    """η = 6e-4 and λ = 0.1 in torch are 6e-5 in Loshchilov & Hutter's and Composer's form."""
    assert convert(0.1, source="torch", target="composer", lr=6e-4) == pytest.approx(6e-5, rel=1e-12)
    assert convert(6e-5, source="loshchilov", target="torch", lr=6e-4) == pytest.approx(0.1, rel=1e-12)


@given(source=names, target=names, run=runs(), total=st.floats(1e-4, 0.9))
@settings(max_examples=150)
def test_there_and_back_is_where_one_was(
    source: str, target: str, run: tuple[Schedule, float, int], total: float
) -> None:
    lr_schedule, lr, steps = run
    weight_decay = float(convert(total / steps, source="fixed", target=source, lr=lr, steps=steps))
    there = convert(weight_decay, source=source, target=target, lr=lr, schedule=lr_schedule, steps=steps)
    back = convert(there, source=target, target=source, lr=lr, schedule=lr_schedule, steps=steps)
    assert back == pytest.approx(weight_decay, rel=1e-12)
    assert there.source_shrink == pytest.approx(there.target_shrink, rel=1e-12)
    assert there.exact == (there.error == 0) == ("exact" in there.note)


@pytest.mark.parametrize("target", ["decoupled", "independent", "fixed", "lr_squared", "corrected"])
def test_the_predicted_shrink_is_what_the_optimizer_does(target: str) -> None:
    """Over 1,000 steps with warm-up and cosine, in float64, on both sides."""
    found = convert(2.0, source="torch", target=target, lr=LR, schedule=WARM_COSINE, steps=STEPS)
    for rule, weight_decay, predicted in (
        ("decoupled", 2.0, found.source_shrink),
        (target, float(found), found.target_shrink),
    ):
        p = nn.Parameter(torch.ones(4, dtype=torch.float64))
        p.grad = torch.zeros_like(p)
        optimizer = AdamW([p], lr=LR, weight_decay=weight_decay, rule=as_rule(rule))
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = WARM_COSINE(step)
            optimizer.step()
        assert predicted == pytest.approx(float(p.detach()[0]), abs=1e-6)


def test_where_no_single_number_maps_the_closest_comes_with_its_error() -> None:
    found = convert(0.1, source="torch", target="palm", lr=LR, schedule=WARM_COSINE, steps=STEPS)
    assert not found.exact
    assert 0.1 < found.error < 0.5
    assert "no single λ maps" in found.note
    assert found.source_shrink == pytest.approx(found.target_shrink, rel=1e-12)
    at_constant = convert(0.1, source="torch", target="palm", lr=LR, schedule=Constant(LR), steps=STEPS)
    assert at_constant.exact


def test_palm_at_its_own_settings() -> None:
    """lr² at lr = 1e-2 removes 1e-4 a step: what torch would do with λ = 0.01."""
    assert convert(1.0, source="palm", target="torch", lr=1e-2) == pytest.approx(0.01)


def test_the_normalised_form_depends_on_the_length_of_the_run() -> None:
    found = convert(0.025, source="loshchilov_normalized", target="loshchilov", lr=1e-3, steps=10_000)
    assert found == pytest.approx(0.025 / 100)
    with pytest.raises(ConfigError, match="give steps"):
        convert(0.025, source="loshchilov_normalized", target="torch", lr=1e-3)


def test_a_conversion_is_a_float_that_can_be_copied() -> None:
    found = convert(0.1, source="torch", target="adamc", lr=LR, schedule=WARM_COSINE, steps=STEPS)
    for other in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert other == found
        assert other.error == found.error
    assert math.isclose(found * 2, float(found) + float(found))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"source": "troch"}, "did you mean 'torch'"),
        ({"source": "torch_adam"}, "depends on the gradients"),
        ({"weight_decay": -1.0, "lr": 0.0, "target": "compsoer"}, "did you mean 'composer'"),
        ({"target": "palm", "schedule": WARM_COSINE}, "give steps"),
        ({"schedule": Constant(1.0), "steps": 5}, "above the peak lr"),
        ({"weight_decay": 2_000.0, "steps": 5}, "at most 1 can be"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_what_cannot_be_converted_says_why(arguments: dict[str, object], words: str) -> None:
    given: dict[str, object] = {"weight_decay": 0.1, "source": "torch", "target": "composer", "lr": 6e-4, **arguments}
    with pytest.raises(ConfigError, match=words) as caught:
        convert(**given)  # type: ignore[arg-type]
    if "weight_decay" in arguments and "lr" in arguments:
        assert len(caught.value.faults) == 3


def test_every_convention_says_where_it_comes_from() -> None:
    assert all(len(convention.where) > 10 for convention in CONVENTIONS.values())


@pytest.mark.parametrize("lowest", [-1e-4, float("nan"), float("inf")])
def test_a_schedule_below_zero_or_without_end_is_refused(lowest: float) -> None:
    with pytest.raises(ConfigError, match="at step 3"):
        convert(0.1, source="torch", target="palm", lr=1e-3, schedule=lambda t: lowest if t == 3 else 1e-3, steps=5)


def test_a_run_at_lr_zero_decays_by_nothing_in_any_convention() -> None:
    found = convert(0.1, source="torch", target="fixed", lr=1e-3, schedule=lambda _: 0.0, steps=5)
    assert (float(found), found.exact, found.error, found.target_shrink) == (0.0, True, 0.0, 1.0)


def test_a_rule_of_ones_own_converts_by_its_powers() -> None:
    mine = Rule("mine", lr_power=2)
    assert convert(0.1, source="torch", target=mine, lr=1e-2) == pytest.approx(10.0)
    assert convert(10.0, source=mine, target="palm", lr=1e-2) == pytest.approx(10.0)
    assert convert(0.1, source=CAUTIOUS, target=Rule("masked", lr_power=2, mask="agreeing"), lr=1e-2) == pytest.approx(
        10
    )


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if not rule.coupled])
def test_a_rule_and_its_name_are_one_convention(name: str) -> None:
    assert convert(0.1, source=name, target=RULES[name], lr=1e-2) == pytest.approx(0.1)


@pytest.mark.parametrize("other", ["cautious", "towards_one", "l2", L2, Rule("masked", mask="strictly_agreeing")])
def test_what_decays_other_weights_or_elsewhere_has_no_number(other: Any) -> None:
    with pytest.raises(ConfigError, match="no number maps"):
        convert(0.1, source="torch", target=other, lr=1e-2)


@pytest.mark.parametrize(
    "given",
    [
        {"weight_decay": "0.1"}, {"weight_decay": None}, {"weight_decay": True}, {"lr": "6e-4"}, {"source": ["torch"]},
        {"target": None}, {"source": 3}, {"steps": "10"}, {"steps": 10.0}, {"schedule": 3}, {"schedule": Constant},
        {"steps": 10, "schedule": lambda _: "1e-3"},
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_named(given: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"weight_decay": 0.1, "source": "torch", "target": "composer", "lr": 1e-3, **given}
    key = next(key for key in reversed(given))
    with pytest.raises(ConfigError, match=f"{key}|is no convention"):
        convert(arguments.pop("weight_decay"), **arguments)
