"""Control where rounding looks like reading: sums that are rounded in parts, or handed to later steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from weightdecay.errors import OptimizerError
from weightdecay.optim.control import control
from weightdecay.rules import Rule

ROUNDING = 2.5 * 2**-8
MASKED = Rule("mine", lr_power=0, mask="agreeing")


class Stand(torch.optim.Optimizer):
    """What the classes below have in common: lr, λ that goes into the gradient, and a state for each tensor."""

    def __init__(self, params: Any, lr: float = 0.02, weight_decay: float = 0.0, **more: Any) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, **more})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            for p in group["params"]:
                self.change(p, p.grad + group["weight_decay"] * p, self.state[p], group)

    def change(self, p: Tensor, grad: Tensor, state: Any, group: Any) -> None:
        raise NotImplementedError


class SumsInParts(Stand):
    """Three momenta that are added one by one, and each sum is rounded."""

    def change(self, p: Tensor, grad: Tensor, state: Any, group: Any) -> None:
        for beta in (0.0, 0.9, 0.99):
            buffer = state.setdefault(str(beta), torch.zeros_like(p))
            buffer.mul_(beta).add_(grad)
            p.add_(buffer, alpha=-group["lr"] / 3)


class KeepsWhatIsLost(Stand):
    """A Kahan sum: what a step rounds off the weights is added in the next."""

    def change(self, p: Tensor, grad: Tensor, state: Any, group: Any) -> None:
        lost = state.setdefault("lost", torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)))
        lost.sub_(group["lr"] * grad)
        before = p.clone()
        p.add_(lost.to(p.dtype))
        lost.add_(before - p)


class RefusesNothing(Stand):
    """A preconditioner that is scaled by the first gradient, which may not be 0."""

    def change(self, p: Tensor, grad: Tensor, state: Any, group: Any) -> None:
        if not state:
            if not grad.any():
                raise ValueError("the gradient is all 0")
            state["scale"] = grad.norm()
        p.sub_(group["lr"] * grad / state["scale"])


class GoesBack(Stand):
    """Slow weights, gone half the way back to in every k-th step."""

    def change(self, p: Tensor, grad: Tensor, state: Any, group: Any) -> None:
        if not state:
            state.update(step=0, slow=p.clone())
        state["step"] += 1
        p.sub_(grad, alpha=group["lr"])
        if state["step"] % group["k"] == 0:
            state["slow"].lerp_(p, 0.5)
            p.copy_(state["slow"])


def weight(dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).to(dtype))


def gradient(step: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(100 + step)).to(dtype)


def exact_steps(cls: Any, dtype: torch.dtype, rule: Any, a: float, steps: int, **more: Any) -> int:
    """How many steps are made before one is refused; each must be that of a run without decay, less a·mask·w."""
    plain, p = weight(dtype), weight(dtype)
    free, held = cls([plain], **more), cls([p], weight_decay=a, **more)
    control(held, rule=rule)
    room, largest = ROUNDING if dtype is torch.bfloat16 else 1e-6, 0.0
    for step in range(steps):
        plain.grad, p.grad = gradient(step, dtype), gradient(step, dtype)
        w, x = p.detach().double(), plain.detach().double()
        try:
            held.step()
        except OptimizerError:
            assert torch.equal(p.double(), w), "the weights are not as after the step before"
            return step
        free.step()
        u = x - plain.detach().double()
        off = (p.double() - (w - a * (w * (u * w >= 0) if rule is MASKED else w) - u)).abs()
        largest = max(largest, float(w.abs().max() + x.abs().max() + u.abs().max()))
        at_boundary = (u * w).abs() <= room * largest * w.abs() if rule is MASKED else torch.zeros_like(off) > 0
        assert bool(((off <= room * largest) | at_boundary).all()), f"step {step}: {float(off.max()):.2g}"
    return steps


@pytest.mark.parametrize("rule", ["fixed", MASKED], ids=["fixed", "masked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cls", [SumsInParts, KeepsWhatIsLost])
def test_sums_that_are_rounded_in_parts_or_later_read_no_weights_and_decay_as_asked(
    cls: Any, dtype: torch.dtype, rule: Any
) -> None:
    if rule is MASKED and dtype is torch.bfloat16:  # signs of updates that round away cannot be seen
        with pytest.raises(OptimizerError, match="small ones round away"):
            control(cls([weight(dtype)], weight_decay=0.1), rule=rule)
        return
    assert exact_steps(cls, dtype, rule, 0.1, 60) == 60


@pytest.mark.parametrize("rule", ["fixed", MASKED], ids=["fixed", "masked"])
@pytest.mark.parametrize("k", [20, 60, 200])
def test_slow_weights_are_stopped_before_the_first_step_that_goes_back_to_them(k: int, rule: Any) -> None:
    made = exact_steps(GoesBack, torch.float32, rule, 0.01, k + 1, k=k)
    assert 0 < made < k


@pytest.mark.parametrize("rule", ["fixed", MASKED], ids=["fixed", "masked"])
def test_a_class_that_takes_no_gradient_of_zeros_is_served_by_what_it_does_with_others(rule: Any) -> None:
    assert exact_steps(RefusesNothing, torch.float32, rule, 0.01, 30) == 30
