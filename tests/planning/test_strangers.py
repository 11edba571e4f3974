from __future__ import annotations

import re

import pytest
import torch

import weightdecay
from tests.planning.strangers.oddities import STRANGE_ODDITIES
from tests.planning.strangers.sequences import STRANGE_SEQUENCES
from tests.planning.strangers.signals import STRANGE_SIGNALS

STRANGERS = {**STRANGE_SEQUENCES, **STRANGE_SIGNALS, **STRANGE_ODDITIES}


def mistakes(name: str, *, trace: bool = True) -> tuple[list[str], int]:
    stranger = STRANGERS[name]
    torch.manual_seed(0)
    plan = weightdecay.plan(stranger.build(), unknown="exempt", trace=trace)
    judged = [tensor for tensor in plan if not re.search(stranger.disputed, tensor.name)]
    wrong = [str(t) for t in judged if t.decays != (re.search(stranger.exempt, t.name) is None)]
    return wrong, len(judged)


@pytest.mark.parametrize("name", STRANGERS)
def test_a_model_of_an_unknown_family_is_planned_right_from_its_use(name: str) -> None:
    wrong, _ = mistakes(name)
    assert not wrong


def test_without_a_trace_the_verdicts_are_worse_so_the_trace_carries_them() -> None:
    untraced = sum(len(mistakes(name, trace=False)[0]) for name in STRANGERS)
    assert untraced >= 5
