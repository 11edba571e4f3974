"""`control` on optimizers that others wrote: exact, or refused with the reason. Packages not installed skip."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from weightdecay.errors import OptimizerError
from weightdecay.optim.control import control
from weightdecay.optim.trial import why_shrinking_before_is_not_exact

PEAK, STEPS = 0.02, 8
# their decay is at another point than the weights', and is theirs: see test_controller
DECAYS_AT_Y = "schedulefree"
# AdaSmooth's rate follows the path that each weight took, which 12 steps of the trial do not show; on it control is off
# by about a tenth of a·u
UNSEEN = {"AdaSmooth"}


def classes(package: str) -> Iterator[Any]:
    module = pytest.importorskip(package)
    for cls in vars(module).values():
        if inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer:
            yield cls


def parameters() -> list[nn.Parameter]:
    """Two that are small, and one of more than the 4,096 elements from which on bitsandbytes keeps 8 bits."""
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((6, 8), (4, 4), (80, 64))]


def made(cls: Any, **settings: Any) -> tuple[list[nn.Parameter], Any]:
    params = parameters()
    optimizer = cls(params, lr=PEAK, **settings)
    if hasattr(optimizer, "train"):
        optimizer.train()
    return params, optimizer


def set_gradients(params: list[nn.Parameter], optimizer: Any, step: int) -> float:
    lr = PEAK * (1 - step / STEPS)
    generator = torch.Generator().manual_seed(100 + step)
    for group in optimizer.param_groups:
        group["lr"] = lr
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
    return lr


def controlled(cls: Any, rule: str, weight_decay: float, **settings: Any) -> list[Tensor]:
    params, optimizer = made(cls, weight_decay=weight_decay, **settings)
    control(optimizer, rule=rule)
    torch.manual_seed(0)  # some draw numbers
    for step in range(STEPS):
        set_gradients(params, optimizer, step)
        optimizer.step()
    return [p.detach() for p in params]


def by_hand(cls: Any, rule: str, weight_decay: float, **settings: Any) -> list[Tensor]:
    """w − a·w − u, where u is what the optimizer without decay subtracts from w."""
    params, optimizer = made(cls, weight_decay=weight_decay, **settings)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    torch.manual_seed(0)
    for step in range(STEPS):
        lr = set_gradients(params, optimizer, step)
        before = [p.detach().clone() for p in params]
        optimizer.step()
        with torch.no_grad():
            for p, w in zip(params, before, strict=True):
                p.sub_(w, alpha=weight_decay if rule == "fixed" else lr * weight_decay)
    return [p.detach() for p in params]


def outcome(cls: Any, rule: str, weight_decay: float, **settings: Any) -> str:
    try:
        expected = by_hand(cls, rule, weight_decay, **settings)
    except Exception:  # it wants other arguments, a closure, a model, or a processor that is not here
        return "not run"
    try:
        found = controlled(cls, rule, weight_decay, **settings)
    except OptimizerError:
        return "refused"
    off = max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))
    return "exact" if off < 2e-6 else f"off by {off:.1e}"


@pytest.mark.parametrize("rule", ["fixed", "decoupled"])
def test_every_optimizer_of_torch_is_controlled_exactly(rule: str) -> None:
    weight_decay = 0.05 if rule == "fixed" else 1.0
    found = {cls.__name__: outcome(cls, rule, weight_decay) for cls in classes("torch.optim")}
    ran = {name: result for name, result in found.items() if result != "not run"}
    assert ran.pop("ASGD") in ("exact", "refused")
    assert set(ran.values()) == {"exact"}, ran
    assert {"Adafactor", "Muon", "Adam", "AdamW", "NAdam", "RAdam", "SGD", "RMSprop", "Adagrad", "Adamax"} <= ran.keys()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rule", ["fixed", "decoupled"])
@pytest.mark.parametrize(
    "package", ["lion_pytorch", "bitsandbytes.optim", "pytorch_optimizer", "optimi", "prodigyopt", "schedulefree"]
)
def test_optimizers_of_other_packages_are_controlled_exactly_or_refused(package: str, rule: str) -> None:
    weight_decay = 0.05 if rule == "fixed" else 1.0
    found = {cls.__name__: outcome(cls, rule, weight_decay) for cls in classes(package)}
    if package == DECAYS_AT_Y and rule == "decoupled":
        return
    off = {name: result for name, result in found.items() if result not in ("exact", "refused", "not run")}
    assert off.keys() <= UNSEEN, off
    assert "exact" in found.values() or "refused" in found.values()


@pytest.mark.transformers
@pytest.mark.parametrize("rule", ["fixed", "decoupled"])
@pytest.mark.parametrize("beta1", [None, 0.9])
def test_transformers_adafactor_is_exact_without_its_scale_and_refused_with_it(rule: str, beta1: float | None) -> None:
    transformers = pytest.importorskip("transformers")
    settings = {"relative_step": False, "beta1": beta1}
    assert outcome(transformers.Adafactor, rule, 0.05, **settings, scale_parameter=False) == "exact"
    assert outcome(transformers.Adafactor, rule, 0.05, **settings) == "refused"


class Stranger(torch.optim.Optimizer):
    """One that people write themselves; what it does with the weights is the test's."""

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.0, kind: str = "plain") -> None:
        self.kind = kind
        self.calls = 0
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        self.calls += 1
        for group in self.param_groups:
            for p in group["params"]:
                update = group["lr"] * p.grad
                state = self.state[p]
                if self.kind == "trust ratio":
                    update *= p.norm()
                elif self.kind == "lookahead":
                    slow = state.setdefault("slow", p.clone())
                    state["step"] = state.get("step", 0) + 1
                    if state["step"] % 6 == 0:
                        p.copy_(slow.lerp_(p, 0.5))
                elif self.kind == "chance":
                    update *= torch.rand(())
                elif self.kind == "needs a model":
                    raise KeyError("model")
                p.sub_(update)


