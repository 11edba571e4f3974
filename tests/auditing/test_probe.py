"""What a probe says of the decay of each tensor, beside what is known of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import weightdecay

LR, DECAY = 1e-3, 0.1


def model() -> nn.Module:
    torch.manual_seed(0)
    norm = nn.LayerNorm(64)
    nn.init.normal_(norm.bias, std=0.1)  # of weights that are 0 nothing can be said
    return nn.Sequential(nn.Embedding(50, 32), nn.Linear(32, 64), norm, nn.Linear(64, 50))


def train(net: nn.Module, optimizer: Any, steps: int) -> None:
    """Some steps, and a gradient that waits for the next."""
    torch.manual_seed(1)
    for step in range(steps + 1):
        optimizer.zero_grad()
        net(torch.randint(50, (4, 8))).square().mean().backward()
        if step < steps:
            optimizer.step()


@pytest.mark.parametrize(
    "cls", [torch.optim.AdamW, weightdecay.AdamW, weightdecay.Lion], ids=lambda cls: cls.__module__
)
@pytest.mark.parametrize("steps", [0, 3])
def test_a_decoupled_decay_is_lr_times_lambda_of_every_tensor(cls: Any, steps: int) -> None:
    net = model()
    optimizer = cls(net.parameters(), lr=LR, weight_decay=DECAY)
    train(net, optimizer, steps)
    seen = weightdecay.probe(net, optimizer)
    assert [tensor.name for tensor in seen] == [name for name, _ in net.named_parameters()]
    assert [tensor.realised for tensor in seen] == pytest.approx([LR * DECAY] * 7, rel=0.01)
    assert [tensor.requested for tensor in seen] == pytest.approx([LR * DECAY] * 7, rel=1e-5)
    (group,) = seen.groups
    assert group.factor == pytest.approx(1.0, rel=1e-5)
    assert group.lr_power == 1.0
    assert all(tensor.reads_weight_decay and not tensor.coupled for tensor in seen)
