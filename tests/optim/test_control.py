from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightdecay
from tests.covering import covering
from tests.references.rules import decay_per_step
from weightdecay.errors import OptimizerError
from weightdecay.optim.adamw import AdamW
from weightdecay.optim.control import control
from weightdecay.optim.precision import PrecisionWarning
from weightdecay.optim.scheduling import apply_schedules
from weightdecay.optim.sgdw import SGDW
from weightdecay.optim.state import load_state_by_name, settings_by_name, state_by_name
from weightdecay.rules import RULES
from weightdecay.schedules import Constant, Cosine, Linear, OneOverT, Warmup

Make = Callable[..., torch.optim.Optimizer]
STEPS, PEAK = 40, 0.02
LR = Warmup(5, then=Cosine(PEAK, 0.0, STEPS - 6))

OTHERS: dict[str, Make] = {
    "torch AdamW": torch.optim.AdamW,
    "torch AdamW fused": lambda p, **kw: torch.optim.AdamW(p, fused=True, **kw),
    "torch Adam decoupled": lambda p, **kw: torch.optim.Adam(p, decoupled_weight_decay=True, **kw),
    "torch Adam": torch.optim.Adam,
    "torch SGD": torch.optim.SGD,
    "torch RMSprop": torch.optim.RMSprop,
    "torch NAdam": torch.optim.NAdam,
}


class SignDescent(torch.optim.Optimizer):
    """An optimizer of the kind people write themselves: decoupled decay without lr, and no other state."""

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["weight_decay"]).sub_(group["lr"] * p.grad.sign())
        return loss


OTHERS["somebody's own"] = SignDescent


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in ((4, 5), (6,))]


