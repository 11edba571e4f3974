"""The monitor on a CUDA device has the rows that it has on a processor."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import nn

from weightdecay import Monitor

DEVICE = os.environ.get("WEIGHTDECAY_GPU_TESTS_ON", "") or "cuda"


def rows_on(device: str, **options: Any) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 96), nn.LayerNorm(96), nn.Linear(96, 40, bias=False)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5, **options)
    with Monitor(model, optimizer, interval=2, sigma_max=True) as monitor:
        for step in range(8):
            for number, p in enumerate(model.parameters()):
                noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + number))
                p.grad = noise.to(device)
            optimizer.step()
    return monitor.rows


@pytest.mark.anywhere
@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}, {"capturable": True}])
def test_a_device_has_the_rows_of_a_processor(options: dict[str, Any]) -> None:
    if options.get("capturable") and DEVICE == "cpu":
        pytest.skip("needs a CUDA device")
    here, there = rows_on("cpu"), rows_on(DEVICE, **options)
    assert len(here) == len(there) > 0
    for one, other in zip(here, there, strict=True):
        for key, value in one.items():
            # Of two orders of summation the smallest of differences are left.
            near = pytest.approx(value, rel=2e-3, abs=1e-6) if isinstance(value, float) else value
            assert other[key] == near, (one["step"], one.get("name"), key)


@pytest.mark.anywhere
def test_a_learning_rate_on_the_device_is_followed() -> None:
    model = nn.Linear(16, 8, bias=False, device=DEVICE)
    lr = torch.tensor(1e-2, device=DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.5, capturable=DEVICE != "cpu")
    with Monitor(model, optimizer, interval=2) as monitor:
        for _ in range(4):
            model.weight.grad = torch.randn_like(model.weight)
            optimizer.step()
            lr.mul_(0.5)
    rows = [row for row in monitor.rows if row["kind"] == "decay"]
    assert [row["decay_requested"] for row in rows] == pytest.approx([2.5e-3, 6.25e-4])
    assert [row["decay_realised"] for row in rows] == pytest.approx([2.5e-3, 6.25e-4], rel=1e-3)
