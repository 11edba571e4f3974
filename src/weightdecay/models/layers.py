"""The small parts that blocks are made of: norms, rotary positions, stochastic depth.

Shapes: B batch, T time, D d_model, H heads, E head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weightdecay.models.config import ModelConfig


def make_norm(config: ModelConfig) -> nn.Module:
    """The configuration's normalisation over D."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.d_model, eps=config.norm_eps)
    return nn.LayerNorm(config.d_model, eps=config.norm_eps, bias=config.bias)


class Rotary(nn.Module):
    """Rotary positions: turns the pair (x_i, x_{i+E/2}) at position t by the angle t · base^(−2i/E).

    Pairs lie half a head apart, as in GPT-NeoX and transformers; Meta's own LLaMA code pairs neighbours, which is
    the same model with the rows of its query and key matrices in another order.

    Reference: Su et al. 2021, arXiv:2104.09864, §3.4.
    """

    def __init__(self, head_dim: int, context: int, base: float) -> None:
        super().__init__()
        frequency_E = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        angle_TE = torch.outer(torch.arange(context, dtype=torch.float32), frequency_E).repeat(1, 2)
        self.register_buffer("cos_TE", angle_TE.cos(), persistent=False)
        self.register_buffer("sin_TE", angle_TE.sin(), persistent=False)
        self.cos_TE: Tensor
        self.sin_TE: Tensor

    def forward(self, x_BHTE: Tensor) -> Tensor:
        time = x_BHTE.shape[2]
        first, second = x_BHTE.chunk(2, dim=-1)
        quarter_turn_BHTE = torch.cat((-second, first), dim=-1)
        turned = x_BHTE * self.cos_TE[:time] + quarter_turn_BHTE * self.sin_TE[:time]
        return turned.to(x_BHTE.dtype)


class StochasticDepth(nn.Module):
    """In training, drops a residual branch for whole sequences and divides the kept ones by the keep probability.

        y = x · keep / (1 − p),   keep ~ Bernoulli(1 − p) per sequence

    Reference: Huang et al. 2016, arXiv:1603.09382, §3; scaled in training rather than in use.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x_BTD: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return x_BTD
        kept = 1.0 - self.probability
        keep_B11 = torch.bernoulli(torch.full((x_BTD.shape[0], 1, 1), kept, dtype=x_BTD.dtype, device=x_BTD.device))
        return x_BTD * (keep_B11 / kept)

    def extra_repr(self) -> str:
        return f"probability={self.probability:g}"
