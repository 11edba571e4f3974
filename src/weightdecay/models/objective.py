"""What a training step minimises. Shapes: B sequences, T time, V vocabulary."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightdecay.kernels.library import usable
from weightdecay.kernels.loss import head_loss
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
        rows_BTD, head_VD = self.model.looked_up(tokens_BT)
        x_BTD, spread = self.model.head_input_and_spread(tokens_BT, rows_BTD)
        cross_entropy, auxiliary = self._of_head(x_BTD, head_VD, targets_BT)
        if training.load_balancing and spread is not None:
            auxiliary = auxiliary + training.load_balancing * spread.imbalance
        return Losses(cross_entropy, auxiliary, spread.load if spread is not None else None)

    def _of_head(self, x_BTD: Tensor, head_VD: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy and z-loss, without all logits at once where there are kernels."""
        config, head, z_loss = self.model.config, self.model.head, self.model.config.training.z_loss
        if usable(x_BTD):
            return head_loss(
                x_BTD.flatten(0, 1), head_VD, head.rounded_to(x_BTD.dtype), targets_BT.flatten(),
                z_loss=z_loss, multiplier=config.logit_multiplier, softcap=config.logit_softcap,
            )  # fmt: skip

        logits_BTV = self.model.logits(x_BTD)
        # On a GPU logits of a low precision are widened as they are read: they need not lie there in float32.
        wide = torch.promote_types(logits_BTV.dtype, head.weight.dtype)
        log_probabilities = F.log_softmax(logits_BTV.flatten(0, 1), dim=-1, dtype=wide)
        cross_entropy = F.nll_loss(log_probabilities, targets_BT.flatten())
        auxiliary = torch.zeros((), device=cross_entropy.device)
        if z_loss:
            auxiliary = auxiliary + z_loss * logits_BTV.float().logsumexp(dim=-1).square().mean()
        return cross_entropy, auxiliary
