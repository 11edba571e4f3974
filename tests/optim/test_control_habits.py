"""What `control` must be able to follow: the step that really runs, the settings that it uses, its gradients."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightdecay
from tests.covering import covering
from weightdecay.errors import OptimizerError
from weightdecay.optim.control import control
from weightdecay.rules import Rule


def params(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in ((5, 4), (4,))]


def give_gradients(ps: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for p in ps:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)


class Plain(torch.optim.Optimizer):
    """Momentum and decoupled decay; subclasses say where it takes λ, lr and gradients from."""

    def __init__(self, ps: Any, lr: float = 0.05, weight_decay: float = 0.1, **more: Any) -> None:
        super().__init__(ps, {"lr": lr, "weight_decay": weight_decay, **more})

    @torch.no_grad()
    def step(self, closure: Any = None, **more: Any) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            self.begin(group)
            for place, p in enumerate(group["params"]):
                gradient = self.gradient_of(p, place, more)
                if gradient is None:
                    continue
                state = self.state[p]
                lr, λ = self.settings_of(group, state)
                momentum = state.setdefault("m", torch.zeros_like(p)).mul_(0.9).add_(gradient)
                p.mul_(1 - lr * λ).sub_(momentum, alpha=group["lr"])
            self.end(group)

    def begin(self, group: dict[str, Any]) -> None:
        """Before its tensors."""

    def end(self, group: dict[str, Any]) -> None:
        """After its tensors."""

    def gradient_of(self, p: Tensor, place: int, more: dict[str, Any]) -> Tensor | None:  # noqa: ARG002
        return p.grad

    def settings_of(self, group: dict[str, Any], state: dict[str, Any]) -> tuple[float, float]:  # noqa: ARG002
        return group["lr"], group["weight_decay"]


class KeepsLambdaInState(Plain):
    def settings_of(self, group: dict[str, Any], state: dict[str, Any]) -> tuple[float, float]:
        return group["lr"], state.setdefault("λ", group["weight_decay"])


class KeepsLrInState(Plain):
    def settings_of(self, group: dict[str, Any], state: dict[str, Any]) -> tuple[float, float]:
        return state.setdefault("lr", group["lr"]), group["weight_decay"]


class KeepsLambdaInGroup(Plain):
    def settings_of(self, group: dict[str, Any], state: dict[str, Any]) -> tuple[float, float]:  # noqa: ARG002
        return group["lr"], group.setdefault("λ", group["weight_decay"])


class KeepsLambdaOfItsConstructor(Plain):
    def __init__(self, ps: Any, **settings: Any) -> None:
        super().__init__(ps, **settings)
        self.λ = self.param_groups[0]["weight_decay"]

    def settings_of(self, group: dict[str, Any], state: dict[str, Any]) -> tuple[float, float]:  # noqa: ARG002
        return group["lr"], self.λ


class SchedulesLambda(Plain):
    def end(self, group: dict[str, Any]) -> None:
        group["weight_decay"] *= 0.99


class SchedulesLambdaFirst(Plain):
    def begin(self, group: dict[str, Any]) -> None:
        group["weight_decay"] *= 0.99


class SchedulesLr(Plain):
    def end(self, group: dict[str, Any]) -> None:
        group["lr"] *= 0.99


class SchedulesLrFirst(Plain):
    def begin(self, group: dict[str, Any]) -> None:
        group["lr"] *= 0.99


class MissingIsZero(Plain):
    def gradient_of(self, p: Tensor, place: int, more: dict[str, Any]) -> Tensor | None:  # noqa: ARG002
        return torch.zeros_like(p) if p.grad is None else p.grad


class MainGrad(Plain):
    """As Megatron's: gradients are added up in an attribute, and `grad` is None."""

    def gradient_of(self, p: Tensor, place: int, more: dict[str, Any]) -> Tensor | None:  # noqa: ARG002
        return getattr(p, "main_grad", p.grad)


class GivenGradients(Plain):
    def gradient_of(self, p: Tensor, place: int, more: dict[str, Any]) -> Tensor | None:
        return more["grads"][place] if "grads" in more else p.grad


RULES: list[tuple[Any, Callable[[float, float], float]]] = [
    ("decoupled", lambda lr, λ: lr * λ),
    ("fixed", lambda lr, λ: λ),  # noqa: ARG005
    (Rule("mine", lr_power=1, mask="agreeing"), lambda lr, λ: lr * λ),
]
SETTINGS = [
    Plain, KeepsLambdaInState, KeepsLrInState, KeepsLambdaInGroup, KeepsLambdaOfItsConstructor, SchedulesLambda,
    SchedulesLambdaFirst, SchedulesLr, SchedulesLrFirst, MissingIsZero, MainGrad, GivenGradients,
]  # fmt: skip


