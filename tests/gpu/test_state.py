"""State that is loaded lies where the next step wants it: counts with the weights, or on the processor."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from weightdecay import load_state_by_name, settings_by_name, state_by_name
from weightdecay.optim.adafactor import Adafactor
from weightdecay.optim.adamw import AdamL2, AdamW
from weightdecay.optim.lion import Lion
from weightdecay.optim.muon import Muon
from weightdecay.optim.sgdw import SGDW

pytestmark = pytest.mark.anywhere

Make = Callable[[Any], torch.optim.Optimizer]
MAKES: dict[str, Make] = {
    "AdamW for-loop": lambda groups: AdamW(groups, lr=1e-2, foreach=False),
    "AdamW foreach": lambda groups: AdamW(groups, lr=1e-2, foreach=True),
    "AdamW fused": lambda groups: AdamW(groups, lr=1e-2, fused=True),
    "AdamW fused cautious": lambda groups: AdamW(groups, lr=1e-2, fused=True, rule="cautious"),
    "AdamW fused amsgrad": lambda groups: AdamW(groups, lr=1e-2, fused=True, amsgrad=True),
    "AdamL2 fused": lambda groups: AdamL2(groups, lr=1e-2, fused=True),
    "Lion": lambda groups: Lion(groups, lr=1e-3),
    "SGDW": lambda groups: SGDW(groups, lr=1e-2, momentum=0.9),
    "Adafactor": lambda groups: Adafactor(groups, lr=1e-2),
    "Muon": lambda groups: Muon(groups, lr=1e-2),
    "torch AdamW fused": lambda groups: torch.optim.AdamW(groups, lr=1e-2, fused=True),
    "torch SGD fused": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9, fused=True),
}
CAPTURABLE: dict[str, Make] = {
    "AdamW capturable": lambda groups: AdamW(groups, lr=1e-2, foreach=True, capturable=True),
    "torch NAdam capturable": lambda groups: torch.optim.NAdam(groups, lr=1e-2, capturable=True),
}


def by_name(old: torch.optim.Optimizer, new: torch.optim.Optimizer) -> torch.optim.Optimizer:
    tensors = {key: value.cpu() for key, value in state_by_name(old).items()}  # as safetensors gives them back
    load_state_by_name(new, tensors, settings_by_name(old))
    return new


def by_state_dict(old: torch.optim.Optimizer, new: torch.optim.Optimizer) -> torch.optim.Optimizer:
    new.load_state_dict(copy.deepcopy(old.state_dict()))
    return new


def by_pickle(old: torch.optim.Optimizer, new: torch.optim.Optimizer) -> torch.optim.Optimizer:
    new.load_state_dict(pickle.loads(pickle.dumps(old.state_dict())))
    return new


def layers(device: torch.device) -> list[tuple[str, nn.Parameter]]:
    torch.manual_seed(0)
    return list(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8)).to(device).named_parameters())


def step(optimizer: torch.optim.Optimizer, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.randn(p.shape, generator=generator).to(p.device)
    optimizer.step()


def places(optimizer: torch.optim.Optimizer) -> list[dict[str, str]]:
    return [
        {key: str(value.device) for key, value in state.items() if isinstance(value, Tensor)}
        for state in optimizer.state.values()
    ]


@pytest.mark.parametrize("way", [by_name, by_state_dict, by_pickle])
@pytest.mark.parametrize("name", [*MAKES, *CAPTURABLE])
def test_what_is_loaded_goes_on_to_the_same_bits(name: str, way: Any, device: torch.device) -> None:
    if name in CAPTURABLE and device.type != "cuda":
        pytest.skip("capturable is of a device")
    make = (MAKES | CAPTURABLE)[name]
    old_params, new_params = layers(device), layers(device)
    old, new = make(old_params), make(new_params)
    for number in range(3):
        step(old, number)
    with torch.no_grad():
        for (_, there), (_, here) in zip(old_params, new_params, strict=True):
            here.copy_(there)
    new = way(old, new)
    assert places(new) == places(old)
    for number in range(3, 6):
        step(old, number)
        step(new, number)
    assert all(torch.equal(there, here) for (_, there), (_, here) in zip(old_params, new_params, strict=True))
