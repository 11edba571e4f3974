"""Small batches of the usual kinds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def tokens(length: int = 16, vocabulary: int = 64) -> Tensor:
    return torch.randint(1, vocabulary, (2, length))


def features(length: int = 16, width: int = 32) -> Tensor:
    return torch.randn(2, length, width)


def images(side: int = 32, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, side, side)


def rows(width: int = 8, count: int = 6) -> Tensor:
    return torch.rand(count, width)


def latents(*shape: int, states: tuple[int, ...] = (), key: str = "sample", **more: Any) -> dict[str, Any]:
    """Noisy latents, their time step and what they are conditioned on."""
    batch = {key: torch.randn(1, *shape), "timestep": torch.tensor([5])}
    if states:
        batch["encoder_hidden_states"] = torch.randn(1, *states)
    return {**batch, **more}