def run(optimizer: torch.optim.Optimizer, *, zero: bool = False, first: int = 0, last: int = STEPS) -> list[Tensor]:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = LR(step)
            for p in group["params"]:
                p.grad = torch.zeros_like(p) if zero else torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()
    return [p.detach() for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize(
    ("name", "rule"),
    covering(list(OTHERS), ["decoupled", "independent", "fixed", "lr_squared", "corrected", "towards_one"]),
)
def test_any_optimizer_follows_a_rule_and_a_schedule(name: str, rule: str) -> None:
    """With zero gradients the weights shrink by Π(1 − a_t) of the rule under λ(t), through lr = 0 at the end."""
    params = parameters()
    start = [p.detach().clone() for p in params]
    weight_decay = Linear(0.01, 0.002, STEPS)
    optimizer = OTHERS[name](params, lr=PEAK, weight_decay=0.01)
    control(optimizer, rule=rule, peak_lr=PEAK, schedule=weight_decay)  # type: ignore[arg-type]
    found = run(optimizer, zero=True)
    kept = 1.0
    for step in range(STEPS):
        kept *= 1 - decay_per_step(rule, LR(step), weight_decay(step), PEAK)
    for w, w_0 in zip(found, start, strict=True):
        expected = 1 + (w_0 - 1) * kept if rule == "towards_one" else w_0 * kept
        assert torch.allclose(w, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("rule", ["decoupled", "independent", "fixed", "lr_squared", "corrected"])
def test_controlled_torch_adamw_equals_ours(rule: str) -> None:
    theirs, ours = parameters(), parameters()
    controlled = torch.optim.AdamW(theirs, lr=PEAK, weight_decay=0.05)
    control(controlled, rule=rule, peak_lr=PEAK)  # type: ignore[arg-type]
    mine = AdamW(ours, lr=PEAK, weight_decay=0.05, rule=rule)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(run(controlled), run(mine), strict=True))


def test_torch_adam_under_control_becomes_adamw() -> None:
    theirs, ours = parameters(), parameters()
    controlled = torch.optim.Adam(theirs, lr=PEAK, weight_decay=0.05)
    control(controlled)
    found, expected = run(controlled), run(torch.optim.AdamW(ours, lr=PEAK, weight_decay=0.05))
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("cls", [AdamW, SGDW], ids=lambda cls: cls.__name__)
def test_our_own_optimizers_are_controlled_too(cls: Any) -> None:
    controlled, reference = parameters(), parameters()
    optimizer = cls(controlled, lr=PEAK, weight_decay=0.05)
    control(optimizer, rule="cautious", schedule=Constant(0.3))
    expected = run(cls(reference, lr=PEAK, weight_decay=0.3, rule="cautious"))
    assert all(torch.equal(a, b) for a, b in zip(run(optimizer), expected, strict=True))


def test_groups_keep_their_proportion_and_exempt_ones_stay_exempt() -> None:
    first, second, third = (nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer = torch.optim.AdamW(
        [
            {"params": [first], "weight_decay": 0.1},
            {"params": [second], "weight_decay": 0.05},
            {"params": [third], "weight_decay": 0.0},
        ],
        lr=0.1,
    )
    control(optimizer, schedule=Linear(0.4, 0.0, 4))
    seen: list[float] = []
    for _ in range(5):
        for p in (first, second, third):
            p.grad = torch.zeros_like(p)
        optimizer.step()
        seen += [group["weight_decay"] for group in optimizer.param_groups]
    assert seen == pytest.approx([0.4, 0.2, 0, 0.3, 0.15, 0, 0.2, 0.1, 0, 0.1, 0.05, 0, 0, 0, 0])
    assert torch.equal(third, torch.ones(2))


@pytest.mark.parametrize("by", ["position", "name"])
def test_a_resumed_schedule_goes_on_where_it_was(by: str) -> None:
    through, resumed = parameters(), parameters()
    optimizer = torch.optim.SGD(through, lr=PEAK, weight_decay=0.01)  # keeps no step of its own
    control(optimizer, schedule=Linear(0.5, 0.0, STEPS))
    run(optimizer, last=15)
    saved, names = copy.deepcopy(optimizer.state_dict()), ["matrix", "vector"]
    by_name = copy.deepcopy((state_by_name(optimizer, names), settings_by_name(optimizer, names)))
    with torch.no_grad():
        for p, q in zip(resumed, through, strict=True):
            p.copy_(q)
    again = torch.optim.SGD(resumed, lr=PEAK, weight_decay=0.01)
    control(again, schedule=Linear(0.5, 0.0, STEPS))
    if by == "position":
        again.load_state_dict(saved)
    else:
        load_state_by_name(again, *by_name, names=names, on_change="override")
    found, expected = run(again, first=15), run(optimizer, first=15)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_schedule_attached_late_starts_at_the_steps_already_taken() -> None:
    optimizer = torch.optim.AdamW(parameters(), lr=PEAK, weight_decay=0.01)
    run(optimizer, last=10)
    controlled = control(optimizer, rule="independent", peak_lr=PEAK, schedule=OneOverT(0.4))
    assert controlled.decay_per_step() == pytest.approx([LR(9) / PEAK * 0.4 / 11])
    optimizer.step()
    assert controlled.decay_per_step() == pytest.approx([LR(9) / PEAK * 0.4 / 12])


class Counts(torch.optim.Optimizer):
    """Signs of gradients with AdamW's decay; it counts its steps somewhere, and another key is no count."""

    def __init__(self, params: Any, where: str, key: str, as_tensor: bool) -> None:
        super().__init__(params, {"lr": PEAK, "weight_decay": 0.05, "k" if key != "k" else "round": 50})
        self.where, self.key, self.as_tensor = where, key, as_tensor

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            counted = [group] if self.where == "group" else [self.state[p] for p in group["params"]]
            for holder in counted:
                number = int(holder.get(self.key, 0)) + 1
                holder[self.key] = torch.tensor(float(number)) if self.as_tensor else number
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(p.grad.sign(), alpha=group["lr"])


@pytest.mark.parametrize("where", ["group", "state"])
@pytest.mark.parametrize("key", ["step", "k", "t", "iterations"])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_steps_that_were_taken_are_known_wherever_they_are_counted(where: str, key: str, as_tensor: bool) -> None:
    optimizer = Counts(parameters(), where, key, as_tensor)
    run(optimizer, last=3)
    held = control(optimizer, rule="fixed", schedule=Linear(0.05, 0.0, steps=10))
    assert held.decay_per_step() == pytest.approx([0.035] * len(optimizer.param_groups))
    run(optimizer, last=2)
    assert {group["decay_step"] for group in optimizer.param_groups} == {5}


def test_removed_hooks_leave_the_optimizer_as_it_was_before() -> None:
    theirs, ours = parameters(), parameters()
    optimizer = torch.optim.AdamW(theirs, lr=PEAK, weight_decay=0.05)
    control(optimizer, rule="fixed").remove()
    expected = run(torch.optim.AdamW(ours, lr=PEAK, weight_decay=0.05))
    assert all(torch.equal(a, b) for a, b in zip(run(optimizer), expected, strict=True))


def test_a_closure_passes_where_the_kernel_decays_and_is_refused_where_hooks_would_decay_too_early() -> None:
    native, theirs = parameters(), parameters()
    optimizer = torch.optim.AdamW(native, lr=PEAK, weight_decay=0.05)
    control(optimizer, rule="independent", peak_lr=PEAK)

    def loss(params: list[nn.Parameter]) -> Tensor:
        value = torch.stack([p.square().sum() for p in params]).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    assert optimizer.step(lambda: loss(native)) is not None
    adam = torch.optim.Adam(theirs, lr=PEAK, weight_decay=0.05)
    control(adam)
    with pytest.raises(OptimizerError, match="compute the gradient first"):
        adam.step(lambda: loss(theirs))


def test_a_closure_that_fails_leaves_no_changed_lambda_behind() -> None:
    params = parameters()
    optimizer = torch.optim.AdamW(params, lr=PEAK, weight_decay=0.05)
    control(optimizer, rule="independent", peak_lr=PEAK)

    def failing() -> float:
        raise RuntimeError("out of data")

    with pytest.raises(RuntimeError, match="out of data"):
        optimizer.step(failing)
    expected = parameters()
    reference = AdamW(expected, lr=PEAK, weight_decay=0.05, rule="independent")
    assert all(torch.equal(a, b) for a, b in zip(run(optimizer), run(reference), strict=True))


def test_a_grad_scaler_that_skips_a_step_skips_its_decay() -> None:
    params = parameters()
    optimizer: Any = torch.optim.Adam(params, lr=PEAK, weight_decay=0.05, fused=True)
    control(optimizer, rule="fixed")
    for p in params:
        p.grad = torch.full_like(p, torch.inf)
    before = [p.detach().clone() for p in params]
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))
    assert "decay_step" not in optimizer.param_groups[0]


