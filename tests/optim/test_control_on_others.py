"""`control` on optimizers that others wrote: exact, or refused with the reason. Packages not installed skip."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.probing import optimizers as own
from weightdecay.errors import OptimizerError
from weightdecay.optim.control import control, controlled
from weightdecay.optim.decay import decay_
from weightdecay.optim.state import load_state_by_name, settings_by_name, state_by_name
from weightdecay.rules import Rule, as_rule
from weightdecay.schedules import Linear

PEAK, STEPS = 0.02, 8


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


def under_control(cls: Any, rule: str, weight_decay: float, **settings: Any) -> list[Tensor]:
    params, optimizer = made(cls, weight_decay=weight_decay, **settings)
    control(optimizer, rule=rule)  # type: ignore[arg-type]
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
        found = under_control(cls, rule, weight_decay, **settings)
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
    off = {name: result for name, result in found.items() if result not in ("exact", "refused", "not run")}
    assert not off, off
    assert "exact" in found.values() or "refused" in found.values()


@pytest.mark.transformers
@pytest.mark.parametrize("rule", ["fixed", "decoupled"])
@pytest.mark.parametrize("beta1", [None, 0.9])
def test_transformers_adafactor_is_exact_without_its_scale_and_refused_with_it(rule: str, beta1: float | None) -> None:
    transformers = pytest.importorskip("transformers")
    settings = {"relative_step": False, "beta1": beta1}
    assert outcome(transformers.Adafactor, rule, 0.05, **settings, scale_parameter=False) == "exact"
    assert outcome(transformers.Adafactor, rule, 0.05, **settings) == "refused"


class SomebodysOwn(torch.optim.Optimizer):
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


def somebodys_own(kind: str) -> SomebodysOwn:
    p = nn.Parameter(torch.ones(3, 2))
    return SomebodysOwn([{"params": [p], "name": "all"}], weight_decay=0.1, kind=kind)


@pytest.mark.parametrize("kind", ["trust ratio", "lookahead"])
def test_an_update_that_depends_on_the_weights_is_seen_and_refused(kind: str) -> None:
    with pytest.raises(OptimizerError, match=r"group 0 \('all'\): its update depends on the weights"):
        control(somebodys_own(kind))


def test_one_that_cannot_be_tried_is_refused_with_its_own_error() -> None:
    with pytest.raises(OptimizerError, match=r"could not be tried on a small tensor.*KeyError: 'model'"):
        control(somebodys_own("needs a model"))


def test_a_key_of_torchs_in_the_groups_of_a_wrapper_does_not_make_its_decay_torchs() -> None:
    p = nn.Parameter(torch.ones(3, 2))
    optimizer = SomebodysOwn(
        [{"params": [p], "decoupled_weight_decay": True}], weight_decay=0.1
    )  # as a wrapper of AdamW has
    control(optimizer, rule="fixed")
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.allclose(p.detach(), torch.full((3, 2), 0.9))


MINE = Rule("mine", lr_power=2, mask="strictly_agreeing")


@pytest.mark.parametrize("rule", ["cautious", MINE, Rule("to one", mask="agreeing", target="one")])
@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop])
def test_masked_rules_and_ones_own_decay_where_the_update_of_another_optimizer_agrees(cls: Any, rule: Any) -> None:
    params, optimizer = made(cls, weight_decay=2.0)
    reference, without = made(cls, weight_decay=0.0)
    control(optimizer, rule=rule)
    for step in range(STEPS):
        lr = set_gradients(params, optimizer, step)
        set_gradients(reference, without, step)
        before = [p.detach().clone() for p in reference]
        without.step()
        amount = as_rule(rule).decay_per_step(lr, 2.0)
        with torch.no_grad():
            for p, w in zip(reference, before, strict=True):
                update, decayed = w - p, w.clone()
                decay_(decayed, as_rule(rule), amount, 1 - amount, update.clone())
                p.copy_(decayed - update)
        optimizer.step()
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(params, reference, strict=True))


@pytest.mark.parametrize("k", [13, 20, 60])
@pytest.mark.parametrize("done", [0, 7, 19])
def test_what_looks_at_the_weights_in_every_kth_step_is_stopped_before_it_does(k: int, done: int) -> None:
    p = nn.Parameter(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)))
    optimizer = own.Lookahead([p], lr=0.01, weight_decay=1.0, k=k)
    generator = torch.Generator().manual_seed(1)

    def step() -> None:
        p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()

    for _ in range(done):
        step()
    made_steps, before = done, p.detach().clone()
    with pytest.raises(OptimizerError, match="group 0"):  # noqa: PT012
        control(optimizer, rule="fixed")
        while made_steps < done + 2 * k:
            before = p.detach().clone()
            step()
            made_steps += 1
    assert made_steps < k * (done // k + 1)
    assert torch.equal(p, before)
    assert optimizer.param_groups[0]["weight_decay"] == 1.0


@pytest.mark.parametrize("by", ["position", "name"])
def test_what_is_loaded_later_is_stopped_at_its_own_kth_step(by: str) -> None:
    """The file was saved under control, so no rule of a group tells that the optimizer stands elsewhere now."""

    def made_of(start: Tensor) -> tuple[nn.Parameter, torch.optim.Optimizer]:
        p = nn.Parameter(start.clone())
        return p, own.Lookahead([p], lr=0.01, weight_decay=1.0, k=200)

    def step(p: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        p.grad = torch.ones_like(p)
        optimizer.step()

    start = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    (p, saved), (q, resumed) = made_of(start), made_of(start)
    control(saved, rule="fixed")
    control(resumed, rule="fixed")
    for _ in range(170):
        step(p, saved)
    step(q, resumed)
    if by == "position":
        resumed.load_state_dict(saved.state_dict())
    else:
        state, settings = state_by_name(saved, ["w"]), settings_by_name(saved, ["w"])
        load_state_by_name(resumed, state, settings, names=["w"], on_change="override")
    with pytest.raises(OptimizerError, match="some of its steps"):  # noqa: PT012
        for _ in range(200 - 170):
            before = q.detach().clone()
            step(q, resumed)
    assert torch.equal(q, before)


def test_a_decay_that_is_in_no_group_is_refused() -> None:
    with pytest.raises(OptimizerError, match=r"HiddenDecay, group 0: .* takes 1e-05 off"):
        control(own.HiddenDecay([nn.Parameter(torch.ones(3, 2))]))


def test_a_direction_that_branches_on_lambda_is_refused_where_it_decays_and_left_alone_where_not() -> None:
    exempt, decaying = (nn.Parameter(torch.ones(3, 2)) for _ in range(2))
    groups = [{"params": [exempt], "weight_decay": 0.0}, {"params": [decaying], "weight_decay": 0.1}]
    with pytest.raises(OptimizerError, match=r"group 1: λ changes its direction"):
        control(own.BranchesOnDecay(groups))
    optimizer = own.BranchesOnDecay(groups[:1])
    control(optimizer)
    exempt.grad = torch.ones(3, 2)
    optimizer.step()
    assert torch.allclose(exempt, torch.full((3, 2), 0.9))
    optimizer.param_groups[0]["weight_decay"] = 0.1
    with pytest.raises(OptimizerError, match=r"group 0: λ changes its direction"):
        optimizer.step()


@pytest.mark.parametrize(
    "cls", [own.BoundMethods, own.WantsTensorLr, own.StateInConstructor, own.ProgressInGroups, own.CachesInGroup]
)
def test_ordinary_optimizers_are_served(cls: Any) -> None:
    p = nn.Parameter(torch.ones(3, 2))
    optimizer = cls([p], lr=0.5, weight_decay=0.1)
    control(optimizer, rule="fixed")
    for _ in range(4):
        p.grad = torch.zeros_like(p)
        optimizer.step()
    assert torch.allclose(p, torch.full((3, 2), 0.9**4))


def test_a_refused_control_leaves_every_setting_the_object_that_it_was() -> None:
    optimizer = own.WantsTensorLr([nn.Parameter(torch.ones(3, 2))], weight_decay=0.1)
    before = dict(optimizer.param_groups[0])
    with pytest.raises(OptimizerError, match="before the first step"):
        control(optimizer, rule="towards_initial")
    after = optimizer.param_groups[0]
    assert after.keys() == before.keys()
    assert all(after[key] is value for key, value in before.items())

    with pytest.raises(ZeroDivisionError):  # of the user's own schedule
        control(optimizer, rule="fixed", schedule=lambda step: 1 / step)
    assert optimizer.param_groups[0] == before
    assert controlled(optimizer) is None


class Wrapper(torch.optim.Optimizer):
    """As AcceleratedOptimizer: nothing but the optimizer within."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.optimizer.step(closure)


