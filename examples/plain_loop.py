"""A plan in an ordinary loop: decide, group, train, and check that the optimizer still carries it.

python examples/plain_loop.py
"""

from __future__ import annotations

import torch
from torch import nn

import weightdecay


class Scaled(nn.Module):
    """A residual block with a gain of an unusual shape, which a rule on shapes would decay."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.strength = nn.Parameter(torch.full((4, width // 4), 0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = self.inner(x).unflatten(-1, self.strength.shape) * self.strength
        return x + scaled.flatten(-2)


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(64, 32), Scaled(32), Scaled(32), nn.Linear(32, 64, bias=False))

    plan = weightdecay.plan(model, weight_decay=0.1)
    print(plan)
    optimizer = torch.optim.AdamW(plan.param_groups(lr=1e-2))

    tokens = torch.randint(64, (256, 8))
    for step in range(30):
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    print(plan.check(optimizer))
    print("nanoGPT's rule would differ on:")
    print(plan.diff(weightdecay.plan(model, weight_decay=0.1, policy="nanogpt")))


if __name__ == "__main__":
    main()
