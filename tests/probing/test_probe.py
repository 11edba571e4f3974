"""What the probe says of optimizers whose step is known."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

from tests.covering import covering
from tests.probing import optimizers as own
from weightdecay.errors import OptimizerError
from weightdecay.optim.control import control
from weightdecay.probing.probe import GroupReport, probe_step


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes or ((5,), (20, 30))]


def seen(optimizer: torch.optim.Optimizer) -> GroupReport:
    report = probe_step(optimizer)
    assert report.opaque == ""
    return report.groups[0]


# class -> the form, and whether lr·λ is what it removes, the update depends on the weights, λ is read
TORCHS = {
    "ASGD": ("coupled", False, True, True),
    "Adadelta": ("coupled", False, False, True),
    "Adafactor": ("decoupled", True, True, True),
    "Adagrad": ("coupled", False, False, True),
    "Adam": ("coupled", False, False, True),
    "AdamW": ("decoupled", True, False, True),
    "Adamax": ("coupled", False, False, True),
    "LBFGS": ("none", False, False, False),
    "Muon": ("decoupled", True, False, True),
    "NAdam": ("coupled", False, False, True),
    "RAdam": ("coupled", False, False, True),
    "RMSprop": ("coupled", False, False, True),
    "Rprop": ("none", False, False, False),
    "SGD": ("decoupled", True, False, True),  # without momentum both are the same
    "SparseAdam": ("none", False, False, False),
}


def torchs() -> list[str]:
    found = vars(torch.optim).items()
    return sorted(
        n
        for n, c in found
        if inspect.isclass(c) and issubclass(c, torch.optim.Optimizer) and n in c.__name__ and n != "Optimizer"
    )


@pytest.mark.parametrize("name", torchs())
def test_every_optimizer_of_torch_is_known_by_its_step(name: str) -> None:
    shapes = ((20, 30), (40, 30)) if name == "Muon" else ((5,), (20, 30))
    settings = {} if name in ("LBFGS", "Rprop", "SparseAdam") else {"weight_decay": 0.1}
    report = seen(getattr(torch.optim, name)(parameters(*shapes), lr=0.01, **settings))
    found = (report.form, report.own_decay_is_lr_times_lambda, report.reads_weights, report.reads_weight_decay)
    assert found == TORCHS[name]
    assert (report.heeds_zeros, report.decays_apart) == (False, False)
    assert report.reads_lr


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_momentum_makes_the_decay_of_sgd_coupled(momentum: float) -> None:
    report = seen(torch.optim.SGD(parameters(), lr=0.01, momentum=momentum, weight_decay=0.1))
    assert report.through_gradient
    assert report.form == ("coupled" if momentum else "decoupled")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lr", [0.0, 1e-6, 0.3])
def test_the_decay_per_step_is_that_of_the_groups_own_lr_and_lambda(lr: float, dtype: torch.dtype) -> None:
    params = [nn.Parameter(p.detach().to(dtype)) for p in parameters()]
    report = seen(torch.optim.AdamW(params, lr=lr, weight_decay=0.1))
    assert report.decay_per_step == pytest.approx(lr * 0.1, rel=1e-6)
    assert (report.form, report.order, report.hidden_decay) == ("decoupled", "before", 0.0)


def test_a_decay_that_is_in_no_group_is_seen_however_small() -> None:
    report = seen(own.HiddenDecay(parameters(), lr=0.01))
    assert report.hidden_decay == pytest.approx(1e-6, rel=1e-3)
    assert not report.reads_weight_decay


def test_a_direction_that_branches_on_lambda_fits_no_form() -> None:
    report = seen(own.BranchesOnDecay(parameters()))
    assert (report.form, report.reads_weights) == ("other", False)


@pytest.mark.parametrize(
    ("cls", "can_be_taken_out"),
    [
        (own.DecaysBehindNorm, True),
        (own.BranchesOnDecay, False),
        (own.LambdaIsAConstant, False),
        (own.LambdaScalesGradient, False),
    ],
)
def test_where_no_form_fits_it_is_seen_whether_lambda_can_be_taken_out(cls: Any, can_be_taken_out: bool) -> None:
    report = seen(cls(parameters(), lr=0.1, weight_decay=0.1))
    assert report.form == "other"
    assert not report.reads_weights
    assert (report.branches_on_weight_decay or report.moves_zeros) is not can_be_taken_out


def test_what_happens_to_gradients_orthogonal_to_the_weights_is_seen() -> None:
    assert seen(own.ProjectsOrthogonal(parameters())).reads_weights


@pytest.mark.parametrize("shapes", [((5,), (6, 7)), ((6, 7), (5,)), ((5,), (2, 2), (6, 7))])
def test_what_holds_for_some_numbers_of_axes_is_seen_wherever_they_stand(shapes: Any) -> None:
    assert seen(own.ReadsMatrices(parameters(*shapes))).reads_weights
    assert not seen(own.ReadsMatrices(parameters((5,), (7,)))).reads_weights


def test_decay_after_the_update_is_told_from_decay_before() -> None:
    report = seen(own.DecaysAfter(parameters(), weight_decay=0.1))
    assert (report.form, report.order) == ("decoupled", "after")
    assert report.decay_per_step == pytest.approx(0.05)
    assert not report.own_decay_is_lr_times_lambda


@pytest.mark.parametrize(
    "cls",
    [
        own.BoundMethods,
        own.WantsTensorLr,
        own.StateInConstructor,
        own.ProgressInGroups,
        own.CachesInGroup,
        own.DrawsNumbers,
    ],
)
@pytest.mark.parametrize("steps", [0, 3])
def test_ordinary_optimizers_are_seen_through_fresh_or_under_way(cls: Any, steps: int) -> None:
    params = parameters()
    optimizer = cls(params, lr=0.01, weight_decay=0.1)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
    report = seen(optimizer)
    assert (report.form, report.own_decay_is_lr_times_lambda, report.reads_weights) == ("decoupled", True, False)
    assert report.decay_per_step == pytest.approx(1e-3, rel=1e-4)  # lr as a tensor has 24 bits


def test_moments_of_a_run_under_way_are_not_taken_for_decay() -> None:
    params = parameters()
    optimizer = torch.optim.AdamW(params, lr=0.01, weight_decay=0.1)
    for _ in range(5):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
    report = seen(optimizer)
    assert report.decay_per_step == pytest.approx(1e-3, rel=1e-6)
    assert report.hidden_decay == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("k", "done"), [(2, 0), (13, 0), (20, 19), (16, 7)])
def test_what_comes_in_every_kth_step_is_seen_from_where_the_optimizer_stands(k: int, done: int) -> None:
    params = parameters()
    optimizer = own.Lookahead(params, weight_decay=0.1, k=k)
    for _ in range(done):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
    assert seen(optimizer).reads_weights


def test_what_cannot_be_seen_is_opaque_with_the_reason() -> None:
    report = probe_step(own.KeepsModel(parameters(), nn.Linear(2, 2), uses=True))
    assert "its step needs a model (Linear), which is not copied" in report.opaque
    assert report.groups[0].opaque == report.opaque


def test_an_optimizer_that_moves_nothing_while_it_is_looked_at_is_opaque() -> None:
    optimizer = own.StepsSeldom(parameters(), weight_decay=0.1)
    assert "moves its small tensors, whose gradients are not 0" in probe_step(optimizer).groups[0].opaque
    with pytest.raises(OptimizerError, match="none of its next 16 steps moves"):
        control(optimizer)


def test_a_step_that_drops_its_gradients_to_ask_for_new_ones_is_seen() -> None:
    report = seen(own.LooksTwice(parameters(), lr=0.1, weight_decay=0.1))
    assert (report.form, report.reads_weight_decay, report.reads_lr) == ("decoupled", True, True)


LATER = [(warmup, form) for form in ("decoupled", "coupled") for warmup in (1, 20)]


@pytest.mark.parametrize(("after", "how"), covering([5, 6, 7, 16, 100, 250], LATER))
def test_decay_that_begins_later_is_seen(after: int, how: tuple[int, str]) -> None:
    warmup, form = how
    report = seen(own.DecaysLater(parameters(), after, warmup, form))
    assert report.reads_weight_decay
    assert not report.own_decay_is_lr_times_lambda
    assert report.idle_steps == (after if after > 5 else 0)


@pytest.mark.parametrize(
    ("by", "only", "form"),
    covering(
        ["rows", "elements", "tensors", "rows that had one", "no gradient"],
        ["decay", "step"],
        ["decoupled", "coupled", "behind the norm"],
    ),
)
def test_decay_that_leaves_out_what_has_no_gradient_is_seen_and_refused(by: str, only: str, form: str) -> None:
    if (by, only) == ("no gradient", "step"):
        pytest.skip("it never steps")
    optimizer = own.Lazy(parameters(), by, only, form)
    assert seen(optimizer).heeds_zeros
    with pytest.raises(OptimizerError, match="depends on which gradients are 0"):
        control(optimizer)


def test_decay_that_a_hook_adds_is_seen_with_hooks_and_not_without() -> None:
    optimizer = torch.optim.AdamW(parameters(), lr=0.1, weight_decay=0.1)

    def decay(of: Any, *_: Any) -> None:
        for p in of.param_groups[0]["params"]:
            p.data.mul_(0.99)

    optimizer.register_step_pre_hook(decay)
    assert probe_step(optimizer).groups[0].decay_per_step == pytest.approx(0.01)
    assert probe_step(optimizer, hooks=True).groups[0].decay_per_step == pytest.approx(1 - 0.99 * 0.99)


def test_a_group_without_tensors_and_an_empty_tensor_are_no_trouble() -> None:
    groups: list[dict[str, Any]] = [
        {"params": parameters()},
        {"params": []},
        {"params": [nn.Parameter(torch.zeros(4, 0))]},
    ]
    optimizer = torch.optim.AdamW(groups)
    report = probe_step(optimizer)
    assert [group.opaque for group in report.groups] == ["", "", ""]
    assert report.groups[0].own_decay_is_lr_times_lambda
