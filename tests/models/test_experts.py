from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.models.kinds import KINDS
from weightdecay.models import experts as module
from weightdecay.models.experts import Experts, grouped
from weightdecay.models.feedforward import activated

WITH_EXPERTS = ["mixtral", "grok1", "deepseek", "moonlight"]


def routed(experts: Experts, x_D: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and experts of one token, as the papers write it."""
    router = experts.router
    logits_X = router.weight @ x_D
    if router.kind == "softmax_of_chosen":
        values, chosen = logits_X.topk(router.per_token)
        return values.softmax(0), chosen
    if router.kind == "softmax_of_all":
        return tuple(logits_X.softmax(0).topk(router.per_token))  # type: ignore[return-value]
    scores_X = logits_X.sigmoid()
    assert router.selection_bias is not None
    biased = (scores_X + router.selection_bias).detach()
    groups = torch.arange(len(biased)).chunk(router.groups)
    best = sorted(groups, key=lambda members: -float(biased[members].sort().values[-2:].sum()))
    open_X = torch.cat(best[: router.groups_per_token])
    chosen = open_X[biased[open_X].topk(router.per_token).indices]
    return scores_X[chosen] / scores_X[chosen].sum(), chosen


def naive(experts: Experts, x_BTD: Tensor) -> Tensor:
    """Token by token, expert by expert."""
    rows = []
    for x_D in x_BTD.flatten(0, 1):
        weights, chosen = routed(experts, x_D)
        outputs = [experts.expert_down[e] @ activated(experts.expert_up[e] @ x_D, experts.kind) for e in chosen]
        y_D = sum(experts.router.scale * w * y for w, y in zip(weights, outputs, strict=True))
        assert isinstance(y_D, Tensor)
        rows.append(y_D if experts.shared is None else y_D + experts.shared(x_D))
    return torch.stack(rows).view(x_BTD.shape)


def made(kind: str, seed: int = 0) -> Experts:
    torch.manual_seed(seed)
    config = KINDS[kind]
    assert config.experts is not None
    experts = Experts(config, config.experts)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if experts.router.selection_bias is not None:
        torch.nn.init.normal_(experts.router.selection_bias, std=0.3)
    return experts


@settings(deadline=None, max_examples=40)
@given(kind=st.sampled_from(WITH_EXPERTS), time=st.integers(1, 9), seed=st.integers(0, 99))
def test_the_grouped_experts_are_the_naive_loop_over_tokens(kind: str, time: int, seed: int) -> None:
    experts = made(kind, seed)
    x = torch.randn(2, time, 24)
    seen, expected = experts(x)[0], naive(experts, x)
    assert (seen - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize("kind", WITH_EXPERTS)
def test_so_are_their_gradients(kind: str) -> None:
    experts = made(kind)
    x = torch.randn(2, 7, 24, requires_grad=True)
    tensors = [x, *experts.parameters()]
    ours = torch.autograd.grad(experts(x)[0].square().sum(), tensors)
    theirs = torch.autograd.grad(naive(experts, x).square().sum(), tensors)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).norm() < 1e-5 * other.norm()


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


@given(chosen=st.lists(st.integers(0, 4), min_size=1, max_size=200))
def test_choices_of_one_expert_have_rows_of_their_own_in_one_of_few_numbers(chosen: list[int]) -> None:
    places, sizes = grouped(torch.tensor(chosen), 5)
    assert len(set(places.tolist())) == len(chosen)
    ends = torch.tensor(sizes).cumsum(0)
    assert torch.bucketize(places, ends, right=True).tolist() == chosen

    for expert, size in enumerate(sizes):
        assert size % module._ROWS == 0
        assert 0 <= size - chosen.count(expert) < module._ROWS
