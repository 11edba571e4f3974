"""What a training step minimises. Shapes: B sequences, T time, V vocabulary."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightdecay.models.decoder import GPT


class Losses(NamedTuple):
    """What a batch costs.

    Attributes:
        cross_entropy: mean, in nats a token.
        auxiliary: what the configuration adds to it.
        load: choices that fell on each expert, [L, X] for L layers with experts; None without any.
    """

    cross_entropy: Tensor
    auxiliary: Tensor
    load: Tensor | None = None

    @property
    def total(self) -> Tensor:
        return self.cross_entropy + self.auxiliary


class Objective(nn.Module):
    """The loss of a decoder on a batch: a module, so that ranks can share its gradient.

        L = mean cross-entropy + z_loss · mean (log Σ_v exp logit_v)² + load_balancing · mean imbalance of the experts

    Reference: Chowdhery et al. 2022, arXiv:2204.02311, §5 (z-loss); Fedus et al. 2021, arXiv:2101.03961, §2.2.
    """

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Losses:
        training = self.model.config.training
        logits_BTV, spread = self.model.logits_and_spread(tokens_BT)
        cross_entropy = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
        auxiliary = torch.zeros((), device=cross_entropy.device)
        if training.z_loss:
            auxiliary = auxiliary + training.z_loss * logits_BTV.float().logsumexp(dim=-1).square().mean()
        if training.load_balancing and spread is not None:
            auxiliary = auxiliary + training.load_balancing * spread.imbalance
        return Losses(cross_entropy, auxiliary, spread.load if spread is not None else None)
