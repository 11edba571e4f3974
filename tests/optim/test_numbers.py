"""A number is the number that it is, whoever counts it, wherever one is taken; what is none is said to be none."""

from __future__ import annotations

import collections
import json
import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from weightdecay.errors import OptimizerError
from weightdecay.optim.adamw import AdamW
from weightdecay.optim.clipping import clipped_step
from weightdecay.optim.control import control
from weightdecay.optim.convert import convert
from weightdecay.optim.muon import Muon
from weightdecay.optim.scheduling import apply_schedules
from weightdecay.optim.state import settings_by_name
from weightdecay.planning.plan import plan
from weightdecay.rules import Rule

TENTH: dict[str, Any] = {
    "float": 0.1,
    "numpy's": np.float32(0.1),
    "an array": np.array(0.1),
    "a decimal": Decimal("0.1"),
    "a fraction": Fraction(1, 10),
    "a tensor": torch.tensor(0.1),
}


def two_lr() -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    params = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    groups = [{"params": [p], "name": name, "lr": lr} for p, name, lr in zip(params, "ab", (0.1, 0.01), strict=True)]
    return params, torch.optim.AdamW(groups, weight_decay=0.5)


def clipped_to(norm: Any) -> float:
    p = nn.Parameter(torch.zeros(4))
    p.grad = torch.ones(4)
    clipped_step(torch.optim.SGD([p], lr=1.0), norm)
    return float(p.detach().norm())


def scheduled(course: Any) -> float:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(3))])
    apply_schedules(optimizer, np.int64(3), lr=1.0, weight_decay=lambda _step: course)  # type: ignore[arg-type]
    return float(optimizer.param_groups[0]["weight_decay"])


def controlled_from(peak: Any) -> float:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(3))], lr=0.05, weight_decay=0.2)
    (decay,) = control(optimizer, rule="independent", peak_lr=peak).decay_per_step()
    return decay or math.nan


TAKERS: dict[str, Callable[[Any], float]] = {
    "convert": lambda given: convert(given, source="fixed", target="fixed", lr=1e-3),
    "a schedule of convert": lambda given: convert(
        0.01, source="fixed", target="decoupled", lr=0.2, schedule=lambda _: given, steps=2
    ),
    "the lr of convert": lambda given: convert(0.01, source="fixed", target="decoupled", lr=given),
    "the lr of a plan": lambda given: plan(nn.Linear(2, 2), weight_decay=0.1).param_groups(lr=given)[0]["lr"],
    "a power of a rule": lambda given: Rule("mine", lr_power=given).lr_power,
    "clipped_step": clipped_to,
    "apply_schedules": scheduled,
    "the peak of control": controlled_from,
    "the momentum of Muon": lambda given: Muon([nn.Parameter(torch.ones(2, 2))], momentum=given)._own["momentum"] or 0,
    "betas": lambda given: AdamW([nn.Parameter(torch.ones(2))], betas=(given, given)).param_groups[0]["betas"][0],
}


@pytest.mark.parametrize("kind", TENTH)
@pytest.mark.parametrize("taker", TAKERS)
def test_every_taker_takes_every_kind(taker: str, kind: str) -> None:
    assert float(TAKERS[taker](TENTH[kind])) == pytest.approx(float(TAKERS[taker](0.1)), rel=1e-6)


def test_whole_numbers_may_be_numpys() -> None:
    long = convert(0.1, source="loshchilov_normalized", target="torch", lr=1e-3, steps=np.int64(100))  # type: ignore[arg-type]
    assert long == convert(0.1, source="loshchilov_normalized", target="torch", lr=1e-3, steps=100)
    muon = Muon([{"params": [nn.Parameter(torch.ones(4, 2))], "stacked": np.int64(2)}], ns_steps=np.int32(3))  # type: ignore[arg-type]
    assert type(muon.param_groups[0]["ns_steps"]) is type(muon.param_groups[0]["stacked"]) is int  # as files hold them


@pytest.mark.parametrize("kind", TENTH)
def test_one_peak_of_any_kind_is_refused_where_groups_have_two_lr(kind: str) -> None:
    with pytest.raises(OptimizerError, match="give one for each"):
        control(two_lr()[1], rule="independent", peak_lr=TENTH[kind])


@pytest.mark.parametrize(
    "peaks",
    [np.array([0.1, 0.01]), torch.tensor([0.1, 0.01]), collections.deque([0.1, 0.01]), (peak for peak in (0.1, 0.01))],
    ids=lambda peaks: type(peaks).__name__,
)
def test_peaks_come_in_any_order_that_can_be_gone_through(peaks: Any) -> None:
    made = control(two_lr()[1], rule="independent", peak_lr=peaks)
    assert made.decay_per_step() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("none", [b"0.1", True, "0.1", 0.1j, [0.1], math.nan])
def test_what_is_no_number_is_said_to_be_none(none: Any) -> None:
    for taker in set(TAKERS) - {"the peak of control"}:
        with pytest.raises(ValueError, match=r"finite number|in \[0, 1\)"):
            TAKERS[taker](none)


def test_states_stay_plain_whoever_counted_their_numbers(tmp_path: Path) -> None:
    p = nn.Parameter(torch.ones(3))
    rule = Rule("mine", lr_power=np.float32(0.5), peak_power=Fraction(1, 2))  # type: ignore[arg-type]
    settings: Any = {"lr": np.float64(0.1), "weight_decay": np.float32(0.2), "betas": (np.float64(0.9), Fraction(1, 2))}
    ours, theirs = AdamW([("p", p)], **settings, rule=rule), torch.optim.SGD([("p", p)], lr=0.1, weight_decay=0.2)
    control(theirs, rule=rule, peak_lr=np.float32(0.1), schedule=lambda _step: np.float32(0.1))  # type: ignore[arg-type]
    apply_schedules(ours, np.int64(3), weight_decay=np.float64(0.1))  # type: ignore[arg-type]
    for optimizer in (ours, theirs):
        p.grad = torch.ones(3)
        optimizer.step()
        torch.save(optimizer.state_dict(), tmp_path / "state.pt")
        torch.load(tmp_path / "state.pt", weights_only=True)  # takes Python's own numbers and tensors alone
        json.dumps(settings_by_name(optimizer), allow_nan=False)
