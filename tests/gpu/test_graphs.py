"""Steps that a CUDA graph records once and replays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from weightdecay.errors import OptimizerError
from weightdecay.optim.adamw import AdamL2, AdamW
from weightdecay.optim.lion import Lion
from weightdecay.optim.sgdw import SGDW
from weightdecay.rules import RULES

WARM_UP, REPLAYS = 3, 5
ADAMS: list[dict[str, Any]] = [{"foreach": True}, {"foreach": False}, {"fused": True}]


def made(make: Callable[..., Any], dtype: torch.dtype, **settings: Any) -> tuple[list[nn.Parameter], Any]:
    generator = torch.Generator().manual_seed(0)
    params = []
    for shape in ((64, 48), (7,), (3, 4, 5)):
        p = nn.Parameter(torch.randn(shape, generator=generator).to("cuda", dtype))
        p.grad = torch.randn(shape, generator=generator).to("cuda", dtype)
        params.append(p)
    return params, make(params, lr=1e-2, **settings)


def next_gradients(params: list[nn.Parameter], generator: torch.Generator) -> None:
    for p in params:
        assert p.grad is not None
        p.grad.copy_(torch.randn(p.shape, generator=generator))


def eagerly(params: list[nn.Parameter], optimizer: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(WARM_UP + REPLAYS):
        next_gradients(params, generator)
        optimizer.step()
    return [p.detach().clone() for p in params]


def recorded(params: list[nn.Parameter], optimizer: Any) -> list[Tensor]:
    """The same steps, all but the first ones replayed."""
    generator = torch.Generator().manual_seed(1)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            next_gradients(params, generator)
            optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for _ in range(REPLAYS):
        next_gradients(params, generator)
        graph.replay()
    torch.cuda.synchronize()
    return [p.detach().clone() for p in params]


def check(make: Callable[..., Any], dtype: torch.dtype = torch.float32, **settings: Any) -> None:
    expected = eagerly(*made(make, dtype, **settings))
    found = recorded(*made(make, dtype, **settings))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("rule", [name for name in RULES if name != "l2"])
@pytest.mark.parametrize("path", ADAMS, ids=str)
def test_a_recorded_adamw_step_is_the_eager_one(path: dict[str, Any], rule: str) -> None:
    weight_decay = 1e-3 if rule == "fixed" else 0.1
    check(AdamW, rule=rule, weight_decay=weight_decay, capturable=True, **path)


@pytest.mark.parametrize("path", ADAMS, ids=str)
def test_a_recorded_coupled_adam_step_is_the_eager_one(path: dict[str, Any]) -> None:
    check(AdamL2, weight_decay=0.1, capturable=True, **path)


@pytest.mark.parametrize("rule", ["decoupled", "cautious", "towards_initial"])
@pytest.mark.parametrize(("make", "settings"), [(Lion, {}), (SGDW, {"momentum": 0.9})], ids=["Lion", "SGDW"])
def test_a_recorded_step_without_a_counter_is_the_eager_one(make: Any, settings: dict[str, Any], rule: str) -> None:
    check(make, rule=rule, weight_decay=0.1, **settings)


@pytest.mark.parametrize("path", ADAMS[:2], ids=str)
def test_an_lr_on_the_device_moves_a_recorded_step(path: dict[str, Any]) -> None:
    """What a schedule changes between replays has to be a tensor; the decay follows it."""
    (p, *_), optimizer = made(AdamW, torch.float32, weight_decay=0.1, capturable=True, **path)
    group = optimizer.param_groups[0]
    group["lr"] = torch.tensor(1e-2, device="cuda")
    for other in group["params"]:
        other.grad.zero_()
    optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for lr in (1e-2, 5e-3, 1e-4):  # at 0 torch's for-loop divides by it
        before = p.detach().double()
        group["lr"].fill_(lr)
        graph.replay()
        torch.testing.assert_close(p.detach().double(), before * (1 - 0.1 * lr), rtol=1e-6, atol=0)


def test_an_lr_on_the_device_that_a_rule_must_read_is_refused_while_recording() -> None:
    _, optimizer = made(AdamW, torch.float32, weight_decay=0.1, rule="cautious", capturable=True, foreach=True)
    optimizer.param_groups[0]["lr"] = torch.tensor(1e-2, device="cuda")
    optimizer.step()
    torch.cuda.synchronize()
    with pytest.raises(OptimizerError, match="give lr as a number"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()
