"""Our own optimizers, audited: every rule, rounding and way of loading, and nothing is found."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from examples.museum.language_model import LanguageModel
from torch import nn

import weightdecay
from tests.auditing.loops.parts import train
from weightdecay import load_state_by_name, settings_by_name, state_by_name
from weightdecay.rules import RULES
from weightdecay.schedules import Linear

# λ at which each rule takes 1e-4 off a weight in a step at lr 1e-3.
ASKED = {"independent": 1e-4, "fixed": 1e-4, "lr_squared": 100.0}
KINDS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": weightdecay.AdamW,
    "AdamL2": weightdecay.AdamL2,
    "Lion": weightdecay.Lion,
    "SGDW": weightdecay.SGDW,
    "Adafactor": weightdecay.Adafactor,
    "Muon": weightdecay.Muon,
}
ROUNDINGS = ("nearest", "master", "kahan", "stochastic")


def asked(rule: str) -> float:
    return ASKED.get(rule, 0.1)


def made(model: nn.Module, kind: str, rule: str = "decoupled", **settings: Any) -> torch.optim.Optimizer:
    plan = weightdecay.plan(model, weight_decay=asked(rule))
    if kind == "AdamL2":
        return weightdecay.AdamL2(plan, lr=1e-3, **settings)
    peak = {"peak_lr": 1e-3} if RULES[rule].needs_peak else {}
    return KINDS[kind](plan, lr=1e-3, rule=rule, **peak, **settings)


# --- the ways on which state comes into an optimizer


def as_it_is(model: nn.Module, optimizer: torch.optim.Optimizer, _: Callable[..., Any]) -> tuple[nn.Module, Any]:
    return model, optimizer


def loaded(model: nn.Module, optimizer: torch.optim.Optimizer, anew: Callable[..., Any]) -> tuple[nn.Module, Any]:
    fresh = anew(model)
    fresh.load_state_dict(optimizer.state_dict())
    return model, fresh


def pickled(model: nn.Module, optimizer: torch.optim.Optimizer, _: Callable[..., Any]) -> tuple[nn.Module, Any]:
    held = pickle.loads(pickle.dumps((model, optimizer)))
    return held[0], held[1]


def copied(model: nn.Module, optimizer: torch.optim.Optimizer, _: Callable[..., Any]) -> tuple[nn.Module, Any]:
    held = copy.deepcopy((model, optimizer))
    return held[0], held[1]


def by_name(model: nn.Module, optimizer: torch.optim.Optimizer, anew: Callable[..., Any]) -> tuple[nn.Module, Any]:
    fresh = anew(model)
    load_state_by_name(fresh, state_by_name(optimizer), settings_by_name(optimizer))
    return model, fresh


WAYS = (as_it_is, loaded, pickled, copied, by_name)


def cases() -> Iterator[Any]:
    """Every optimizer with every rule and rounding, and with every rounding and way; by default each of these once."""
    for kind in KINDS:
        usual = "l2" if kind == "AdamL2" else "decoupled"
        rules = [usual] if kind == "AdamL2" else list(RULES)
        chosen = dict.fromkeys(
            [(rule, rounding, as_it_is) for rule in rules for rounding in ROUNDINGS]
            + [(usual, rounding, way) for rounding in ROUNDINGS for way in WAYS]
        )
        for rule, rounding, way in chosen:
            usual_ones = (rule == usual) + (rounding == "nearest") + (way is as_it_is)
            is_first = usual_ones == 3 or (kind == "AdamW" and usual_ones == 2 and rule in (usual, "cautious"))
            yield pytest.param(
                kind,
                rule,
                rounding,
                way,
                id=f"{kind} {rule} {rounding} {way.__name__}",
                marks=[] if is_first else [pytest.mark.long],
            )


@pytest.mark.filterwarnings("ignore::weightdecay.PrecisionWarning", "ignore::weightdecay.MasterWarning")
@pytest.mark.parametrize(("kind", "rule", "rounding", "way"), list(cases()))
def test_nothing_is_found_in_our_own(kind: str, rule: str, rounding: str, way: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    low = rounding != "nearest"
    model = LanguageModel(width=64).to(torch.bfloat16 if low else torch.float32)
    settings = {"rounding": rounding} if low else {}
    try:
        optimizer = made(model, kind, rule, **settings)
    except weightdecay.OptimizerError as error:
        pytest.skip(f"{kind} refuses {rule}: {error}")
    train(model, optimizer)
    model, optimizer = way(model, optimizer, lambda of: made(of, kind, rule, **settings))
    train(model, optimizer, steps=1)

    audit = weightdecay.audit(model, optimizer, policy="default", weight_decay=asked(rule), lr=1e-3)
    assert [(one.code, one.title, one.detail) for one in audit if one.code != "wrong-order"] == []


@pytest.mark.parametrize(
    "kind",
    [
        torch.optim.AdamW,
        *(pytest.param(k, marks=[pytest.mark.long]) for k in (torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop)),
    ],
)
@pytest.mark.parametrize(
    "rule",
    [
        "independent",
        *(pytest.param(rule, marks=[pytest.mark.long]) for rule in ("decoupled", "fixed", "corrected", "cautious")),
    ],
)
def test_nothing_is_found_in_what_is_controlled(kind: Any, rule: str) -> None:
    torch.manual_seed(0)
    model = LanguageModel()
    optimizer = kind(weightdecay.plan(model, weight_decay=asked(rule)).param_groups(lr=1e-3))
    weightdecay.control(optimizer, rule=rule, peak_lr=1e-3)  # type: ignore[arg-type]
    train(model, optimizer)
    audit = weightdecay.audit(model, optimizer, policy="default", weight_decay=asked(rule))
    assert [(one.code, one.title, one.detail) for one in audit if one.code != "wrong-order"] == []


@pytest.mark.parametrize("kind", ["AdamW", "SGDW"])
def test_a_schedule_of_weight_decay_is_not_taken_for_a_stale_number(kind: str) -> None:
    torch.manual_seed(0)
    model = LanguageModel()
    plan = weightdecay.plan(model, weight_decay=0.1)
    optimizer = KINDS[kind](plan, lr=1e-3)
    weightdecay.control(optimizer, schedule=Linear(0.1, 0.0, steps=10))
    train(model, optimizer, steps=5)
    assert weightdecay.audit(model, optimizer, plan=plan).ok
    assert [one.code for one in weightdecay.audit(model, optimizer, weight_decay=0.1)] == ["stale"]
