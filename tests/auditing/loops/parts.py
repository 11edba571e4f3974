"""What the loops are made of: small models with all that a loop can trip over, and the steps of a training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from examples.museum.exhibit import Loop
from examples.museum.language_model import VOCABULARY, LanguageModel, two_groups
from torch import Tensor, nn

Forward = Callable[[nn.Module], Tensor]


class Hostile(NamedTuple):
    """A loop that is wrong in one way: what must be said of it, and of which tensors."""

    make: Callable[[], Loop]
    code: str
    severity: str
    tensors: tuple[str, ...]


def seeded(kind: Callable[[], nn.Module] = LanguageModel) -> Any:
    """Any, for tests reach for the parts of a model by name."""
    torch.manual_seed(0)
    return kind()


def language_loss(model: nn.Module) -> Tensor:
    ids = torch.randperm(VOCABULARY).view(4, -1)
    return F.cross_entropy(model(ids).float().flatten(0, 1), ids.flatten())


def picture_loss(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(torch.randn(8, 3, 8, 8)).float(), torch.randint(5, (8,)))


def train(
    model: nn.Module, *optimizers: Any, loss: Forward = language_loss, steps: int = 3, scheduler: Any = None
) -> None:
    """Steps, then the gradients of one more: audits are pasted before `step`."""
    for _ in range(steps):
        torch.autograd.backward(loss(model))
        for optimizer in optimizers:
            optimizer.step()
        if scheduler is not None:
            scheduler.step()
        model.zero_grad()
    torch.autograd.backward(loss(model))


def adamw(model: nn.Module, lr: Any = 1e-3, weight_decay: float = 0.1, **settings: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(two_groups(model.parameters(), weight_decay), lr=lr, **settings)


class ConvNet(nn.Module):
    """Convolutions, a batch norm with buffers, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.body, self.fc = nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.norm(self.stem(x)).relu()).relu()
        y: Tensor = self.fc(x.mean((2, 3)))
        return y


class Experts(nn.Module):
    """Each token goes to one expert; the last one gets none."""

    def __init__(self, width: int = 32, experts: int = 3) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(experts))
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        scores = self.router(x).softmax(-1)
        chosen = scores[..., :-1].argmax(-1)
        y = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            here = chosen == index
            if here.any():
                y[here] = expert(x[here]) * scores[here][:, index : index + 1]
        logits: Tensor = self.head(x + y)
        return logits


class Adapted(nn.Module):
    """A linear layer that does not train, and a low-rank one that does."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + 2 * self.lora_B(self.lora_A(x))
        return y


def with_adapters(model: Any) -> Any:
    model.requires_grad_(False)
    for block in model.blocks:
        block.up, block.down = Adapted(block.up), Adapted(block.down)
    return model


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]
