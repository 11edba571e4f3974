"""Readable float64 twins of the directions: the update u that a step subtracts, in the papers' own notation.

Each twin is a small object with `update(g, w) -> u`; `rules.py` beside it says how a weight decays and when. Nothing
here is fast, shares code with the package, or knows of foreach and fused paths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class Direction(Protocol):
    def update(self, g: Tensor, w: Tensor, lr: float) -> Tensor: ...


@dataclass
class Adam:
    """Kingma & Ba 2015, algorithm 1; with `amsgrad` Reddi et al. 2018."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    amsgrad: bool = False
    t: int = 0
    m: Tensor | float = 0.0
    v: Tensor | float = 0.0
    v_max: Tensor | None = None

    def update(self, g: Tensor, w: Tensor, lr: float) -> Tensor:
        self.t += 1
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        second = torch.as_tensor(self.v, dtype=g.dtype)
        if self.amsgrad:
            self.v_max = second if self.v_max is None else torch.maximum(self.v_max, second)
            second = self.v_max
        m_hat = self.m / (1 - self.beta1**self.t)
        v_hat = second / (1 - self.beta2**self.t)
        return lr * m_hat / (v_hat.sqrt() + self.eps)


@dataclass
class Momentum:
    """SGD with torch's momentum: b ← μ·b + (1 − τ)·g, the first b is g."""

    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    b: Tensor | None = None

    def update(self, g: Tensor, w: Tensor, lr: float) -> Tensor:
        if self.momentum == 0:
            return lr * g
        self.b = g if self.b is None else self.momentum * self.b + (1 - self.dampening) * g
        return lr * (g + self.momentum * self.b if self.nesterov else self.b)


@dataclass
class Lion:
    """Chen et al. 2023, arXiv:2302.06675, program 1."""

    beta1: float = 0.9
    beta2: float = 0.99
    m: Tensor | float = 0.0

    def update(self, g: Tensor, w: Tensor, lr: float) -> Tensor:
        c = self.beta1 * self.m + (1 - self.beta1) * g
        self.m = self.beta2 * self.m + (1 - self.beta2) * g
        return lr * torch.sign(torch.as_tensor(c))


@dataclass
class Adafactor:
    """Shazeer & Stern 2018, arXiv:1804.04235; the momentum as in t5x's `adafactor.py`, the floors as in torch.

    `factored=False` is PaLM's use.
    """

    factored: bool = True
    beta1: float | None = None
    decay_exponent: float = 0.8
    clipping: float = 1.0
    eps: float = 2.0**-52
    eps_scale: float = 1e-3
    scale_parameter: bool = True
    relative_step: bool = False
    t: int = 0
    v: Tensor | float = 0.0
    rows: Tensor | float = 0.0
    columns: Tensor | float = 0.0
    m: Tensor | float = 0.0

    def update(self, g: Tensor, w: Tensor, lr: float) -> Tensor:
        self.t += 1
        beta2 = 1 - self.t**-self.decay_exponent
        squared = g**2
        if self.factored and g.ndim > 1:
            self.rows = beta2 * self.rows + (1 - beta2) * squared.mean(-1)
            self.columns = beta2 * self.columns + (1 - beta2) * squared.mean(-2)
            rows, columns = torch.as_tensor(self.rows), torch.as_tensor(self.columns)
            v = (
                rows.unsqueeze(-1)
                * columns.unsqueeze(-2)
                / rows.mean(-1, keepdim=True).unsqueeze(-1).clamp(min=self.eps)
            )
        else:
            self.v = beta2 * self.v + (1 - beta2) * squared
            v = torch.as_tensor(self.v)
        u = g / v.clamp(min=self.eps**2).sqrt()
        u = u / max(1.0, rms(u) / self.clipping)
        eta = min(lr, 1 / math.sqrt(self.t)) if self.relative_step else lr
        u = u * eta * (max(self.eps_scale, rms(w)) if self.scale_parameter else 1.0)
        if self.beta1 is None:
            return u
        self.m = self.beta1 * self.m + (1 - self.beta1) * u
        return torch.as_tensor(self.m)


@dataclass
class Muon:
    """Jordan 2024, with Moonlight's update scale 0.2·√max(rows, columns): Liu et al. 2025, arXiv:2502.16982.

    `polar_express`, `equal_rows` and `beta2` as nanochat has them, for each of `stacked` matrices in a tensor:
    karpathy/nanochat@92d63d4, nanochat/optim.py.
    """

    momentum: float = 0.95
    nesterov: bool = True
    steps: int = 5
    match_adamw: bool = True
    polar_express: bool = False
    equal_rows: bool = False
    beta2: float = 0.0
    stacked: int = 1
    b: Tensor | float = 0.0
    v: dict[int, Tensor] = field(default_factory=dict)

    def update(self, g: Tensor, w: Tensor, lr: float) -> Tensor:
        self.b = self.momentum * self.b + (1 - self.momentum) * g
        x = (1 - self.momentum) * g + self.momentum * self.b if self.nesterov else torch.as_tensor(self.b)
        matrices = x.reshape(-1, x.shape[-2] // self.stacked, x.shape[-1])
        rows, columns = matrices.shape[-2:]
        orthogonal = torch.stack([self.of_one(matrix, number) for number, matrix in enumerate(matrices)]).view_as(x)
        scale = 0.2 * math.sqrt(max(rows, columns)) if self.match_adamw else math.sqrt(max(1.0, rows / columns))
        return lr * scale * orthogonal

    def of_one(self, x: Tensor, number: int) -> Tensor:
        if self.equal_rows:
            x = torch.stack([row / row.norm() * x.norm() / math.sqrt(len(x)) for row in x])
        o = polar_express(x, self.steps) if self.polar_express else newton_schulz(x, self.steps)
        return self.evened(o, number) if self.beta2 else o

    def evened(self, o: Tensor, number: int) -> Tensor:
        if o.shape[0] < o.shape[1]:  # neurons are columns
            return self.evened(o.T, number).T
        o = o * math.sqrt(o.shape[1]) / o.norm()
        mean = torch.stack([(row**2).mean() for row in o])
        self.v[number] = self.beta2 * self.v.get(number, 0.0) + (1 - self.beta2) * mean
        even: Tensor = torch.diag(self.v[number] ** -0.5) @ o
        return even * (float(o.norm()) / float(even.norm()))


def newton_schulz(x: Tensor, steps: int) -> Tensor:
    """X ← aX + (bA + cA²)X with A = XXᵀ, from X / ‖X‖, the wide way round."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def polar_express(x: Tensor, steps: int) -> Tensor:
    """Amsel et al. 2025, arXiv:2505.16932: on the singular values, each step's odd polynomial."""
    coefficients = [
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ]
    u, s, vt = torch.linalg.svd(x / (1.01 * x.norm()), full_matrices=False)
    for a, b, c in coefficients[:steps] + [coefficients[-1]] * (steps - len(coefficients)):
        s = a * s + b * s**3 + c * s**5
    result: Tensor = u @ torch.diag(s) @ vt
    return result
