"""The position-wise part of a block. Shapes: B batch, T time, D d_model, F d_ff."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from weightdecay.models.config import ModelConfig


class FeedForward(nn.Module):
    """down(act(up(x))), or, gated, down(silu(gate(x)) · up(x)).

    A gated layer keeps gate and up in one matrix `up` of 2·F rows, gate first: one product instead of two.

    Reference: Hendrycks & Gimpel 2016, arXiv:1606.08415 (GELU); Shazeer 2020, arXiv:2002.05202 (SwiGLU).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind = config.feedforward
        rows = 2 * config.d_ff if self.kind == "swiglu" else config.d_ff
        self.up = nn.Linear(config.d_model, rows, bias=config.bias)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=config.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BTF = self.up(x_BTD)
        if self.kind == "swiglu":
            gate_BTF, up_BTF = h_BTF.chunk(2, dim=-1)
            h_BTF = F.silu(gate_BTF) * up_BTF
        else:
            h_BTF = F.gelu(h_BTF, approximate="tanh" if self.kind == "gelu_tanh" else "none")
        y_BTD: Tensor = self.down(h_BTF)
        return y_BTD
