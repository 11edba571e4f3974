"""Plan, probe and audit of a model on a GPU say what they say elsewhere, and leave no trace there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import weightdecay

pytestmark = pytest.mark.anywhere

LR, DECAY = 1e-3, 0.1
KINDS: list[tuple[Any, dict[str, Any]]] = [
    (torch.optim.AdamW, {}),
    (torch.optim.AdamW, {"fused": True}),
    (torch.optim.AdamW, {"foreach": False}),
    (torch.optim.AdamW, {"capturable": True}),
    (weightdecay.AdamW, {}),
    (weightdecay.AdamW, {"fused": True}),
    (weightdecay.AdamW, {"capturable": True}),
    (weightdecay.AdamW, {"rule": "independent", "peak_lr": LR}),
    (weightdecay.Lion, {}),
    (weightdecay.SGDW, {"momentum": 0.9}),
    (weightdecay.Adafactor, {}),
]
every_kind = pytest.mark.parametrize(("cls", "settings"), KINDS, ids=str)


def model(device: torch.device, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    norm = nn.LayerNorm(64)
    nn.init.normal_(norm.bias, std=0.1)  # of weights that are 0 nothing can be said
    return nn.Sequential(nn.Embedding(50, 32), nn.Linear(32, 64), norm, nn.Linear(64, 50)).to(device, dtype)


def trained(cls: Any, settings: dict[str, Any], device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """After two steps, with a gradient that waits for the next."""
    if "capturable" in settings and device.type == "cpu":
        pytest.skip("capturable needs a GPU")
    net = model(device, dtype)
    optimizer = cls(net.parameters(), lr=LR, weight_decay=DECAY, **settings)
    torch.manual_seed(1)
    for step in range(3):
        net.zero_grad()
        tokens = torch.randint(50, (4, 8)).to(device)
        torch.autograd.backward(net(tokens).float().square().mean())
        if step < 2:
            optimizer.step()
    return net, optimizer


def contents(net: nn.Module, optimizer: Any) -> list[torch.Tensor]:
    """All numbers that a step might touch, of the device's generators too."""
    seen = [torch.get_rng_state()]
    if torch.cuda.is_available():
        seen += torch.cuda.get_rng_state_all()
    for p in net.parameters():
        assert p.grad is not None
        seen += [p.detach(), p.grad]
        seen += [value for value in optimizer.state[p].values() if isinstance(value, torch.Tensor)]
    return [value.clone() for value in seen]


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_probe_finds_the_decay_that_was_asked_for_and_leaves_no_trace(
    cls: Any, settings: dict[str, Any], dtype: torch.dtype, device: torch.device
) -> None:
    if dtype is torch.bfloat16 and cls is weightdecay.Adafactor:
        pytest.skip("its relative step takes from the weights what the decay takes")
    net, optimizer = trained(cls, settings, device, dtype)
    before = contents(net, optimizer)
    seen = weightdecay.probe(net, optimizer)
    after = contents(net, optimizer)
    assert len(after) == len(before)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    asked = DECAY if settings.get("rule") == "independent" else LR * DECAY
    in_full = dtype is torch.float32
    assert [tensor.requested for tensor in seen] == pytest.approx([asked] * 7, rel=1e-5 if in_full else 5e-3)
    if in_full:
        assert [tensor.realised for tensor in seen] == pytest.approx([asked] * 7, rel=0.01)


@every_kind
def test_a_probed_run_goes_on_as_one_that_was_not(cls: Any, settings: dict[str, Any], device: torch.device) -> None:
    ends = []
    for probed in (True, False):
        net, optimizer = trained(cls, settings, device, torch.float32)
        if probed:
            weightdecay.probe(net, optimizer)
            weightdecay.audit(net, optimizer)
        dropped = nn.functional.dropout(torch.ones(100, device=device))  # draws from the device's generator
        optimizer.step()
        ends.append([dropped, *(p.detach() for p in net.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@every_kind
def test_an_audit_finds_what_it_finds_on_a_processor(cls: Any, settings: dict[str, Any], device: torch.device) -> None:
    elsewhere = {key: value for key, value in settings.items() if key != "capturable"}
    there = weightdecay.audit(*trained(cls, settings, device, torch.float32))
    here = weightdecay.audit(*trained(cls, elsewhere, torch.device("cpu"), torch.float32))
    assert [(found.code, found.severity) for found in there.findings] == [
        (found.code, found.severity) for found in here.findings
    ]
    assert there.ok == here.ok
    assert there.findings  # norms and biases decay


def test_a_plan_does_not_depend_on_where_the_model_is(device: torch.device) -> None:
    def lines(where: torch.device) -> list[tuple[str, Any, float]]:
        net = weightdecay.GPT(weightdecay.recipe("llama2:nano").model).to(where)
        return [(tensor.name, tensor.role, tensor.multiplier) for tensor in weightdecay.plan(net, weight_decay=0.1)]

    assert lines(device) == lines(torch.device("cpu"))
