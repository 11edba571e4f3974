"""Weights that were moved under an optimizer: it says which, and what to do, before anything has changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import weightdecay
from weightdecay.errors import OptimizerError
from weightdecay.optim.adafactor import Adafactor
from weightdecay.optim.adamw import AdamL2, AdamW
from weightdecay.optim.lion import Lion
from weightdecay.optim.muon import Muon
from weightdecay.optim.sgdw import SGDW

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "AdamW": (AdamW, {}),
    "AdamW fused": (AdamW, {"fused": True}),
    "AdamW foreach": (AdamW, {"foreach": True, "amsgrad": True}),
    "AdamW fused cautious": (AdamW, {"fused": True, "rule": "cautious"}),
    "AdamW towards_initial": (AdamW, {"rule": "towards_initial"}),
    "AdamL2 fused": (AdamL2, {"fused": True}),
    "Lion": (Lion, {}),
    "SGDW": (SGDW, {"momentum": 0.9}),
    "SGDW fused": (SGDW, {"momentum": 0.9, "fused": True}),
    "Adafactor": (Adafactor, {}),
    "Adafactor unfactored": (Adafactor, {"factored": False, "beta1": 0.9}),
    "Muon": (Muon, {}),
    "Muon of even neurons": (Muon, {"neuron_beta2": 0.9}),
}


def replace(model: nn.Linear, *shape: int) -> None:
    model.weight.data = torch.ones(shape, dtype=model.weight.dtype)
    model.weight.grad = torch.ones_like(model.weight)


def to_meta(model: nn.Linear) -> None:
    torch.utils.swap_tensors(model.weight, nn.Parameter(model.weight.detach().to("meta")))  # type: ignore[no-untyped-call]
    model.weight.grad = torch.zeros_like(model.weight)


MOVES: dict[str, Callable[[nn.Linear], Any]] = {
    "to float64": lambda model: model.double(),
    "to a larger shape": lambda model: replace(model, 60, 80),  # the fused kernels would write behind their state
    "to the transposed shape": lambda model: replace(model, 8, 6),
    "to meta": to_meta,
}


def made(kind: str, dtype: torch.dtype = torch.float32, **more: Any) -> tuple[nn.Linear, torch.optim.Optimizer]:
    """A model and its optimizer after one step, with the gradients of a second."""
    torch.manual_seed(0)
    model = nn.Linear(8, 6).to(dtype)
    cls, settings = KINDS[kind]
    optimizer: torch.optim.Optimizer = cls(model.named_parameters(), lr=0.01, weight_decay=0.1, **{**settings, **more})
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.full_like(p, 0.5)
        if not optimizer.state:
            optimizer.step()
    return model, optimizer


def all_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    kept = [[p.detach(), p.grad, *optimizer.state.get(p, {}).values()] for p in model.parameters()]
    return copy.deepcopy([one for each in kept for one in each if not (hasattr(one, "is_meta") and one.is_meta)])


def refused(model: nn.Module, optimizer: torch.optim.Optimizer, name: str = "weight") -> None:
    before = all_of(model, optimizer)
    for _ in range(2):  # and again: nothing has been got used to
        with pytest.raises(OptimizerError, match=rf"'{name}' is .* moved or replaced .* Move them back; or"):
            optimizer.step()
    for old, new in zip(before, all_of(model, optimizer), strict=True):
        assert torch.equal(old, new) if isinstance(old, torch.Tensor) else old == new


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_beside_the_state_of_others_are_refused_by_name(kind: str, move: str) -> None:
    model, optimizer = made(kind)
    MOVES[move](model)
    refused(model, optimizer)


@pytest.mark.parametrize("kind", ["AdamW", "AdamW fused", "Lion", "SGDW", "Muon"])
def test_weights_in_bfloat16_beside_float32_moments_are_refused_without_a_rounding(kind: str) -> None:
    model, optimizer = made(kind)
    model.to(torch.bfloat16)
    refused(model, optimizer)


@pytest.mark.parametrize("rounding", ["kahan", "master"])
@pytest.mark.parametrize("kind", ["AdamW", "Lion", "SGDW", "Adafactor", "Muon"])
def test_float32_weights_beside_what_a_rounding_remembers_are_refused(kind: str, rounding: str) -> None:
    model, optimizer = made(kind, torch.bfloat16, rounding=rounding)
    model.float()
    refused(model, optimizer)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_copied_optimizer_and_a_compiled_one_say_it_too(compiled: bool) -> None:
    model, optimizer = made("AdamW", torch.bfloat16, rounding="kahan")
    if compiled:
        optimizer._workspace.compiled = True  # type: ignore[attr-defined]
    model, optimizer = copy.deepcopy((model, optimizer))
    replace(model, 60, 80)
    refused(model, optimizer)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_moved_back_go_on_as_if_nothing_had_been(kind: str) -> None:
    (model, optimizer), (other, undisturbed) = made(kind), made(kind)
    model.double()
    refused(model, optimizer)
    model.float()
    optimizer.step()
    undisturbed.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_moved_before_the_first_step_are_stepped_as_they_are(kind: str) -> None:
    cls, settings = KINDS[kind]
    model = nn.Linear(8, 6)
    optimizer = cls(model.named_parameters(), lr=0.01, weight_decay=0.1, **settings)
    model.double()
    before = model.weight.detach().clone()
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.5)
    optimizer.step()
    assert model.weight.dtype == torch.float64
    assert not torch.equal(model.weight, before)


def test_the_remedy_holds() -> None:
    model, optimizer = made("AdamW")
    model.double()
    refused(model, optimizer)
    anew = AdamW(model.named_parameters(), lr=0.01, weight_decay=0.1)
    weightdecay.load_state_by_name(anew, weightdecay.state_by_name(optimizer), on_change="override")
    anew.step()
    assert anew.state[model.weight]["exp_avg"].dtype == torch.float64
    assert anew.state[model.weight]["step"] == 2


@pytest.mark.parametrize("rounding", ["kahan", "master"])
def test_the_remedy_holds_without_what_a_rounding_remembered(rounding: str) -> None:
    model, optimizer = made("AdamW", torch.bfloat16, rounding=rounding)
    model.float()
    left = next(key for key in optimizer.state[model.weight] if key in ("compensation", "master"))
    with pytest.raises(OptimizerError, match=f"leave out what ends in /{left}"):
        optimizer.step()
    saved = {k: v for k, v in weightdecay.state_by_name(optimizer).items() if not k.endswith(f"/{left}")}
    anew = AdamW(model.named_parameters(), lr=0.01, weight_decay=0.1)
    weightdecay.load_state_by_name(anew, saved, on_change="override")
    anew.step()
    assert anew.state[model.weight]["step"] == 2


def test_a_gradient_of_other_weights_is_refused_by_name() -> None:
    model = nn.Linear(8, 6)
    optimizer = AdamW(model.named_parameters(), fused=True)
    model.weight.grad = torch.ones_like(model.weight)
    model.weight.data = torch.ones(60, 80)
    with pytest.raises(OptimizerError, match=r"'weight' is float32 \(60, 80\) on cpu and its gradient .*\(6, 8\)"):
        optimizer.step()


@pytest.mark.filterwarnings("ignore::weightdecay.PrecisionWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("weights", "gradients"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_a_gradient_in_another_dtype_is_refused_by_name_and_taken_under_a_rounding(
    kind: str, weights: str, gradients: str
) -> None:
    dtype, other = getattr(torch, weights), getattr(torch, gradients)
    model, optimizer = made(kind, dtype)
    model.weight.grad = None
    model.weight.grad_dtype = other
    model.weight.grad = torch.full_like(model.weight, 0.5, dtype=other)
    before = all_of(model, optimizer)
    with pytest.raises(OptimizerError, match=f"'weight' is {weights} and its gradient {gradients}, .* `grad_dtype`"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, all_of(model, optimizer), strict=True) if a is not None)

    if weights == "bfloat16":
        (model, optimizer), (same, reference) = (made(kind, dtype, rounding="kahan") for _ in range(2))
        model.weight.grad = None
        model.weight.grad_dtype = other
        model.weight.grad = torch.full_like(model.weight, 0.5, dtype=other)
        optimizer.step()
        reference.step()
        assert torch.equal(model.weight, same.weight)
