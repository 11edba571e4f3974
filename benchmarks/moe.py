"""Mixtral's experts at `mini`: the grouped product beside two loops.

Forward and backward, interleaved, ratios of medians. The naive loop goes token by token, as the formula reads; the
masked loop goes expert by expert and gathers the tokens of each with a mask, as transformers does.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from weightdecay.models.experts import Experts
from weightdecay.models.feedforward import activated
from weightdecay.recipes.schema import recipe

ROUNDS = 5


def chosen(experts: Experts, x_ND: Tensor) -> tuple[Tensor, Tensor]:
    best, which = F.linear(x_ND, experts.router.weight).topk(experts.router.per_token)
    return best.softmax(-1), which


def naive(experts: Experts, x_ND: Tensor) -> Tensor:
    weights_NC, which_NC = chosen(experts, x_ND)
    ups, downs = experts.expert_up.unbind(), experts.expert_down.unbind()
    rows = []
    for x_D, weights_C, which_C in zip(x_ND, weights_NC, which_NC.tolist(), strict=True):
        outputs = [F.linear(activated(F.linear(x_D, ups[e]), experts.kind), downs[e]) for e in which_C]
        rows.append((torch.stack(outputs) * weights_C[:, None]).sum(0))
    return torch.stack(rows)


def masked(experts: Experts, x_ND: Tensor) -> Tensor:
    weights_NC, which_NC = chosen(experts, x_ND)
    y_ND = torch.zeros_like(x_ND)
    for expert, (up, down) in enumerate(zip(experts.expert_up.unbind(), experts.expert_down.unbind(), strict=True)):
        token, slot = torch.where(which_NC == expert)
        output = F.linear(activated(F.linear(x_ND[token], up), experts.kind), down)
        y_ND = y_ND.index_add(0, token, output * weights_NC[token, slot, None])
    return y_ND


def grouped(experts: Experts, x_ND: Tensor) -> Tensor:
    output: Tensor = experts(x_ND[None])[0][0]
    return output


def seconds(way: Callable[[Experts, Tensor], Tensor], experts: Experts, x_ND: Tensor) -> float:
    started = time.perf_counter()
    torch.autograd.grad(way(experts, x_ND).square().sum(), [x_ND, *experts.parameters()])
    return time.perf_counter() - started


def main() -> None:
    torch.manual_seed(0)
    config = recipe("mixtral:mini").model
    assert config.experts is not None
    experts = Experts(config, config.experts)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    ways = (grouped, masked, naive)
    shape = f"{config.experts.n_experts} experts of {config.d_ff}, {config.experts.per_token} a token"
    print(f"mixtral:mini, {shape}, float32")
    for tokens in (128, 512):
        x_ND = torch.randn(tokens, config.d_model, requires_grad=True)
        with torch.no_grad():
            expected = naive(experts, x_ND)
            error = float((grouped(experts, x_ND) - expected).norm() / expected.norm())
        times: dict[str, list[float]] = {way.__name__: [] for way in ways}
        for _ in range(ROUNDS):
            for way in ways:
                times[way.__name__].append(seconds(way, experts, x_ND))
        medians = {name: statistics.median(values[1:]) for name, values in times.items()}
        ratios = ", ".join(f"{name} {value / medians['grouped']:.2f}" for name, value in medians.items())
        print(
            f"{tokens:5} tokens: grouped {1e3 * medians['grouped']:.1f} ms; relative to it {ratios}; error {error:.1e}"
        )


if __name__ == "__main__":
    main()
