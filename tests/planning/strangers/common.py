"""What modules of unknown families have in common: a name for the tensors that must not decay, and short code.

Everything that `exempt` does not match must decay; what `disputed` matches may do either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Stranger:
    build: Callable[[], nn.Module]
    exempt: str
    disputed: str = r"(?!)"


def free(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * 0.1)


class Net(nn.Module):
    """Makes the classes below short: forwards are written for people who read, and typed loosely."""

    forward: Callable[..., Any]


class LitNorm(Net):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight = free(d)

    def forward(self, x: Tensor) -> Any:
        return x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


NEVER = r"(^|\.)bias|norm|ln_f\."
