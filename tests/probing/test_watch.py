"""What no trial of a few steps shows: twins go on beside the real steps, some steps ahead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import weightdecay
from weightdecay.errors import OptimizerError


class GoesBack(torch.optim.Optimizer):
    """SGD with a decay of its own, 1 − lr·λ, or with none, that now and then goes half the way back to old weights."""

    def __init__(self, params: Any, lr: float, weight_decay: float, every: int, decays: bool) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "every": every, "decays": decays})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(step=0, slow=p.detach().clone())
                state["step"] += 1
                if group["decays"]:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(p.grad, alpha=-group["lr"])
                if state["step"] % group["every"] == 0:
                    state["slow"].lerp_(p, 0.5)
                    p.copy_(state["slow"])


class FollowsItsWay(torch.optim.Optimizer):
    """SGD whose rate grows with the way that the weights have gone, decay included."""

    def __init__(self, params: Any, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(before=p.detach().clone(), way=torch.zeros_like(p))
                state["way"] += (p - state["before"]).abs()
                state["before"].copy_(p)
                p.sub_(p.grad * (1 + state["way"]), alpha=group["lr"])


def weight() -> nn.Parameter:
    return nn.Parameter(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("decays", [True, False], ids=["its own decay", "no decay of its own"])
@pytest.mark.parametrize("every", [3, 40, 250])
def test_weights_that_are_gone_back_to_are_refused_or_stopped_before_the_step(every: int, decays: bool) -> None:
    p = weight()
    optimizer = GoesBack([p], lr=0.1, weight_decay=0.1, every=every, decays=decays)
    try:
        weightdecay.control(optimizer, rule="independent", peak_lr=0.1)
    except OptimizerError:
        assert every < 40
        return
    for step in range(1, every + 1):
        p.grad = torch.zeros_like(p)
        before, count = p.detach().clone(), optimizer.state[p].get("step", 0) if optimizer.state else 0
        try:
            optimizer.step()
        except OptimizerError:
            assert torch.equal(p, before)
            assert optimizer.state[p]["step"] == count
            return
        assert step < every, "the inexact step was made"


class InSingle(torch.optim.Optimizer):
    """Signs of gradients, AdamW's decay; it rounds to float32 whatever the weights are."""

    def __init__(self, params: Any, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            for p in group["params"]:
                w = p.float().mul_(1 - group["lr"] * group["weight_decay"])
                p.copy_(w.sub_(p.grad.float().sign(), alpha=group["lr"]))


def test_an_lr_that_falls_to_0_within_the_watch_is_no_reason_to_stop() -> None:
    """Twins that decay become as small as lr, and the one that never does keeps its size, and its rounding."""
    p = weight()
    optimizer = InSingle([p], lr=0.02, weight_decay=0.1)
    held = weightdecay.control(optimizer, rule="fixed")
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.02 * 0.85 ** min(step, 100)
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert "300 steps were watched" in repr(held)


def test_a_rate_that_follows_the_way_of_the_weights_is_refused() -> None:
    with pytest.raises(OptimizerError, match="depends on the weights"):
        weightdecay.control(FollowsItsWay([weight()], lr=0.1, weight_decay=0.1), rule="fixed")


def test_groups_that_do_not_decay_are_left_alone_whatever_they_read() -> None:
    p, reference = weight(), weight()
    optimizer = GoesBack([p], lr=0.1, weight_decay=0.0, every=20, decays=False)
    plain = GoesBack([reference], lr=0.1, weight_decay=0.0, every=20, decays=False)
    weightdecay.control(optimizer)
    for _ in range(45):
        p.grad, reference.grad = torch.ones_like(p), torch.ones_like(p)
        optimizer.step()
        plain.step()
    assert torch.equal(p, reference)


def test_such_a_group_is_judged_when_it_begins_to_decay() -> None:
    p = weight()
    optimizer = GoesBack([p], lr=0.1, weight_decay=0.0, every=20, decays=False)
    weightdecay.control(optimizer)
    for _ in range(25):
        p.grad = torch.ones_like(p)
        optimizer.step()
    optimizer.param_groups[0]["weight_decay"] = 0.1
    with pytest.raises(OptimizerError, match="depends on the weights"):
        optimizer.step()


@pytest.mark.parametrize("how", ["appended", "put in place of another"])
@pytest.mark.parametrize("steps", [0, 1, 310])
def test_tensors_that_come_into_a_group_by_hand_are_tried_before_the_next_step(steps: int, how: str) -> None:
    class Skips(torch.optim.Optimizer):
        """AdamW's decay, and none of vectors."""

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
            for group in self.param_groups:
                for p in group["params"]:
                    if p.ndim > 1:
                        p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.sub_(p.grad, alpha=group["lr"])

    params = [weight(), weight()]
    optimizer = Skips(params, {"lr": 0.1, "weight_decay": 0.1})
    weightdecay.control(optimizer)

    def step() -> None:
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        optimizer.step()

    for _ in range(steps):
        step()
    vector = nn.Parameter(torch.ones(5))
    if how == "appended":
        optimizer.param_groups[0]["params"].append(vector)
    else:
        optimizer.param_groups[0]["params"][1] = vector
    with pytest.raises(OptimizerError, match="takes more of some of its tensors than of others"):
        step()
    assert torch.equal(vector, torch.ones(5))
    optimizer.param_groups[0]["params"][-1] = weight()
    step()
