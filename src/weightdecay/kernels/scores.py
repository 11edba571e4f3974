"""What kernels have to know of attention: how rows are made of heads, and how scores become logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """How products of queries and keys become logits, see `models.attention.causal_attention`."""

    scale: float
    softcap: float = 0.0
    window: int = 0
    slopes: tuple[float, ...] = ()


class Heads(NamedTuple):
    """How a row of projections is made of heads.

    Attributes:
        queries, keys: how many of each; there are as many of values as of keys.
        cosines, sines: of the angles by which the first R features of queries and keys turn, [T, R]; or none.
    """

    queries: int
    keys: int
    cosines: Tensor | None
    sines: Tensor | None

    def turns(self) -> tuple[Tensor | None, Tensor | None, int]:
        """The angles, and how many features turn."""
        return self.cosines, self.sines, self.cosines.shape[1] if self.cosines is not None else 0

    def of(self, qkv_BTX: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, T, E], keys and values [B, K, T, E], where they are."""
        batch, time, features = qkv_BTX.shape
        each = self.queries + 2 * self.keys
        heads_BTHE = qkv_BTX.view(batch, time, each, features // each)
        parts = torch.split(heads_BTHE.transpose(1, 2), [self.queries, self.keys, self.keys], dim=1)
        return parts[0], parts[1], parts[2]