def test_a_wrapper_without_hooks_is_told_from_what_it_wraps() -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(3))], weight_decay=0.1)
    with pytest.raises(OptimizerError, match=r"give the wrapped one \(`\.optimizer`\)"):
        control(Wrapper(optimizer))
    assert controlled(Wrapper(optimizer)) is None
    assert control(optimizer) is controlled(optimizer)


class WrapperWithHooks(Wrapper):
    """As timm's Lookahead: a place for hooks, and a step that torch never wrapped to run them."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer_step_pre_hooks: dict[int, Any] = OrderedDict()
        self._optimizer_step_post_hooks: dict[int, Any] = OrderedDict()
        self._base_optimizer = self.optimizer = optimizer


def test_a_wrapper_whose_step_runs_no_hooks_is_refused_though_it_has_a_place_for_them() -> None:
    p = nn.Parameter(torch.ones(3))
    wrapper = WrapperWithHooks(torch.optim.AdamW([p], weight_decay=0.1))
    with pytest.raises(OptimizerError, match=r"give the wrapped one \(`\._base_optimizer`\)"):
        control(wrapper, rule="fixed")
    assert "rule" not in wrapper.param_groups[0]


def test_a_function_around_the_step_is_called_by_real_steps_alone() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([p], lr=0.01, weight_decay=0.1)
    plain, calls = optimizer.step, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return plain(*args, **kwargs)

    optimizer.step = counted  # type: ignore[method-assign]
    p.grad = torch.zeros_like(p)
    control(optimizer, rule="fixed")
    assert not calls
    for _ in range(3):
        optimizer.step()
    assert len(calls) == 3
    assert torch.allclose(p.detach(), torch.full((3,), 0.9**3))


def test_a_control_says_its_rule_lambda_peak_and_how_far_it_has_seen() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([p], lr=0.1, weight_decay=0.5)
    found = control(optimizer, rule="independent", peak_lr=0.2, schedule=Linear(0.5, 0.0, 10))
    for _ in range(2):
        p.grad = torch.ones_like(p)
        optimizer.step()
    said = repr(found)
    for words in ("AdamW", "rule independent", "λ 0.45", "peak lr 0.2", "step 2", "exactness seen up to step 18"):
        assert words in said


def test_a_group_that_comes_later_is_told_which_key_it_lacks() -> None:
    first, second = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = torch.optim.AdamW([first], lr=0.1, weight_decay=0.5)
    control(optimizer, rule="independent", peak_lr=0.1)
    optimizer.add_param_group({"params": [second]})
    first.grad = second.grad = torch.ones(3)
    with pytest.raises(OptimizerError, match=r"needs the peak lr of group 1.*param_groups\[1\]\['peak_lr'\]"):
        optimizer.step()
    optimizer.param_groups[1]["peak_lr"] = 0.1
    optimizer.step()
    assert optimizer.param_groups[1]["rule"] == "independent"


def test_a_step_that_was_replaced_by_a_function_without_hooks_is_refused_with_what_serves() -> None:
    class Mine(torch.optim.AdamW):
        pass

    def step(self: Any, closure: Any = None) -> Any:
        return torch.optim.AdamW.step(self, closure)

    optimizer = Mine([torch.nn.Parameter(torch.ones(4))], lr=0.1, weight_decay=0.1)
    Mine.step = step  # type: ignore[method-assign]
    with pytest.raises(OptimizerError, match=r"Mine\.step was replaced .*profile_hook_step\(Mine\.step\)"):
        control(optimizer)
    Mine.step = torch.optim.Optimizer.profile_hook_step(Mine.step)  # type: ignore[method-assign]
    Mine.step.hooked = True  # type: ignore[attr-defined]
    control(optimizer, rule="fixed")
    optimizer.param_groups[0]["params"][0].grad = torch.zeros(4)
    optimizer.step()
    assert torch.allclose(optimizer.param_groups[0]["params"][0], torch.full((4,), 0.9))


class TwiceAsFastAtSmallLambda(torch.optim.Optimizer):
    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1, "weight_decay": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            for p in group["params"]:
                speed = 2 if 0 < group["weight_decay"] < 0.15 else 1
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(p.grad, alpha=group["lr"] * speed)


def test_a_direction_that_branches_at_the_groups_own_lambda_is_refused() -> None:
    with pytest.raises(OptimizerError, match="λ changes its direction"):
        control(TwiceAsFastAtSmallLambda([nn.Parameter(torch.ones(3, 2))]), rule="fixed")
