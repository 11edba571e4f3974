"""Weights, gradients and state that lie differently in memory: torch's fused kernels go by place, and ours may not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightdecay
from weightdecay.errors import OptimizerError
from weightdecay.optim.adamw import AdamL2, AdamW
from weightdecay.optim.muon import Muon
from weightdecay.optim.sgdw import SGDW

SHAPE, STEPS = (6, 4, 3, 2), 4
FUSED: dict[str, tuple[Any, dict[str, Any]]] = {
    "AdamW": (AdamW, {}),
    "AdamW amsgrad": (AdamW, {"amsgrad": True}),
    "AdamW cautious": (AdamW, {"rule": "cautious"}),
    "AdamW towards_initial": (AdamW, {"rule": "towards_initial"}),
    "AdamL2": (AdamL2, {}),
    "SGDW": (SGDW, {"momentum": 0.9}),
    "SGDW cautious": (SGDW, {"momentum": 0.9, "rule": "cautious"}),
    "Muon's AdamW": (Muon, {}),
}
LAYOUTS = {
    "contiguous": torch.contiguous_format,
    "channels last": torch.channels_last,
}
every = pytest.mark.parametrize("name", FUSED)


def weights(layout: torch.memory_format) -> nn.Parameter:
    drawn = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    return nn.Parameter(drawn.to(memory_format=layout))


def made(name: str, p: nn.Parameter) -> torch.optim.Optimizer:
    cls, settings = FUSED[name]
    optimizer: torch.optim.Optimizer = cls([("w", p)], lr=0.05, weight_decay=0.1, fused=True, **settings)
    return optimizer


def gradient(step: int, layout: torch.memory_format) -> Tensor:
    drawn = torch.randn(SHAPE, generator=torch.Generator().manual_seed(100 + step))
    return drawn.to(memory_format=layout)


def stepped(name: str, p: nn.Parameter, layout: torch.memory_format) -> Tensor:
    optimizer = made(name, p)
    for step in range(STEPS):
        p.grad = gradient(step, layout)
        optimizer.step()
    return p.detach().contiguous()


@every
@pytest.mark.parametrize("of_weights", LAYOUTS)
@pytest.mark.parametrize("of_gradients", LAYOUTS)
def test_where_numbers_lie_in_memory_decides_nothing(name: str, of_weights: str, of_gradients: str) -> None:
    plain = stepped(name, weights(torch.contiguous_format), torch.contiguous_format)
    found = stepped(name, weights(LAYOUTS[of_weights]), LAYOUTS[of_gradients])
    assert torch.equal(found, plain)


@every
def test_the_gradient_is_the_users_own_after_the_step(name: str) -> None:
    p = weights(torch.channels_last)
    optimizer = made(name, p)
    given = p.grad = gradient(0, torch.contiguous_format)
    optimizer.step()
    assert p.grad is given
    assert torch.equal(given, gradient(0, torch.contiguous_format))


@every
def test_a_scale_is_taken_out_of_the_gradient_wherever_it_lies(name: str) -> None:
    def after(layout: torch.memory_format) -> Tensor:
        p = weights(torch.channels_last)
        optimizer: Any = made(name, p)
        given = p.grad = gradient(0, layout)
        optimizer.grad_scale = torch.tensor(4.0)
        optimizer.step()
        return given

    assert torch.equal(after(torch.contiguous_format), gradient(0, torch.contiguous_format) / 4)
    assert torch.equal(after(torch.channels_last), gradient(0, torch.contiguous_format) / 4)


@every
def test_a_gradient_that_is_one_number_for_all_is_taken_as_one(name: str) -> None:
    def after(grad: Tensor) -> Tensor:
        p = nn.Parameter(torch.arange(1.0, 7.0))
        optimizer = made(name, p)
        p.grad = grad
        optimizer.step()
        return p.detach()

    assert torch.equal(after(torch.full((1,), 0.5).expand(6)), after(torch.full((6,), 0.5)))


@every
@pytest.mark.parametrize("way", ["by name", "by position", "converted under way"])
def test_a_run_with_weights_in_channels_last_goes_on_bit_for_bit(name: str, way: str) -> None:
    expected = stepped(name, weights(torch.contiguous_format), torch.contiguous_format)
    p = weights(torch.contiguous_format if way == "converted under way" else torch.channels_last)
    optimizer = made(name, p)
    for step in range(STEPS):
        if step == STEPS // 2:
            if way == "converted under way":
                p.data = p.data.to(memory_format=torch.channels_last)
            else:
                saved, optimizer = optimizer, made(name, p)
                if way == "by position":
                    optimizer.load_state_dict(saved.state_dict())
                else:
                    tensors, settings = weightdecay.state_by_name(saved), weightdecay.settings_by_name(saved)
                    weightdecay.load_state_by_name(optimizer, tensors, settings)
        p.grad = gradient(step, torch.channels_last)
        optimizer.step()
    assert torch.equal(p.detach().contiguous(), expected)


@every
def test_weights_with_others_between_them_are_refused_and_those_do_not_change(name: str) -> None:
    whole = torch.ones(3, 10)
    p = nn.Parameter(whole[:, :5])
    p.grad = torch.ones(3, 5)
    cls, settings = FUSED[name]
    groups = [{"params": [p], "algorithm": "adamw"} if cls is Muon else {"params": [p]}]
    with pytest.raises(OptimizerError, match=r"group 0: fused=True would write between weights"):
        cls(groups, lr=0.1, fused=True, **settings).step()
    assert torch.equal(whole, torch.ones(3, 10))

    cls(groups, lr=0.1, fused=False, **settings).step()
    assert torch.equal(whole[:, 5:], torch.ones(3, 5))
    assert not torch.equal(whole[:, :5], torch.ones(3, 5))


@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_optimizers_of_torchs_go_on_by_name_bit_for_bit(cls: Any, layout: str) -> None:
    settings: dict[str, Any] = {"momentum": 0.9} if cls is torch.optim.SGD else {}

    def run(resumed: bool) -> Tensor:
        p = weights(LAYOUTS[layout])
        optimizer = cls([("w", p)], lr=0.05, fused=True, **settings)
        for step in range(STEPS):
            if step == STEPS // 2 and resumed:
                tensors, said = weightdecay.state_by_name(optimizer), weightdecay.settings_by_name(optimizer)
                optimizer = cls([("w", p)], lr=0.05, fused=True, **settings)
                weightdecay.load_state_by_name(optimizer, tensors, said)
            p.grad = gradient(step, LAYOUTS[layout])
            optimizer.step()
        return p.detach()

    assert torch.equal(run(resumed=True), run(resumed=False))
