from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.models.kinds import KINDS
from weightdecay.models.experts import Experts, load_imbalance
from weightdecay.models.feedforward import activated


def naive(experts: Experts, x_BTD: Tensor) -> Tensor:
    """Token by token, expert by expert, as the papers write it."""
    rows = []
    for x_D in x_BTD.flatten(0, 1):
        logits_X = experts.router.weight @ x_D
        if experts.weighting == "softmax_of_chosen":
            values, chosen = logits_X.topk(experts.per_token)
            weights = values.softmax(0)
        elif experts.weighting == "softmax_of_all":
            weights, chosen = logits_X.softmax(0).topk(experts.per_token)
        else:
            values, chosen = logits_X.sigmoid().topk(experts.per_token)
            weights = values / values.sum()
        outputs = [experts.expert_down[e] @ activated(experts.expert_up[e] @ x_D, experts.kind) for e in chosen]
        y_D = sum(experts.weight_scale * w * y for w, y in zip(weights, outputs, strict=True))
        assert isinstance(y_D, Tensor)
        rows.append(y_D if experts.shared is None else y_D + experts.shared(x_D))
    return torch.stack(rows).view(x_BTD.shape)


def made(kind: str, seed: int = 0) -> Experts:
    torch.manual_seed(seed)
    experts = Experts(KINDS[kind])
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return experts


@settings(deadline=None, max_examples=20)
@given(kind=st.sampled_from(["mixtral", "grok1", "deepseek"]), time=st.integers(1, 9), seed=st.integers(0, 99))
def test_the_grouped_experts_are_the_naive_loop_over_tokens(kind: str, time: int, seed: int) -> None:
    experts = made(kind, seed)
    x = torch.randn(2, time, 24)
    seen, expected = experts(x)[0], naive(experts, x)
    assert (seen - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize("kind", ["mixtral", "grok1", "deepseek"])
def test_so_are_their_gradients(kind: str) -> None:
    experts = made(kind)
    x = torch.randn(2, 7, 24, requires_grad=True)
    tensors = [x, *experts.parameters()]
    ours = torch.autograd.grad(experts(x)[0].square().sum(), tensors)
    theirs = torch.autograd.grad(naive(experts, x).square().sum(), tensors)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_an_expert_that_nobody_chooses_has_a_gradient_of_zero() -> None:
    experts = made("mixtral")
    with torch.no_grad():
        experts.router.weight[3] = 0.0
        experts.router.weight[:3] = 1.0
    x = torch.rand(1, 5, 24)
    experts(x)[0].sum().backward()
    gradient = experts.expert_up.grad
    assert gradient is not None
    assert gradient[3].abs().max() == 0
    assert gradient[:2].abs().max() > 0


def test_the_imbalance_is_one_where_tokens_spread_evenly_and_grows_to_the_number_of_experts() -> None:
    even = torch.eye(4).repeat(5, 1) * 1e-3
    assert load_imbalance(even, even.topk(1).indices, "softmax_of_chosen").item() == pytest.approx(1.0, abs=1e-3)
    one = torch.tensor([[50.0, 0.0, 0.0, 0.0]]).repeat(8, 1)
    assert load_imbalance(one, one.topk(1).indices, "softmax_of_all").item() == pytest.approx(4.0)


def test_the_imbalance_pulls_the_router_towards_an_even_spread() -> None:
    torch.manual_seed(0)
    logits = (torch.randn(64, 4) + torch.tensor([2.0, 0.0, 0.0, 0.0])).requires_grad_()
    (gradient,) = torch.autograd.grad(load_imbalance(logits, logits.topk(2).indices, "softmax_of_chosen"), logits)
    assert gradient[:, 0].sum() > 0
    assert gradient[:, 1:].sum() < 0
