"""Modules made of a few parameters and a function, for tests of what a forward shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

import weightdecay
from weightdecay import DecayPlan


class Made(nn.Module):
    """Parameters and buffers of given shapes, and a forward that is a plain function of the module and its input."""

    def __init__(
        self,
        forward: Callable[..., Any],
        shapes: Mapping[str, tuple[int, ...]],
        buffers: Mapping[str, torch.Tensor] | None = None,
        **modules: nn.Module,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape, generator=generator) * 0.1))
        for name, buffer in (buffers or {}).items():
            self.register_buffer(name, buffer)
        for name, module in modules.items():
            setattr(self, name, module)
        self.function = forward

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def planned(
    forward: Callable[..., Any],
    shapes: Mapping[str, tuple[int, ...]],
    *inputs: torch.Tensor,
    buffers: Mapping[str, torch.Tensor] | None = None,
    modules: Mapping[str, nn.Module] | None = None,
) -> DecayPlan:
    """The plan of such a module, traced on these inputs."""
    return weightdecay.plan(Made(forward, shapes, buffers, **(modules or {})), batch=inputs)
