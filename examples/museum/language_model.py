"""The model of most exhibits: tokens, two blocks, a head; and three steps of any training loop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, WIDTH = 48, 32


class Block(nn.Module):
    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.gelu(self.up(self.norm(x))))
        return x + y


class LanguageModel(nn.Module):
    def __init__(self, width: int = WIDTH, blocks: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.tokens(ids)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def two_groups(tensors: Iterable[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay, the rest does not: right for this model, all of whose matrices are linear layers' or tables."""
    tensors = list(tensors)
    return [
        {"params": [p for p in tensors if p.ndim == 2], "weight_decay": weight_decay},
        {"params": [p for p in tensors if p.ndim < 2], "weight_decay": 0.0},
    ]


def batch() -> Tensor:
    """Every token of the vocabulary, so that no row of the embedding is idle."""
    return torch.randperm(VOCABULARY).view(4, -1)


def backward(model: nn.Module) -> None:
    ids = batch()
    logits: Tensor = model(ids)
    loss = F.cross_entropy(logits.float().flatten(0, 1), ids.flatten())
    torch.autograd.backward(loss)


def train(model: nn.Module, *optimizers: Any, steps: int = 3) -> None:
    """A few steps, and the gradients of the next: where an audit is usually pasted."""
    for _ in range(steps):
        backward(model)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
    backward(model)
