"""A class whose step calls `super().step()` runs its hooks once or twice, and control steps once in either case."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import weightdecay
from tests.covering import covering
from weightdecay.schedules import Linear

LR, STEPS = 0.05, 12
BASES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "NAdam": torch.optim.NAdam,
    "RMSprop": torch.optim.RMSprop,
}


def nested(base: Any) -> Any:
    """A subclass of a subclass, so that hooks may run three times; of its own, since classes stay wrapped."""

    class Middle(base):  # type: ignore[misc]
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    class Outer(Middle):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    for kind in (base, Middle):
        kind([torch.nn.Parameter(torch.zeros(1))])  # from here on torch runs hooks around each of these steps
    return Outer


def weights_after(make: Any, rule: Any) -> Tensor:
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.randn(6, 5, dtype=torch.float64))
    optimizer = make([w], lr=LR, weight_decay=0.3)
    peak = {"peak_lr": LR} if rule in ("independent", "corrected") else {}
    weightdecay.control(optimizer, rule=rule, schedule=Linear(0.3, 0.0, steps=STEPS), **peak)
    for number in range(STEPS):
        w.grad = torch.randn(6, 5, dtype=torch.float64)
        optimizer.param_groups[0]["lr"] = LR * (1 - number / STEPS)
        optimizer.step()
    assert optimizer.param_groups[0]["decay_step"] == STEPS
    return w.detach()


@pytest.mark.parametrize(
    ("base", "rule"),
    covering(list(BASES), ["decoupled", "independent", "fixed", "lr_squared", "corrected", "cautious"]),
)
def test_a_step_that_calls_its_bases_step_decays_once(base: str, rule: str) -> None:
    assert torch.equal(weights_after(nested(BASES[base]), rule), weights_after(BASES[base], rule))


def test_what_a_step_that_raised_left_is_no_step_around_the_next() -> None:
    class Fails(torch.optim.Adam):
        fails = False

        def step(self, closure: Any = None) -> Any:
            if self.fails:
                raise RuntimeError("within a step")
            return super().step(closure)

    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
    w = torch.nn.Parameter(torch.ones(4, dtype=torch.float64))
    optimizer = Fails([w], lr=0.1, weight_decay=0.5)
    weightdecay.control(optimizer, rule="independent", peak_lr=0.1)
    w.grad = torch.zeros_like(w)
    optimizer.fails = True
    with pytest.raises(RuntimeError, match="within a step"):
        optimizer.step()
    after_raising = w.detach().clone()
    optimizer.fails = False
    for _ in range(3):
        optimizer.step()
    torch.testing.assert_close(w.detach(), after_raising * 0.5**3, rtol=1e-12, atol=0)


def released(optimizer: torch.optim.Optimizer, held: weightdecay.Control) -> object:
    held.remove()
    return optimizer.param_groups[0]["weight_decay"]


LOOKS: dict[str, Callable[[torch.optim.Optimizer, weightdecay.Control], object]] = {
    "saved by position": lambda optimizer, _: optimizer.state_dict()["param_groups"][0]["weight_decay"],
    "saved by name": lambda optimizer, _: weightdecay.settings_by_name(optimizer, ["w"])["groups"][0]["weight_decay"],
    "asked for": lambda optimizer, held: held.decay_per_step() and optimizer.param_groups[0]["weight_decay"],
    "printed": lambda _, held: float(str(held).partition("λ ")[2].partition(",")[0]),
    "left alone": released,
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("base", [torch.optim.Adam, torch.optim.AdamW])
def test_after_a_step_that_raised_lambda_is_what_it_was(base: Any, look: str) -> None:
    class OutOfMemory(base):  # type: ignore[misc]
        fails = False

        def step(self, closure: Any = None) -> Any:
            if self.fails:
                raise MemoryError("within a step")
            return super().step(closure)

    w = torch.nn.Parameter(torch.ones(4))
    optimizer = OutOfMemory([w], lr=0.1, weight_decay=0.25)
    held = weightdecay.control(optimizer, rule="fixed")
    w.grad = torch.zeros_like(w)
    optimizer.fails = True
    with pytest.raises(MemoryError):
        optimizer.step()
    assert optimizer.param_groups[0]["weight_decay"] != 0.25
    assert LOOKS[look](optimizer, held) == 0.25


class NeverMade(torch.optim.Optimizer):
    """A wrapper with hooks of its step alone, that was never made as an optimizer and saves what it wraps."""

    def __init__(self, wrapped: torch.optim.Optimizer) -> None:
        self._optimizer_step_pre_hooks: Any = OrderedDict()
        self._optimizer_step_post_hooks: Any = OrderedDict()
        self._patch_step_function()
        self.wrapped, self.defaults = wrapped, wrapped.defaults

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self.wrapped.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.wrapped.state

    def state_dict(self) -> Any:
        return self.wrapped.state_dict()

    def step(self, closure: Any = None) -> Any:
        return self.wrapped.step(closure)


@pytest.mark.parametrize("rule", ["decoupled", "independent"])
@pytest.mark.parametrize("base", BASES)
def test_a_wrapper_without_an_optimizers_tables_of_hooks_is_served_as_what_it_wraps(base: str, rule: str) -> None:
    def make(*args: Any, **kwargs: Any) -> NeverMade:
        return NeverMade(BASES[base](*args, **kwargs))

    assert torch.equal(weights_after(make, rule), weights_after(BASES[base], rule))