def test_the_coupled_form_takes_a_schedule_too() -> None:
    theirs, ours = parameters(), parameters()
    controlled = torch.optim.Adam(theirs, lr=PEAK, weight_decay=0.05)
    control(controlled, rule="l2", schedule=Constant(0.4))
    expected = run(torch.optim.Adam(ours, lr=PEAK, weight_decay=0.4))
    assert all(torch.equal(a, b) for a, b in zip(run(controlled), expected, strict=True))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no peak": (lambda: control(adamw(), rule="independent"), "cannot be read from the optimizer"),
    "one peak for two lr": (lambda: control(two_lr(), rule="corrected", peak_lr=0.1), "give one for each"),
    "too few peaks": (lambda: control(two_lr(), rule="corrected", peak_lr=[0.1]), "1 peaks for 2 groups"),
    "unnamed peak": (lambda: control(two_lr(), rule="corrected", peak_lr={"a": 0.1}), r"group 1 \('b'\)"),
    "unknown rule": (lambda: control(adamw(), rule="decuopled"), "did you mean 'decoupled'"),  # type: ignore[arg-type]
    "no decay at all": (lambda: control(torch.optim.Rprop(parameters())), "there is no decay to control"),
    "zero everywhere": (
        lambda: control(torch.optim.AdamW(parameters(), weight_decay=0.0), schedule=Constant(0.1)), "weight_decay 0"),
    "towards_initial": (lambda: control(adamw(), rule="towards_initial"), "the weights of before the first step"),
    "l2 on AdamW": (lambda: control(adamw(), rule="l2"), "belongs to torch.optim.Adam and SGD"),
    "l2 on ours": (lambda: control(AdamW(parameters()), rule="l2"), "use AdamL2"),
    "towards_one on Adafactor": (
        lambda: control(torch.optim.Adafactor(parameters(), weight_decay=0.1), rule="towards_one"),
        "depends on the weights"),
    "no optimizer": (lambda: control(nn.Linear(2, 2)), "takes a torch optimizer, got Linear"),  # type: ignore[arg-type]
    "a schedule's name": (lambda: control(adamw(), schedule="cosine"), "such as Linear"),  # type: ignore[arg-type]
    "a peak in words": (
        lambda: control(adamw(), rule="independent", peak_lr="0.1"), "got 0.1"),  # type: ignore[arg-type]
    "a peak of nobody": (
        lambda: control(two_lr(), rule="corrected", peak_lr={"a": 0.1, "b": 0.1, "c": 0.1}), "no group is named 'c'"),
    "a negative λ": (lambda: control(adamw(), schedule=lambda _step: -0.1), "weight_decay at step 0 is -0.1"),
    "no λ": (lambda: control(adamw(), schedule=lambda _step: None), "weight_decay at step 0 is None"),  # type: ignore[arg-type]
    "over one": (lambda: control(adamw(), rule="fixed", schedule=Constant(1.5)), "sign of the weights"),
    "ω/t from the start": (
        lambda: control(adamw(), rule="independent", peak_lr=PEAK, schedule=OneOverT(4.0)), "sign of the weights"),
}  # fmt: skip


