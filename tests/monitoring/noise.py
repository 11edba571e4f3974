"""Trainings of which everything is known: matrices on gradients of pure noise, watched by a monitor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weightdecay import Monitor

Make = Callable[[Any], Any]
Row = Mapping[str, Any]


class Matrices(nn.Module):
    """Linear layers that are never called: their gradients are given."""

    def __init__(self, *shapes: tuple[int, int], std: float = 1.0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.layers = nn.ModuleList(nn.Linear(columns, rows, bias=False) for rows, columns in shapes)
        for layer, shape in zip(self.layers, shapes, strict=True):
            layer.weight = nn.Parameter((std * torch.randn(shape, generator=generator)).to(dtype))

    def weights(self) -> list[nn.Parameter]:
        return list(self.parameters())


def noise(p: Tensor, generator: torch.Generator, std: float, invariant: bool) -> Tensor:
    """A gradient; orthogonal to the weight and inverse to its length where its output does not feel that."""
    g = std * torch.randn(p.shape, generator=generator)
    if invariant:
        w = p.detach()
        g = (g - w * (w * g).sum() / w.square().sum()) / w.square().mean().sqrt()
    return g.to(p.dtype)


def train(
    model: nn.Module,
    optimizer: Any,
    steps: int,
    *,
    std: float = 1.0,
    invariant: bool = False,
    lr: Callable[[int], float] | None = None,
    between: Callable[[int], None] | None = None,
) -> None:
    """Steps on noise that is the same each time."""
    generator = torch.Generator().manual_seed(3)
    for step in range(steps):
        if lr is not None:
            for group in optimizer.param_groups:
                group["lr"] = lr(step)
        for p in model.parameters():
            p.grad = noise(p, generator, std, invariant)
        optimizer.step()
        if between is not None:
            between(step)


def watched(model: nn.Module, make: Make, count: int, /, **options: Any) -> Monitor:
    """A monitor after a training of so many steps; options of either go where they belong."""
    own = {key: options.pop(key) for key in ("std", "invariant", "lr", "between") if key in options}
    optimizer = make(model.parameters())
    with Monitor(model, optimizer, **{"interval": 5, **options}) as monitor:
        train(model, optimizer, count, **own)
    return monitor


def of_tensors(monitor: Monitor, name: str | None = None) -> list[Row]:
    return [row for row in monitor.rows if row["kind"] == "decay" and name in (None, row["name"])]


def settled(rows: Iterable[Row], key: str) -> float:
    """The mean over the last quarter of the rows; of a norm by its square."""
    values = [row[key] for row in rows]
    last = values[len(values) * 3 // 4 :]
    if key == "weight_rms":
        return math.sqrt(sum(value**2 for value in last) / len(last))
    return float(sum(last)) / len(last)
