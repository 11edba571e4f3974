"""A small training loop, as a repository has one: its model, its optimizer, its steps.

python train.py --steps 20
"""

from __future__ import annotations

import argparse

import torch
from torch import nn


class Block(nn.Module):
    """A residual block with a gain of its own, which a rule on shapes decays."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, 1, width))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = nn.functional.rms_norm(x, x.shape[-1:]) * self.gain
        changed: torch.Tensor = self.down(nn.functional.gelu(self.up(normed)))
        return x + changed


def build(decay_by_dimensions: bool = True) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model and its optimizer: the usual rule, that what has two axes or more decays."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(32, 16), Block(16), Block(16), nn.Linear(16, 32, bias=False))
    if not decay_by_dimensions:
        import weightdecay

        groups = weightdecay.plan(model, weight_decay=0.1).param_groups(lr=1e-3)
        return model, torch.optim.AdamW(groups)
    decaying = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decaying, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return model, torch.optim.AdamW(groups, lr=1e-3)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> float:
    tokens = torch.arange(256).view(16, 16) * 7 % 32
    for step in range(steps):
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss.item():.3f}")
    return loss.item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    train(*build(), steps=parser.parse_args().steps)
