"""A mixture of experts in the place of a feed-forward part.

Shapes: B batch, T time, N = B·T tokens, D d_model, F d_ff, X experts, C = experts_per_token, M = N·C choices, P rows of
all experts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightdecay.models.config import ModelConfig
from weightdecay.models.feedforward import FeedForward, activated
from weightdecay.models.layers import is_lower, linear
from weightdecay.models.parts import ExpertsConfig
from weightdecay.models.routing import Router, Routing, Spread, counted, load_imbalance

# Each expert's rows are filled up to a multiple of it, see `grouped`.
_ROWS = 32


class Experts(nn.Module):
    """Σ over the C experts chosen for a token of weight · expert(token), and what every token's experts add.

    Tokens are grouped by expert, so that each expert multiplies one block of rows; nothing loops over tokens.

    Reference: Shazeer et al. 2017, arXiv:1701.06538, §2; Jiang et al. 2024 (Mixtral), arXiv:2401.04088, §2.1;
    DeepSeek-AI 2024, arXiv:2412.19437, §2.1.2 (shared experts).
    """

    def __init__(self, config: ModelConfig, experts: ExpertsConfig) -> None:
        super().__init__()
        self.kind = config.feedforward
        self.balance_over = config.training.balance_over
        self.router = Router(config.d_model, experts, centred=config.training.router_bias_update == "centred_sign")
        rows = 2 * config.d_ff if config.gated else config.d_ff
        self.expert_up = nn.Parameter(torch.empty(experts.n_experts, rows, config.d_model))
        self.expert_down = nn.Parameter(torch.empty(experts.n_experts, config.d_model, config.d_ff))
        self.shared = FeedForward(config, experts.n_shared * config.d_ff) if experts.n_shared else None

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Routing]:
        """The output [B, T, D], and which experts its tokens went to."""
        x_ND = x_BTD.flatten(0, 1)
        routing: Routing = self.router(x_ND)
        outputs = self._outputs_of_one_token if len(x_ND) == 1 else self._expert_outputs
        y_NCD = outputs(x_ND, routing.chosen)
        y_ND = (y_NCD * routing.weights.unsqueeze(-1).to(y_NCD.dtype)).sum(dim=1)
        y_BTD = y_ND.view(x_BTD.shape)
        if self.shared is not None:
            y_BTD = y_BTD + self.shared(x_BTD)
        return y_BTD, routing

    def spread(self, routing: Routing, sequences: int) -> Spread:
        """How the tokens of so many sequences fell on the experts."""
        load_X = counted(routing.chosen.view(1, -1), self.router.out_features)[0]
        groups = sequences if self.balance_over == "sequence" else 1
        logits_NX, chosen_NC = routing.logits, routing.chosen
        if self.router.selection_bias is not None:
            chosen_NC = logits_NX.topk(chosen_NC.shape[1], dim=-1).indices
        imbalance = load_imbalance(
            logits_NX.view(groups, -1, logits_NX.shape[1]),
            chosen_NC.view(groups, -1, chosen_NC.shape[1]),
            self.router.kind,
        )
        return Spread(imbalance, load_X)

    def _outputs_of_one_token(self, x_1D: Tensor, chosen_1C: Tensor) -> Tensor:
        """`_expert_outputs` of a token after a cache, [1, C, D]: there is nothing to sort."""
        ups, downs = self.expert_up.unbind(), self.expert_down.unbind()
        outputs = [linear(activated(linear(x_1D, ups[e]), self.kind), downs[e]) for e in chosen_1C[0].tolist()]
        return torch.stack(outputs, dim=1)

    def _expert_outputs(self, x_ND: Tensor, chosen_NC: Tensor) -> Tensor:
        """Each chosen expert's output, [N, C, D].

        Copies of rows go to their expert and come back, each to a place of its own, so that no gradient adds anything
        up in an order that could vary; a token's C copies are added by the gradient of `expand`.
        """
        tokens, per_token = chosen_NC.shape
        places_M, sizes = grouped(chosen_NC.flatten(), self.router.out_features)
        copies_MD = x_ND.unsqueeze(1).expand(tokens, per_token, x_ND.shape[1]).reshape(-1, x_ND.shape[1])
        rows_PD = x_ND.new_zeros(sum(sizes), x_ND.shape[1]).index_copy(0, places_M, copies_MD)

        ups, downs = (
            stack.to(x_ND.dtype) if is_lower(x_ND, stack) else stack for stack in (self.expert_up, self.expert_down)
        )
        blocks = torch.split(rows_PD, sizes)
        inner = [F.linear(block, up) for block, up in zip(blocks, ups.unbind(), strict=True) if len(block)]
        inner_blocks = torch.split(activated(torch.cat(inner), self.kind), sizes)
        outputs = [
            F.linear(block, down) for block, down in zip(inner_blocks, downs.unbind(), strict=True) if len(block)
        ]
        return torch.cat(outputs).index_select(0, places_M).view(tokens, per_token, -1)


def grouped(chosen_M: Tensor, n_experts: int) -> tuple[Tensor, list[int]]:
    """The row of each choice where those of one expert stand together, and each expert's number of rows.

    That is a multiple of `_ROWS`, some of which nobody has: products of a shape that was not seen before are compiled
    anew, at many times what they cost, and hardly two steps spread their tokens alike.
    """
    load_X = counted(chosen_M.view(1, -1), n_experts)[0]
    load = load_X.tolist()
    sizes = [-(-rows // _ROWS) * _ROWS for rows in load]
    begins = (sum(sizes[:expert]) - sum(load[:expert]) for expert in range(n_experts))
    shift_X = torch.tensor(list(begins), device=chosen_M.device)

    order_M = chosen_M.argsort(stable=True)
    places_M = torch.empty_like(order_M)
    places_M[order_M] = torch.arange(len(order_M), device=chosen_M.device) + shift_X[chosen_M[order_M]]
    return places_M, sizes
