"""The largest singular value of matrices, by a few power iterations that go on from where the last ones ended.

    x ← Wᵀ(W·x)/‖Wᵀ(W·x)‖,    σ = ‖W·x‖

σ comes from below: it is never above the truth, and nears it from call to call while the weights move slowly.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

ITERATIONS = 3
_FIRST = 30
"""Iterations of the first call, which begins with noise."""


class LargestSingularValues:
    """Of several matrices, each with the vector that it had at last: one number a column, and nothing else."""

    def __init__(self, iterations: int = ITERATIONS) -> None:
        self._iterations = iterations
        self._vectors: dict[str, Tensor] = {}

    @torch.no_grad()
    def of(self, name: str, matrices: Tensor) -> float:
        """σ of a matrix, or the largest of a stack [n, rows, columns]; axes before the last are those of a stack."""
        stack = matrices.detach()
        stack = stack.float() if stack.dtype != torch.float64 else stack
        stack = stack.reshape(-1, *stack.shape[-2:])
        x = self._vectors.get(name)
        iterations = self._iterations
        if x is None or x.shape != (len(stack), stack.shape[-1], 1) or x.device != stack.device:
            # A generator of its own: the run's random numbers stay what they are without a monitor.
            own = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            x = torch.randn(len(stack), stack.shape[-1], 1, generator=own).to(stack)
            iterations = _FIRST
        for _ in range(iterations):
            x = stack.mT @ (stack @ x)
            x = x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        if bool(torch.isfinite(x).all()):
            self._vectors[name] = x
        return float(torch.linalg.vector_norm(stack @ x, dim=1).max())

    def forget(self, names: set[str]) -> None:
        """Keep the vectors of these alone."""
        self._vectors = {name: x for name, x in self._vectors.items() if name in names}
