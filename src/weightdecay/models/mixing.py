"""Small learned mixtures of the residual stream, as nanochat has them.

Shapes: B batch, T time, D d_model.

Reference: karpathy/nanochat@92d63d4, nanochat/gpt.py, where these come from modded-nanogpt.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weightdecay.models.config import ModelConfig
from weightdecay.models.layers import Linear


class Smear(nn.Module):
    """Lets each token see the embedding of the one before it.

        x_t ← x_t + scale · sigmoid(w·x_t[: inputs]) · x_{t−1},   the first token as it is

    The scale starts at 0.
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.amount = Linear(inputs, 1, bias=False)
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x_BTD: Tensor, before_B1D: Tensor | None = None) -> Tensor:
        """The smeared embeddings; `before` is what came ahead of them, not smeared, if anything did."""
        first_B1D = torch.zeros_like(x_BTD[:, :1]) if before_B1D is None else before_B1D
        previous_BTD = torch.cat((first_B1D, x_BTD[:, :-1]), dim=1)
        share_BT1 = self.scale * torch.sigmoid(self.amount(x_BTD[..., : self.amount.in_features]))
        return x_BTD + (share_BT1 * previous_BTD).to(x_BTD.dtype)


class ResidualScales(nn.Module):
    """Scales the stream before each block, and adds some of what it was before the first.

    x ← a_l·x + b_l·x₀,   a and b learned, one of each a layer, first along straight lines
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        lines = (
            (config.residual_scale_first, config.residual_scale_last),
            (config.input_scale_first, config.input_scale_last),
        )
        residual_L, input_L = (torch.linspace(first, last, config.n_layers) for first, last in lines)
        self.residual_scale = nn.Parameter(residual_L)
        self.input_scale = nn.Parameter(input_L)

    def forward(self, x_BTD: Tensor, first_BTD: Tensor, layer: int) -> Tensor:
        mixed_BTD = self.residual_scale[layer] * x_BTD + self.input_scale[layer] * first_BTD
        return mixed_BTD.to(x_BTD.dtype)
