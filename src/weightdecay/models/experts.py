"""A mixture of experts in the place of a feed-forward part.

Shapes: B batch, T time, N = B·T tokens, D d_model, F d_ff, X experts, C = experts_per_token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightdecay.models.config import ModelConfig
from weightdecay.models.feedforward import FeedForward, activated


class Experts(nn.Module):
    """Σ over the C experts chosen for a token of weight · expert(token), and what every token's experts add.

    Tokens are sorted by expert, so that each expert multiplies one block of rows; nothing loops over tokens.

    Reference: Shazeer et al. 2017, arXiv:1701.06538, §2; Jiang et al. 2024 (Mixtral), arXiv:2401.04088, §2.1;
    DeepSeek-AI 2024, arXiv:2412.19437, §2.1.2 (shared experts, sigmoid router).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind = config.feedforward
        self.n_experts = config.n_experts
        self.per_token = config.experts_per_token
        self.weighting = config.router
        self.weight_scale = config.router_scale
        rows = 2 * config.d_ff if config.gated else config.d_ff
        self.router = nn.Linear(config.d_model, config.n_experts, bias=False)
        self.expert_up = nn.Parameter(torch.empty(config.n_experts, rows, config.d_model))
        self.expert_down = nn.Parameter(torch.empty(config.n_experts, config.d_model, config.d_ff))
        self.shared = FeedForward(config, config.n_shared_experts * config.d_ff) if config.n_shared_experts else None

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """The output [B, T, D], and how unevenly the tokens are spread: 1 if evenly (`load_imbalance`)."""
        x_ND = x_BTD.flatten(0, 1)
        logits_NX = F.linear(x_ND.float(), self.router.weight.float())
        weights_NC, chosen_NC = self._choose(logits_NX)
        y_NCD = self._expert_outputs(x_ND, chosen_NC)
        y_ND = (y_NCD * weights_NC.unsqueeze(-1).to(y_NCD.dtype)).sum(dim=1)
        y_BTD = y_ND.view(x_BTD.shape)
        if self.shared is not None:
            y_BTD = y_BTD + self.shared(x_BTD)
        return y_BTD, load_imbalance(logits_NX, chosen_NC, self.weighting)

    def _choose(self, logits_NX: Tensor) -> tuple[Tensor, Tensor]:
        if self.weighting == "softmax_of_chosen":
            best_NC, chosen_NC = logits_NX.topk(self.per_token, dim=-1)
            weights_NC = best_NC.softmax(dim=-1)
        elif self.weighting == "softmax_of_all":
            weights_NC, chosen_NC = logits_NX.softmax(dim=-1).topk(self.per_token, dim=-1)
        else:
            weights_NC, chosen_NC = logits_NX.sigmoid().topk(self.per_token, dim=-1)
            weights_NC = weights_NC / weights_NC.sum(dim=-1, keepdim=True)
        return weights_NC * self.weight_scale, chosen_NC

    def _expert_outputs(self, x_ND: Tensor, chosen_NC: Tensor) -> Tensor:
        """Each chosen expert's output, [N, C, D].

        Rows go to their expert and come back by permutations, whose gradients add nothing up in an order that could
        vary; a token's C copies are added by the gradient of `expand`.
        """
        tokens, d_model = x_ND.shape
        copies = x_ND.unsqueeze(1).expand(tokens, self.per_token, d_model).reshape(-1, d_model)
        order = chosen_NC.flatten().argsort(stable=True)
        counts = torch.bincount(chosen_NC.flatten(), minlength=self.n_experts).tolist()
        blocks = zip(
            torch.split(copies[order], counts), self.expert_up.unbind(), self.expert_down.unbind(), strict=True
        )
        outputs = [F.linear(activated(F.linear(rows, up), self.kind), down) for rows, up, down in blocks if len(rows)]
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return torch.cat(outputs)[back].view(tokens, self.per_token, d_model)


def load_imbalance(logits_NX: Tensor, chosen_NC: Tensor, weighting: str) -> Tensor:
    """X · Σ_x f_x · P_x: 1 where tokens are spread evenly over the experts, X where one expert gets all.

    f is the share of the choices that fell on an expert, P its mean probability; the gradient goes through P.

    Reference: Fedus et al. 2021, arXiv:2101.03961, eq. 4 to 6, with C choices a token instead of one.
    """
    n_experts = logits_NX.shape[1]
    shares_X = torch.bincount(chosen_NC.flatten(), minlength=n_experts) / chosen_NC.numel()
    if weighting == "sigmoid":
        scores_NX = logits_NX.sigmoid()
        probabilities_NX = scores_NX / scores_NX.sum(dim=-1, keepdim=True)
    else:
        probabilities_NX = logits_NX.softmax(dim=-1)
    return n_experts * (shares_X * probabilities_NX.mean(dim=0)).sum()