@pytest.mark.parametrize(("cls", "of_rule", "warm"), covering(SETTINGS, RULES, [False, True]))
def test_where_a_step_takes_its_settings_from_is_followed_or_refused(cls: Any, of_rule: Any, warm: bool) -> None:
    """lr and λ move in the loop, as schedules do; what decays is what the groups say when a step begins."""
    rule, amount = of_rule
    ps, free = params(), params()
    held, plain = cls(ps, weight_decay=0.02), cls(free, weight_decay=0.0)
    for step in range(3 if warm else 0):
        for these, optimizer in ((ps, held), (free, plain)):
            give_gradients(these, step)
            optimizer.step()
    try:
        control(held, rule=rule)
    except OptimizerError:
        return
    for step in range(20):
        lr, λ = 0.05 * 0.9**step, 0.02 * 1.1**step
        before, loose = [p.detach().clone() for p in ps], [p.detach().clone() for p in free]
        for these, optimizer in ((ps, held), (free, plain)):
            give_gradients(these, step)
            if cls is not SchedulesLambda and cls is not SchedulesLambdaFirst:
                optimizer.param_groups[0].update(lr=lr, weight_decay=λ if optimizer is held else 0.0)
        try:
            held.step()
        except OptimizerError:
            assert all(map(torch.equal, before, ps))
            return
        plain.step()
        for p, w, q, x in zip(ps, before, free, loose, strict=True):
            update = x - q.detach()
            decays = (update * w >= 0).double() if isinstance(rule, Rule) else 1.0
            torch.testing.assert_close(p.detach(), w - amount(lr, λ) * decays * w - update, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RAdam, torch.optim.NAdam, Plain])
@pytest.mark.parametrize("rule", ["fixed", "independent", "cautious"])
def test_ordinary_ones_are_served(cls: Any, rule: Any) -> None:
    peak_lr = 0.05 if rule == "independent" else None
    assert f"rule {rule}" in repr(control(cls(params(), lr=0.05, weight_decay=0.1), rule=rule, peak_lr=peak_lr))


def test_tensors_without_a_gradient_that_are_stepped_are_told() -> None:
    with pytest.raises(OptimizerError, match="moves tensors whose `grad` is None"):
        control(MissingIsZero(params()), rule=Rule("mine", lr_power=1, mask="agreeing"))


@pytest.mark.parametrize("when", ["before control", "after it"])
def test_gradients_in_an_attribute_are_told_before_the_step(when: str) -> None:
    ps = params()
    optimizer = MainGrad(ps)
    for p in ps if when == "before control" else ():
        p.main_grad = torch.ones_like(p)  # type: ignore[attr-defined]
    try:
        control(optimizer, rule=Rule("mine", lr_power=1, mask="agreeing"))
    except OptimizerError as error:
        assert "`grad`" in str(error)  # noqa: PT017
        return
    for p in ps:
        p.main_grad = torch.ones_like(p)  # type: ignore[attr-defined]
    with pytest.raises(OptimizerError, match="gradient as `main_grad` and none as `grad`"):
        optimizer.step()
    assert all(map(torch.equal, params(), ps))


def test_gradients_that_a_step_is_given_are_refused_before_it() -> None:
    ps = params()
    optimizer = GivenGradients(ps)
    control(optimizer, rule=Rule("mine", lr_power=1, mask="agreeing"))
    before = [p.detach().clone() for p in ps]
    with pytest.raises(OptimizerError, match="step was given grads"):
        optimizer.step(grads=[torch.ones_like(p) for p in ps])
    assert all(map(torch.equal, before, ps))


# --- the step that really runs


def theirs(self: Any, closure: Any = None) -> None:  # noqa: ARG001
    for group in self.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                p.data.sub_(p.grad, alpha=group["lr"])


def of_a_closure(optimizer: Any) -> Any:
    return lambda closure=None: theirs(optimizer, closure)


def calling_on(optimizer: Any) -> Any:
    own = optimizer.step
    return lambda closure=None: own(closure)


def calling_on_with_more(optimizer: Any) -> Any:
    own = optimizer.step

    @functools.wraps(own)
    def step(*args: Any, **kwargs: Any) -> Any:
        return own(*args, **kwargs)

    return step


