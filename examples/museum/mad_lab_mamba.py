"""mad-lab gives all parameters one λ, and Mamba's `A_log` and `D` say by an attribute that they must not decay.

`A_log` holds the logarithms of the state's time constants, so decay pulls every one of them to 1. Mamba marks it
`_no_weight_decay`; no optimizer of torch looks at that (state-spaces/mamba issue 798 asks who does).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from examples.museum.exhibit import Exhibit, Loop
from examples.museum.language_model import WIDTH, LanguageModel, train
from torch import Tensor, nn

import weightdecay


class Mixer(nn.Module):
    """A selective state space of 4 states a channel."""

    def __init__(self, width: int, states: int = 4) -> None:
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.x_proj = nn.Linear(width, 2 * states + 1, bias=False)
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(width, 1))
        self.D = nn.Parameter(torch.ones(width))
        self.A_log._no_weight_decay = True  # type: ignore[attr-defined]
        self.D._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        u = self.in_proj(x)
        states = self.A_log.shape[1]
        b, c, dt = self.x_proj(u).split([states, states, 1], -1)
        dt = nn.functional.softplus(dt)
        decay = torch.exp(-dt.unsqueeze(-1) * self.A_log.exp())

        state, outputs = torch.zeros_like(u).unsqueeze(-1).expand(*u.shape, states)[:, 0], []
        for t in range(u.shape[1]):
            state = decay[:, t] * state + (dt[:, t] * u[:, t]).unsqueeze(-1) * b[:, t].unsqueeze(1)
            outputs.append((state * c[:, t].unsqueeze(1)).sum(-1))
        y: Tensor = self.out_proj(torch.stack(outputs, 1) + u * self.D)
        return x + y


def all_alike(model: nn.Module) -> list[dict[str, Any]]:
    return [{"params": list(model.parameters()), "weight_decay": 0.1}]


def by_role(model: nn.Module) -> list[dict[str, Any]]:
    return weightdecay.plan(model, weight_decay=0.1).param_groups(lr=1e-3)


def loop(groups: Callable[[nn.Module], list[dict[str, Any]]]) -> Loop:
    torch.manual_seed(0)
    model = LanguageModel()
    model.blocks = nn.ModuleList(Mixer(WIDTH) for _ in range(2))
    optimizer = torch.optim.AdamW(groups(model), lr=1e-3)
    train(model, optimizer)
    return Loop(model, optimizer, {"policy": "default", "weight_decay": 0.1})


EXHIBIT = Exhibit(
    project="mad-lab",
    reference="https://github.com/athms/mad-lab/issues/5",
    bug="Mamba's A_log and D decay with everything else",
    code="decays-exempt",
    severity="error",
    tensors=["blocks.0.A_log", "blocks.1.D"],
    wrong=lambda: loop(all_alike),
    mended=lambda: loop(by_role),
)
