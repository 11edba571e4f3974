"""What no gradient can reach is told where a whole run shows it, and never guessed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.planning.modules import Made
from weightdecay.planning.evidence.tensors import read_tensors
from weightdecay.planning.evidence.tracing import LARGEST_RUN, trace

X = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(0))
Forward = Callable[..., Any]


def unreached(model: nn.Module, batch: Any = X) -> set[str]:
    traced = trace(model, read_tensors(model), batch)
    assert not traced.batch_fault
    return {facts.name for facts in traced.tensors if facts.unreached}


def no_grad(m: Any, x: Any) -> Any:
    with torch.no_grad():
        fixed = x * m.w[0]
    return m.mix(x) + fixed


def straight_through(m: Any, x: Any) -> Any:
    soft = x @ m.w
    return m.mix(x) + soft + (soft.round() - soft).detach()


def hard_only_when_evaluated(m: Any, x: Any) -> Any:
    logits = x @ m.w
    chosen = logits.softmax(-1) if m.training else nn.functional.one_hot(logits.argmax(-1), 8).float()
    return m.mix(chosen)


def loss_beside(m: Any, x: Any) -> Any:
    m.losses = [(x @ m.w).square().mean()]
    return m.mix(x)


BLIND: dict[str, Forward] = {
    "detach": lambda m, x: m.mix(x) + m.w.detach()[0] * x,
    "data": lambda m, x: m.mix(x) + x @ m.w.data,
    "detached result": lambda m, x: m.mix(x) + (x @ m.w).detach(),
    "rounded": lambda m, x: m.mix(x) + (x @ m.w).round(),
    "sign": lambda m, x: m.mix(x) * torch.sign(m.w[0] * x),
    "index": lambda m, x: m.mix(x)[:, (m.w[0] * x[0, 0]).argsort()[:3]],
    "compared": lambda m, x: m.mix(x) * (x @ m.w > 0),
    "no_grad": no_grad,
}
SEEING: dict[str, Forward] = {
    "plain": lambda m, x: m.mix(x) + x @ m.w,
    "straight through": straight_through,
    "hard only when evaluated": hard_only_when_evaluated,
    "a loss left in an attribute": loss_beside,
    "in a dictionary": lambda m, x: {"out": m.mix(x), "loss": [(x @ m.w).sum()]},
    "once detached, once not": lambda m, x: m.mix(x) + x @ m.w + (x @ m.w).detach(),
    "the parameter itself": lambda m, x: (m.mix(x) * m.w[0].detach(), m.w),
}


@pytest.mark.parametrize("kind", BLIND)
def test_what_a_gradient_cannot_get_to_is_told(kind: str) -> None:
    assert unreached(Made(BLIND[kind], {"w": (8, 8)}, mix=nn.Linear(8, 8))) == {"w"}


@pytest.mark.parametrize("kind", SEEING)
def test_what_a_gradient_gets_to_in_evaluation_or_in_training_is_not(kind: str) -> None:
    assert unreached(Made(SEEING[kind], {"w": (8, 8)}, mix=nn.Linear(8, 8))) == set()


class Checkpointed(torch.autograd.Function):
    """As a reentrant checkpoint: what it runs makes gradients that the graph does not show."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        return x @ w

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:  # noqa: ARG004
        return gradients[0], None


checkpointed: Any = Checkpointed.apply


def inference(m: Any, x: Any) -> Any:
    with torch.no_grad():
        return m.mix(x) + x @ m.w


@pytest.mark.parametrize(
    "forward",
    [inference, lambda m, x: m.mix(checkpointed(x.requires_grad_(), m.w.detach())),
     lambda m, x: int((m.mix(x) + x @ m.w).sum())],
)  # fmt: skip
def test_a_forward_that_shows_no_gradients_tells_nothing(forward: Forward) -> None:
    assert unreached(Made(forward, {"w": (8, 8)}, mix=nn.Linear(8, 8))) == set()


def test_a_run_that_broke_tells_nothing() -> None:
    def breaks(m: Any, x: Any) -> Any:
        seen = (x @ m.w).detach()
        raise ValueError(seen)

    model = Made(breaks, {"w": (8, 8)}, mix=nn.Linear(8, 8))
    traced = trace(model, read_tensors(model), X)
    assert traced.batch_fault
    assert not any(facts.unreached for facts in traced.tensors)


def test_what_was_never_used_is_not_called_unreached() -> None:
    assert unreached(Made(lambda m, x: m.mix(x), {"w": (8, 8)}, mix=nn.Linear(8, 8))) == set()


def test_frozen_tensors_need_no_gradient() -> None:
    model = Made(BLIND["detach"], {"w": (8, 8)}, mix=nn.Linear(8, 8))
    model.w.requires_grad_(False)
    assert unreached(model) == set()


def test_a_large_model_tells_it_without_values() -> None:
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(1 << 13, 1 << 13)
            self.fixed = nn.Parameter(torch.ones(1 << 13))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.mix(x) + self.fixed.detach() * x
            return out

    with torch.device("meta"):
        model = Large()
    assert sum(parameter.numel() for parameter in model.parameters()) > LARGEST_RUN
    assert unreached(model, torch.ones(2, 1 << 13)) == {"fixed"}
    assert unreached(model, None) == {"fixed"}
