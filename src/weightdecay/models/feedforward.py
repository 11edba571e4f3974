"""The position-wise part of a block, dense. Shapes: B batch, T time, D d_model, F d_ff."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightdecay.kernels.activations import activation
from weightdecay.kernels.branches import feedforward_branch
from weightdecay.kernels.library import usable
from weightdecay.kernels.norms import Norm
from weightdecay.models.config import ModelConfig
from weightdecay.models.layers import Linear


class FeedForward(nn.Module):
    """down(act(up(x))), or, gated, down(act(gate(x)) · up(x)).

    A gated layer keeps gate and up in one matrix `up` of 2·F rows, gate first: one product instead of two.

    Args:
        width: F.

    Reference: Hendrycks & Gimpel 2016, arXiv:1606.08415 (GELU); Shazeer 2020, arXiv:2002.05202 (SwiGLU, GeGLU);
    So et al. 2021, arXiv:2109.08668 (squared ReLU).
    """

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        self.kind = config.feedforward
        self.up = Linear(config.d_model, 2 * width if config.gated else width, bias=config.bias)
        self.down = Linear(width, config.d_model, bias=config.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD: Tensor = self.down(activated(self.up(x_BTD), self.kind))
        return y_BTD

    @property
    def is_one_function(self) -> bool:
        """Whether `added` computes what a block does with it, where kernels are usable."""
        return bool(self.up.weight.dtype == torch.float32)

    def added(self, x_BTD: Tensor, norm: Norm) -> Tensor:
        """x + forward(norm(x)) as one function, where that can be."""
        return feedforward_branch(x_BTD, norm, self.up.layer(x_BTD.dtype), self.down.layer(x_BTD.dtype), self.kind)


def activated(h: Tensor, kind: str) -> Tensor:
    """The non-linearity between up and down; a gated one halves the last axis, whose first half is the gate."""
    if usable(h):
        return activation(h, kind)
    match kind:
        case "swiglu":
            gate, up = h.chunk(2, dim=-1)
            return F.silu(gate) * up
        case "geglu" | "geglu_tanh":
            gate, up = h.chunk(2, dim=-1)
            return F.gelu(gate, approximate="tanh" if kind == "geglu_tanh" else "none") * up
        case "relu":
            return F.relu(h)
        case "relu_squared":
            return F.relu(h).square()
        case _:
            return F.gelu(h, approximate="tanh" if kind == "gelu_tanh" else "none")