def stranger(kind: str) -> Stranger:
    p = nn.Parameter(torch.ones(3, 2))
    return Stranger([{"params": [p], "name": "all"}], weight_decay=0.1, kind=kind)


@pytest.mark.parametrize("kind", ["trust ratio", "lookahead"])
def test_an_update_that_depends_on_the_weights_is_seen_and_refused(kind: str) -> None:
    with pytest.raises(OptimizerError, match=r"group 0 \('all'\): its update depends on the weights"):
        control(stranger(kind))


def test_one_that_cannot_be_tried_is_refused_with_its_own_error() -> None:
    with pytest.raises(OptimizerError, match=r"could not be tried on a small tensor.*KeyError: 'model'"):
        control(stranger("needs a model"))


def test_the_trial_touches_neither_the_optimizer_nor_the_random_numbers() -> None:
    optimizer = stranger("chance")
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # wraps `step` in the instance
    (p,) = optimizer.param_groups[0]["params"]
    torch.manual_seed(3)
    expected = torch.rand(())
    torch.manual_seed(3)
    assert why_shrinking_before_is_not_exact(optimizer) == []
    assert torch.equal(torch.rand(()), expected)
    assert torch.equal(p, torch.ones(3, 2))
    assert p.grad is None
    assert (optimizer.calls, len(optimizer.state)) == (0, 0)
    assert optimizer.param_groups[0]["params"] == [p]


def test_a_key_of_torchs_in_the_groups_of_a_wrapper_does_not_make_its_decay_torchs() -> None:
    p = nn.Parameter(torch.ones(3, 2))
    optimizer = Stranger(
        [{"params": [p], "decoupled_weight_decay": True}], weight_decay=0.1
    )  # as a wrapper of AdamW has
    control(optimizer, rule="fixed")
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.allclose(p.detach(), torch.full((3, 2), 0.9))
