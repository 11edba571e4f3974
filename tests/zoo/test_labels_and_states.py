"""What the living test compares with, tried on small models."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.zoo.model import Model, of_torch
from tests.zoo.states import changed, state_of


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


def put(tensor: torch.Tensor, value: float) -> None:
    with torch.no_grad():
        tensor[0] = value


CHANGES: dict[str, Callable[[Any], object]] = {
    "parameter 0.bias": lambda model: put(model[0].bias, float("nan")),
    "buffer 1.running_mean": lambda model: put(model[1].running_mean, -0.0),
    "gradient of 0.weight": lambda model: model(torch.randn(3, 2)).sum().backward(),
    "flags of 0.weight": lambda model: model[0].weight.requires_grad_(False),
    "class of 0": lambda model: setattr(model[0], "__class__", nn.Identity),
    "hooks of 1": lambda model: model[1].register_forward_hook(lambda *_: None),
    "1.training": lambda model: model.eval(),
    "1.momentum": lambda model: setattr(model[1], "momentum", 0.5),
    "torch's generator": lambda _: torch.rand(1),
    "numpy's generator": lambda _: np.random.rand(),
    "Python's generator": lambda _: random.random(),
}


def test_a_model_that_nobody_touched_is_as_it_was() -> None:
    model = small()
    assert not changed(state_of(model), state_of(model))


@pytest.mark.parametrize("name", CHANGES)
def test_each_kind_of_change_is_seen(name: str) -> None:
    model = small()
    before = state_of(model)
    CHANGES[name](model)
    assert name in changed(before, state_of(model))


def test_a_tensor_without_a_label_and_a_pattern_that_matches_nothing_are_faults() -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(2, 3))

    model = Model("torch", "strange", Strange, lambda: None, exempt={"tabel": "a slip"})
    with pytest.raises(LookupError, match=r"table \[2, 3\] of Strange.*tabel"):
        model.labels(model.build())


def test_the_longest_pattern_decides_before_the_type_does() -> None:
    model = Model("torch", "linear", lambda: nn.Linear(2, 2), lambda: None, decays={"b": ""}, exempt={"bia": ""})
    built = model.build()
    assert isinstance(built, nn.Linear)
    assert model.labels(built) == {built.weight: of_torch(built, "weight"), built.bias: "exempt"}


def test_of_a_tied_tensors_labels_exempt_comes_before_open_and_open_before_decays() -> None:
    def tied() -> nn.Module:
        first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        second.weight = first.weight
        return nn.Sequential(first, second)

    opened = Model("torch", "tied", tied, lambda: None, open={r"0\.weight": ""})
    exempted = Model("torch", "tied", tied, lambda: None, open={r"0\.weight": ""}, exempt={r"1\.weight": ""})
    assert [*opened.labels(tied()).values(), *exempted.labels(tied()).values()] == ["open", "exempt"]
