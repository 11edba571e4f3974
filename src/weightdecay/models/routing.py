"""Which experts a token goes to, how evenly that spreads, and the bias that evens it out.

Shapes: N tokens, G groups of tokens (sequences), D d_model, X experts, C = experts_per_token, L layers with experts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightdecay.models.parts import ExpertsConfig

# A group of experts is judged by its best two (deepseek-ai/DeepSeek-V3@9b4e978, inference/model.py).
_BEST_OF_A_GROUP = 2


class Routing(NamedTuple):
    """The chosen experts of each token [N, C], their weights [N, C], and all logits [N, X]."""

    chosen: Tensor
    weights: Tensor
    logits: Tensor


class Spread(NamedTuple):
    """How tokens fell on the experts.

    Attributes:
        imbalance: scalar with a gradient, 1 where they spread evenly (`load_imbalance`).
        load: choices that fell on each expert, [X], or [L, X] of all layers.
    """

    imbalance: Tensor
    load: Tensor


class Router(nn.Linear):
    """A linear layer from tokens to experts, in float32, and the choice by its logits.

        softmax_of_chosen   the C largest logits; their softmax
        softmax_of_all      the C largest logits; their part of the softmax over all
        sigmoid             s = sigmoid(logits); the C largest of s + b; their s, divided by its sum

    With groups of experts, `sigmoid` chooses within the groups whose two best s + b add up to most. The bias b decides
    who is chosen and nothing else: it has no gradient and never decays, and `shift_bias` moves it.

    Args:
        centred: whether `shift_bias` keeps the bias from drifting.

    Reference: Jiang et al. 2024 (Mixtral), arXiv:2401.04088, §2.1; DeepSeek-AI 2024 (DeepSeek-V3), arXiv:2412.19437,
    §2.1.2.
    """

    def __init__(self, d_model: int, experts: ExpertsConfig, *, centred: bool = False) -> None:
        super().__init__(d_model, experts.n_experts, bias=False)
        self.kind = experts.router
        self.scale = experts.router_scale
        self.per_token = experts.per_token
        self.groups, self.groups_per_token = experts.n_groups, experts.groups_per_token
        self.centred = centred
        self.selection_bias: Tensor | None
        self.register_buffer("selection_bias", torch.zeros(experts.n_experts) if experts.router == "sigmoid" else None)

    def forward(self, x_ND: Tensor) -> Routing:  # type: ignore[override]  # more than a linear layer's output
        with torch.autocast(x_ND.device.type, enabled=False):
            logits_NX = F.linear(x_ND.float(), self.weight.float())
        if self.kind == "softmax_of_chosen":
            best_NC, chosen_NC = logits_NX.topk(self.per_token, dim=-1)
            weights_NC = best_NC.softmax(dim=-1)
        elif self.kind == "softmax_of_all":
            weights_NC, chosen_NC = logits_NX.softmax(dim=-1).topk(self.per_token, dim=-1)
        else:
            scores_NX = logits_NX.sigmoid()
            chosen_NC = self._chosen_by_score(scores_NX.detach())
            weights_NC = scores_NX.gather(1, chosen_NC)
            weights_NC = weights_NC / weights_NC.sum(dim=-1, keepdim=True)
        return Routing(chosen_NC, weights_NC * self.scale, logits_NX)

    def _chosen_by_score(self, scores_NX: Tensor) -> Tensor:
        assert self.selection_bias is not None
        biased_NX = scores_NX + self.selection_bias
        if self.groups > 1:
            members = biased_NX.view(len(biased_NX), self.groups, -1)
            best = members.topk(_BEST_OF_A_GROUP, dim=-1).values.sum(dim=-1).topk(self.groups_per_token).indices
            closed = torch.ones_like(members[..., 0], dtype=torch.bool).scatter(1, best, False)
            biased_NX = members.masked_fill(closed[..., None], float("-inf")).flatten(1)
        return biased_NX.topk(self.per_token, dim=-1).indices

    @torch.no_grad()
    def shift_bias(self, load_X: Tensor, speed: float) -> None:
        """Make the experts with fewer choices than the mean likelier, and those with more less likely.

            e = mean(load) − load;   b ← b + speed · sign(e), or, centred, b + speed · (sign(e) − mean(sign(e)))

        Centring changes no choice; it keeps b from drifting.

        Args:
            load_X: choices that fell on each expert in a whole training step, over all ranks.

        Reference: DeepSeek-AI 2024, arXiv:2412.19437, §2.1.2; Liu et al. 2025 (Moonlight), arXiv:2502.16982, app. C.
        """
        assert self.selection_bias is not None
        direction_X = torch.sign(load_X.double().mean() - load_X)
        if self.centred:
            direction_X = direction_X - direction_X.mean()
        self.selection_bias += speed * direction_X.to(self.selection_bias)


def load_imbalance(logits_GNX: Tensor, chosen_GNC: Tensor, weighting: str) -> Tensor:
    """Mean over G of X · Σ_x f_x · P_x: 1 where tokens spread evenly over the experts, X where one expert gets all.

    f is the share of the choices that fell on an expert, P its mean probability; the gradient goes through P. Over the
    sequences of a batch this is DeepSeek-V3's loss, over the batch as one group Mixtral's and Switch's.

    Args:
        chosen_GNC: the largest logits of each token, whatever a bias chose.

    Reference: Fedus et al. 2021, arXiv:2101.03961, eq. 4 to 6, with C choices a token instead of one; DeepSeek-AI 2024,
    arXiv:2412.19437, eq. 17 to 20.
    """
    groups, _, n_experts = logits_GNX.shape
    counts_GX = counted(chosen_GNC.flatten(1), n_experts)
    shares_GX = counts_GX * (groups / chosen_GNC.numel())
    if weighting == "sigmoid":
        scores_GNX = logits_GNX.sigmoid()
        probabilities_GNX = scores_GNX / scores_GNX.sum(dim=-1, keepdim=True)
    else:
        probabilities_GNX = logits_GNX.softmax(dim=-1)
    return n_experts * (shares_GX * probabilities_GNX.mean(dim=1)).sum(dim=-1).mean()


def counted(chosen_GM: Tensor, n_experts: int) -> Tensor:
    """How often each expert is among the M choices of a group, [G, X]."""
    groups = chosen_GM.shape[0]
    first_G1 = n_experts * torch.arange(groups, device=chosen_GM.device)[:, None]
    return torch.bincount((chosen_GM + first_G1).flatten(), minlength=groups * n_experts).view(groups, n_experts)
