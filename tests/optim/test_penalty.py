"""The loss term (λ/2)·‖w‖², l2 and decoupled decay: one thing for SGD, three for Adam."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightdecay
from weightdecay.errors import OptimizerError
from weightdecay.optim.adamw import AdamL2, AdamW
from weightdecay.optim.penalty import penalty
from weightdecay.optim.sgdw import SGDW

WEIGHT_DECAY, LR = 0.3, 0.05


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3)).double()


def train(optimizer_of: Any, *, with_penalty: bool = False, weight_decay: float = WEIGHT_DECAY) -> Tensor:
    net = model()
    plan = weightdecay.plan(net, weight_decay=weight_decay)
    optimizer = optimizer_of(weightdecay.plan(net, weight_decay=0.0) if with_penalty else plan)
    inputs = torch.randn(8, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for _ in range(20):
        loss = net(inputs).square().mean()
        if with_penalty:
            loss = loss + penalty(plan)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_the_penalty_is_half_lambda_times_the_squared_norm_of_what_decays() -> None:
    net = model()
    plan = weightdecay.plan(net, weight_decay=WEIGHT_DECAY)
    decaying = [net.get_parameter("0.weight"), net.get_parameter("2.weight")]
    expected = 0.5 * WEIGHT_DECAY * sum(float(p.detach().square().sum()) for p in decaying)
    assert float(penalty(plan).detach()) == pytest.approx(expected, rel=1e-12)
    penalty(plan).backward()  # type: ignore[no-untyped-call]
    for name, p in net.named_parameters():
        if name in ("0.weight", "2.weight"):
            assert p.grad is not None
            assert torch.allclose(p.grad, WEIGHT_DECAY * p.detach(), rtol=1e-12)
        else:
            assert p.grad is None
    assert float(penalty(AdamW(plan)).detach()) == pytest.approx(expected, rel=1e-12)


def test_for_plain_sgd_the_three_are_one() -> None:
    """Loshchilov & Hutter 2019, proposition 1."""
    term = train(lambda plan: SGDW(plan, lr=LR), with_penalty=True)
    coupled = train(lambda plan: SGDW(plan, lr=LR, rule="l2"))
    decoupled = train(lambda plan: SGDW(plan, lr=LR))
    assert torch.allclose(term, coupled, rtol=1e-12, atol=1e-14)
    assert torch.allclose(term, decoupled, rtol=1e-12, atol=1e-14)


def test_for_adam_the_term_is_l2_and_decoupled_decay_is_another_thing() -> None:
    """Proposition 2; the term and l2 are one also here, because Adam sees only their gradient."""
    term = train(lambda plan: AdamW(plan, lr=LR), with_penalty=True)
    coupled = train(lambda plan: AdamL2(plan, lr=LR))
    decoupled = train(lambda plan: AdamW(plan, lr=LR))
    undecayed = train(lambda plan: AdamW(plan, lr=LR), weight_decay=0.0)
    assert torch.allclose(term, coupled, rtol=1e-9, atol=1e-12)
    assert float((term - decoupled).norm()) > 0.2 * float((term - undecayed).norm())


def test_with_momentum_sgd_parts_too() -> None:
    coupled = train(lambda plan: SGDW(plan, lr=LR, momentum=0.9, rule="l2"))
    decoupled = train(lambda plan: SGDW(plan, lr=LR, momentum=0.9))
    assert float((coupled - decoupled).norm() / decoupled.norm()) > 1e-2


def test_low_precision_weights_are_summed_in_float32() -> None:
    net = nn.Linear(300, 300, bias=False).bfloat16()
    found = penalty(weightdecay.plan(net, weight_decay=2.0))
    assert found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(float(net.weight.detach().double().square().sum()), rel=1e-5)


def test_a_plan_without_tensors_is_refused() -> None:
    class Empty:
        def param_groups(self, *, lr: float) -> list[dict[str, Any]]:  # noqa: ARG002
            return []

    with pytest.raises(OptimizerError, match="no tensors"):
        penalty(Empty())


def test_a_model_is_no_plan() -> None:
    with pytest.raises(OptimizerError, match=r"got Sequential: give weightdecay\.plan\(model\)"):
        penalty(model())  # type: ignore[arg-type]


def test_complex_weights_count_with_their_squared_magnitudes() -> None:
    p = nn.Parameter(torch.tensor([3 + 4j, 1j]))
    term = penalty(torch.optim.SGD([p], lr=0.1, weight_decay=0.5))
    term.backward()  # type: ignore[no-untyped-call]
    assert (term.dtype, term.item()) == (torch.float32, 0.5 * 0.5 * 26)
    assert torch.equal(p.grad, 0.5 * p.detach())  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["0.1", None])
def test_a_group_without_a_lambda_is_named(given: Any) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    optimizer.param_groups[0]["weight_decay"] = given
    with pytest.raises(OptimizerError, match="group 0 has weight_decay"):
        penalty(optimizer)
