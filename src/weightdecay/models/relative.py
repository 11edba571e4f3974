"""Relative positions in Transformer-XL's form.

Shapes: B batch, T time, S positions seen (the last T of them are the queries'), D d_model, H heads, E head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightdecay.models.config import ModelConfig
from weightdecay.models.layers import Linear


class RelativePositions(nn.Module):
    """What queries gain from how far back each key lies.

        score(t, s) = (q_t + u)·k_s + (q_t + v)·(W·R_{t−s}),   u and v learned, one of each a head

    R_d are the D sines and cosines of distance d. Keys know no position, so that a cache keeps them as they are.

    Reference: Dai et al. 2019 (Transformer-XL), arXiv:1901.02860, §3.3.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        inner = config.attention.n_heads * config.attention.head_dim
        self.project = Linear(config.d_model, inner, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(inner))
        self.position_bias = nn.Parameter(torch.zeros(inner))

    def forward(self, q_BHTE: Tensor, span: int) -> tuple[Tensor, Tensor]:
        """Queries plus u, for the keys; and the positions' part of the scores, unscaled, [B, H, T, S]."""
        heads, width = q_BHTE.shape[1], q_BHTE.shape[3]
        u_H1E, v_H1E = (bias.view(heads, 1, width) for bias in (self.content_bias, self.position_bias))
        positions_SD = sinusoids(span, self.project.in_features, q_BHTE.device).to(q_BHTE.dtype)
        farthest_first_SD = positions_SD.flip(0)
        if q_BHTE.shape[2] == 1:  # one query is projected sooner than all distances
            project_HED = self.project.weight.view(heads, width, -1).to(q_BHTE.dtype)
            by_distance_BHTS = (q_BHTE + v_H1E).to(q_BHTE.dtype) @ project_HED @ farthest_first_SD.T
        else:
            r_HES = self.project(farthest_first_SD).view(span, heads, width).permute(1, 2, 0)
            by_distance_BHTS = (q_BHTE + v_H1E).to(q_BHTE.dtype) @ r_HES
        return (q_BHTE + u_H1E).to(q_BHTE.dtype), _by_key(by_distance_BHTS)


def sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """Sines of d·10000^(−2i/D), then cosines, for every distance d below `length`: [length, D]."""
    frequency = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float32, device=device) / width)
    angle = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequency)
    return torch.cat((angle.sin(), angle.cos()), dim=1)[:, :width]


def _by_key(by_distance_BHTS: Tensor) -> Tensor:
    """From columns by distance, the farthest first, to columns by key.

    Row t has to move T − 1 − t columns to the left. One column more makes each row as long as the next one's start is
    late, so that reading on in memory moves them all. What comes in from the right belongs to keys after t.
    """
    batch, heads, time, span = by_distance_BHTS.shape
    padded = F.pad(by_distance_BHTS, (1, 0)).view(batch, heads, span + 1, time)
    return padded[:, :, 1:].reshape(batch, heads, time, span)