def adamw() -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters(), lr=PEAK, weight_decay=0.05)


def two_lr() -> torch.optim.Optimizer:
    a, b = parameters()
    groups: list[dict[str, Any]] = [{"params": [a], "name": "a"}, {"params": [b], "lr": 0.1, "name": "b"}]
    return torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1)


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exact_is_refused_with_the_reason(case: str) -> None:
    build, words = REFUSED[case]
    with pytest.raises(OptimizerError, match=words):
        build()


def test_peaks_by_order_and_by_name_are_each_groups_own() -> None:
    for peaks in ([0.01, 0.1], {"a": 0.01, "b": 0.1}):
        optimizer = two_lr()
        controlled = control(optimizer, rule="independent", peak_lr=peaks)
        assert controlled.decay_per_step() == pytest.approx([0.1, 0.1])


def test_an_optimizer_that_scales_with_the_weights_is_refused() -> None:
    transformers = pytest.importorskip("transformers")
    optimizer = transformers.Adafactor(parameters(), lr=0.01, relative_step=False, weight_decay=0.1)
    with pytest.raises(OptimizerError, match="scale_parameter=False"):
        control(optimizer)


@pytest.mark.transformers
@pytest.mark.parametrize("rule", ["decoupled", "fixed", "corrected"])
def test_transformers_adafactor_follows_a_rule(rule: str) -> None:
    transformers = pytest.importorskip("transformers")
    params = [nn.Parameter(p.detach().float()) for p in parameters()]
    start = [p.detach().clone() for p in params]
    optimizer = transformers.Adafactor(params, lr=PEAK, relative_step=False, scale_parameter=False, weight_decay=0.05)
    control(optimizer, rule=rule, peak_lr=PEAK)  # type: ignore[arg-type]
    found = run(optimizer, zero=True)
    kept = 1.0
    for step in range(STEPS):
        kept *= 1 - decay_per_step(rule, LR(step), 0.05, PEAK)
    assert all(torch.allclose(w, kept * w_0, rtol=1e-5) for w, w_0 in zip(found, start, strict=True))


def test_schedule_free_is_refused_with_what_serves_it_instead() -> None:
    """It decays at y, by an lr of its own making; λ as it means it follows a schedule by `apply_schedules`."""
    import schedulefree

    optimizer = schedulefree.AdamWScheduleFree(parameters(), lr=PEAK, weight_decay=0.05)
    for rule in (None, "decoupled", "fixed"):
        with pytest.raises(OptimizerError, match=r"AdamWScheduleFree, group 0: .*weightdecay\.apply_schedules"):
            control(optimizer, rule=rule)
    assert "rule" not in optimizer.param_groups[0]
    apply_schedules(optimizer, 3, weight_decay=Linear(0.2, 0.0, 10))
    assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(0.14)


def test_the_public_name_is_this_function() -> None:
    assert weightdecay.control is control
    assert set(RULES) >= {"decoupled", "independent", "fixed", "l2", "lr_squared", "corrected", "cautious"}


def test_a_controlled_bfloat16_model_is_warned_of_too() -> None:
    optimizer = torch.optim.AdamW(nn.Linear(64, 64).bfloat16().parameters(), lr=3e-4, weight_decay=0.1)
    with pytest.warns(PrecisionWarning, match=r"0\.0% of the decay per step of 3e-05"):
        control(optimizer)


def test_a_sparse_gradient_is_refused_before_any_group_has_decayed() -> None:
    dense, sparse = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(4, 2))
    groups: list[dict[str, Any]] = [{"params": [dense]}, {"params": [sparse], "name": "embedding"}]
    optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=0.1)
    control(optimizer)
    dense.grad = torch.zeros_like(dense)
    sparse.grad = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1, 2), (4, 2), check_invariants=False)
    with pytest.raises(OptimizerError, match=r"group 1 \('embedding'\): a sparse gradient.*sparse=False"):
        optimizer.step()
    assert torch.equal(dense, torch.ones(2, 2))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1]