class Timer:
    def __init__(self, optimizer: Any) -> None:
        self.original, self.calls = optimizer.step, 0

    def timed(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.original(*args, **kwargs)


def kept_on_itself(optimizer: Any) -> Any:
    optimizer._own = optimizer.step
    return lambda closure=None: optimizer._own(closure)


def in_a_dict(optimizer: Any) -> Any:
    kept = {"own": [optimizer.step]}
    return lambda closure=None: kept["own"][0](closure)


def of_the_class(optimizer: Any) -> Any:
    def step(closure: Any = None) -> Any:
        def inside() -> Any:
            return type(optimizer).step(optimizer, closure)

        return inside()

    return step


REPLACED: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "a closure": (of_a_closure, False),
    "a method": (lambda optimizer: types.MethodType(theirs, optimizer), False),
    "a partial": (lambda optimizer: functools.partial(theirs, optimizer), False),
    "nothing": (lambda optimizer: lambda closure=None: None, False),  # noqa: ARG005
    "one that calls its own": (calling_on, True),
    "a wrapper": (calling_on_with_more, True),
    "a partial of its own": (lambda optimizer: functools.partial(optimizer.step), True),
    "a method of an object": (lambda optimizer: Timer(optimizer).timed, True),
    "a function of an object": (
        lambda optimizer: (lambda timer: lambda *args: timer.timed(*args))(Timer(optimizer)),
        True,
    ),
    "one that it keeps": (kept_on_itself, True),
    "one in a dict": (in_a_dict, True),
    "its class's": (of_the_class, True),
    "a scheduler's": (lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1).optimizer.step, True),
}


@pytest.mark.parametrize("how", REPLACED)
@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.SGD, weightdecay.AdamW, Plain])
def test_a_step_that_was_replaced_is_followed_where_it_comes_to_the_own_one(cls: Any, how: str) -> None:
    replacement, is_followed = REPLACED[how]
    ps = params()
    optimizer = cls(ps, lr=0.05, weight_decay=0.1)
    optimizer.step = replacement(optimizer)
    if not is_followed:
        with pytest.raises(OptimizerError, match=r"step\(\): .*runs none of its hooks"):
            control(optimizer, rule="fixed")
        return
    control(optimizer, rule="fixed")
    before = ps[0].detach().clone()
    for p in ps:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(ps[0].detach(), 0.9 * before)


def test_what_no_copy_runs_is_no_reason_to_refuse(tmp_path: Path) -> None:
    """A hook, or a function around the step, that writes to a file or takes from an iterator."""
    numbers, optimizer = iter(range(9)), torch.optim.AdamW(params(), lr=0.05, weight_decay=0.1)
    with (tmp_path / "log").open("w") as file:

        def note(*_: Any) -> None:
            file.write(f"step {next(numbers)}")

        optimizer.register_step_pre_hook(note)
        own = optimizer.step
        optimizer.step = lambda closure=None: (file.write("around"), own(closure))[1]  # type: ignore[method-assign]
        control(optimizer, rule="fixed")
        assert file.tell() == 0
    assert next(numbers) == 0


class Sharpness(torch.optim.Optimizer):
    """SAM as most write it: two steps beside `step`, and an optimizer inside."""

    def __init__(self, ps: Any, lr: float = 0.05, weight_decay: float = 0.1) -> None:
        super().__init__(ps, {"lr": lr, "weight_decay": weight_decay})
        self.inside = torch.optim.SGD(self.param_groups, lr=lr, weight_decay=weight_decay)
        self.param_groups = self.inside.param_groups

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        for p in self.param_groups[0]["params"]:
            self.state[p]["before"] = p.detach().clone()
            p.add_(p.grad, alpha=0.01)
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for p in self.param_groups[0]["params"]:
            p.copy_(self.state[p]["before"])
        self.inside.step()

    def step(self, closure: Any = None) -> Any:
        self.first_step(zero_grad=True)
        torch.enable_grad()(closure)()
        self.second_step()


def test_steps_beside_the_step_that_move_weights_are_refused_with_the_optimizer_to_control() -> None:
    optimizer = Sharpness(params())
    with pytest.raises(OptimizerError, match=r"first_step\(\), second_step\(\): .* inside, `\.inside`"):
        control(optimizer, rule="fixed")
    ps = optimizer.param_groups[0]["params"]
    control(optimizer.inside, rule=Rule("all", lr_power=0, mask="none"))
    give_gradients(ps, 0)
    before, gradient = ps[0].detach().clone(), ps[0].grad.clone()
    optimizer.first_step()
    optimizer.second_step()
    torch.testing.assert_close(ps[0].detach(), 0.9 * before - 0.05 * gradient)


# --- masks


@pytest.mark.parametrize(
    ("cls", "rule", "dtype"),
    covering(
        [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad, Plain],
        ["cautious", Rule("mine", lr_power=0, mask="agreeing"), Rule("o", mask="strictly_agreeing")],
        [torch.bfloat16, torch.float16],
    ),
)
def test_a_mask_over_updates_that_round_away_is_refused(cls: Any, rule: Any, dtype: torch.dtype) -> None:
    ps = params(dtype)
    with pytest.raises(OptimizerError, match=f"small ones round away .*{str(dtype).removeprefix('torch.')}|float16"):
        control(cls(ps, lr=0.05, weight_decay=0.1), rule=rule)
    control(cls(ps, lr=0.05, weight_decay=0.1), rule="fixed")
