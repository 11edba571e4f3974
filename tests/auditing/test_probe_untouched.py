"""A probe leaves everything as it was, bit for bit, and a run goes on as one that was never probed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from optimizer_classes import Kind, kinds
from torch import Tensor, nn

import weightdecay
from weightdecay.rules import RULES

OURS: list[Any] = [
    weightdecay.AdamW,
    weightdecay.AdamL2,
    weightdecay.Lion,
    weightdecay.SGDW,
    weightdecay.Adafactor,
    weightdecay.Muon,
]
ROUNDINGS = ("nearest", "stochastic", "kahan", "master")


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(12)
    return nn.Sequential(nn.Linear(8, 12), norm, nn.Tanh(), nn.Linear(12, 6, bias=False)).to(dtype)


def forward(net: nn.Module) -> Tensor:
    p = next(net.parameters())
    out: Tensor = net(torch.randn(16, 8, dtype=p.dtype))
    return out.float().square().mean()


def train(net: nn.Module, optimizer: Any, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        forward(net).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def halves(net: nn.Module, only_matrices: bool) -> list[dict[str, Any]]:
    params = [p for p in net.parameters() if p.ndim == 2 or not only_matrices]
    return [{"params": params[:1], "weight_decay": 0.1}, {"params": params[1:], "weight_decay": 0.0}]


def everything(net: nn.Module, optimizer: Any) -> list[Any]:
    """All that a step might touch: objects by identity, contents by value."""
    seen: list[Any] = []

    def look(value: Any) -> None:
        if isinstance(value, Tensor):
            kept = value.to_dense() if value.layout != torch.strided else value
            address = value.data_ptr() if value.layout == torch.strided else 0
            seen.append((id(value), address, value._version, value.requires_grad, kept.detach().clone()))
            if value.is_leaf and value.grad is not None:
                look(value.grad)
        elif isinstance(value, dict):
            seen.append((id(value), type(value), [id(key) if isinstance(key, Tensor) else key for key in value]))
            for held in value.values():
                look(held)
        elif isinstance(value, list | tuple):
            seen.append((id(value) if isinstance(value, list) else type(value), len(value)))
            for held in value:
                look(held)
        else:
            seen.append(value if isinstance(value, int | float | str | bool | None) else id(value))

    look(tuple(net.parameters()))
    look(tuple(net.buffers()))
    for module in net.modules():
        look(vars(module))
    look(optimizer.param_groups)
    look(vars(optimizer))
    look(getattr(optimizer, "state", None))
    look(tuple(vars(kind).get("step") for kind in type(optimizer).__mro__))
    numpys: Any = np.random.get_state()
    seen.append((torch.get_rng_state(), random.getstate(), numpys[1].tolist(), numpys[2:]))
    return seen


def differences(one: Any, other: Any) -> list[Any]:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same = one.shape == other.shape and one.dtype == other.dtype and torch.equal(bits(one), bits(other))
        return [] if same else [(one, other)]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [found for a, b in zip(one, other, strict=True) for found in differences(a, b)]
    return [] if type(one) is type(other) and one == other else [(one, other)]


def bits(tensor: Tensor) -> Tensor:
    """NaN is itself, and −0 is not 0."""
    return tensor.contiguous().view(torch.uint8) if tensor.ndim else tensor.reshape(1).view(torch.uint8)


@contextmanager
def unchanged(net: nn.Module, optimizer: Any) -> Iterator[None]:
    before = everything(net, optimizer)
    yield
    assert differences(before, everything(net, optimizer)) == []


def goes_on(make: Callable[[nn.Module], Any], dtype: torch.dtype = torch.float32) -> None:
    """Probed before its first step, between backward and step, and between steps; beside one that was never probed."""
    weights = []
    for probed in (True, False):
        net = model(dtype)
        optimizer = make(net)
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(1)
        for step in range(4):
            optimizer.zero_grad()
            loss = forward(net)
            if probed and step == 2:  # what backward needs has not changed since
                weightdecay.probe(net, optimizer)
            loss.backward()  # type: ignore[no-untyped-call]
            if probed and step in (0, 3):
                with unchanged(net, optimizer):
                    weightdecay.probe(net, optimizer)
            optimizer.step()
        weights.append([p.detach().clone() for p in net.parameters()])
    assert differences(*weights) == []


TORCHS = [kind for kind in kinds("torch.optim") if kind.name not in ("LBFGS", "SparseAdam")]
# One of each kind of step; the rest take a minute together.
SHORT = (
    "AdamW", "Adam(fused=True)", "SGD(momentum=0.9)", "Muon", "Adafactor", "AdamW-cautious-nearest",
    "SGDW-towards_initial-nearest", "AdamW-decoupled-stochastic", "Lion-decoupled-kahan", "Muon-decoupled-master",
)  # fmt: skip


def shortened(cases: dict[str, Any]) -> list[Any]:
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)), id=name, marks=[pytest.mark.long] * (name not in SHORT)
        )
        for name, case in cases.items()
    ]


@pytest.mark.parametrize("kind", shortened({kind.title: kind for kind in TORCHS}))
def test_every_optimizer_of_torch_goes_on_as_if_never_probed(kind: Kind) -> None:
    goes_on(lambda net: kind.make(halves(net, kind.name == "Muon"), lr=1e-2))


def ours() -> Iterator[tuple[Any, str, str]]:
    for cls, rule in itertools.product(OURS, RULES):
        if not cls.refusal(RULES[rule]):
            yield cls, rule, "nearest"
    for cls, rounding in itertools.product(OURS, ROUNDINGS[1:]):
        yield cls, "l2" if cls is weightdecay.AdamL2 else "decoupled", rounding


@pytest.mark.parametrize(
    ("cls", "rule", "rounding"), shortened({f"{case[0].__name__}-{case[1]}-{case[2]}": case for case in ours()})
)
def test_every_optimizer_of_ours_goes_on_as_if_never_probed(cls: Any, rule: str, rounding: str) -> None:
    def make(net: nn.Module) -> Any:
        groups = [{**group, "peak_lr": 1e-2} for group in halves(net, cls is weightdecay.Muon)]
        how = {} if cls is weightdecay.AdamL2 else {"rule": rule}
        return cls(groups, lr=1e-2, rounding=rounding, **how)

    goes_on(make, torch.float32 if rounding == "nearest" else torch.bfloat16)
