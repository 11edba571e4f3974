"""State that no run can have left, in another dtype, or under other names than today's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightdecay
from tests.optim.test_state import OPTIMIZERS, each, model, train, weights
from weightdecay.errors import OptimizerError
from weightdecay.optim.adamw import AdamW
from weightdecay.optim.state import changes, load_state_by_name, settings_by_name, state_by_name
from weightdecay.optim.state.names import new_names

SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "variance", "row_var", "col_var", "second_momentum_buffer")
MORE: dict[str, Any] = {
    **OPTIMIZERS,
    "Muon of equal neurons": lambda p: weightdecay.Muon(p, lr=0.01, neuron_beta2=0.95),
    "torch Adam amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "torch Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "torch Adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "torch Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.01),
    "torch NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "torch RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "torch SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
}
every = pytest.mark.parametrize("name", MORE)


def stepped(name: str, steps: int = 3) -> tuple[nn.Module, dict[str, Tensor], Any]:
    """A model, the state after some steps, and a fresh optimizer for it."""
    net = model()
    optimizer = MORE[name](net.named_parameters())
    train(net, optimizer, 0, steps)
    return (
        net,
        {key: value.clone() for key, value in state_by_name(optimizer).items()},
        MORE[name](net.named_parameters()),
    )


def refused(optimizer: Any, tensors: dict[str, Tensor], *words: str) -> None:
    before = state_by_name(optimizer)
    with pytest.raises(OptimizerError) as caught:
        load_state_by_name(optimizer, tensors, on_change="override")
    assert all(any(word in fault for fault in caught.value.faults) for word in words), caught.value.faults
    assert state_by_name(optimizer).keys() == before.keys()


@every
def test_what_steps_have_left_is_never_taken_for_damage(name: str) -> None:
    """Rows without gradients, gradients that underflow when squared, and steps without any, included."""
    net = model()
    optimizer = MORE[name](net.named_parameters())
    for step, scale in enumerate([1e-25, 0.0, 1e-20, 1.0, 1e-25, 0.0, 1e10]):
        for p in net.parameters():
            p.grad = scale * torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            p.grad[0] = 0
        optimizer.step()
        assert load_state_by_name(MORE[name](net.named_parameters()), state_by_name(optimizer)) == []


@every
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_state_that_is_not_finite_is_named_with_tensor_and_key(name: str, value: float) -> None:
    _, tensors, fresh = stepped(name)
    victims = [key for key, state in tensors.items() if state.is_floating_point() and state.ndim]
    for victim in victims[:1] + victims[-1:]:
        damaged = {**tensors, victim: tensors[victim].clone()}
        damaged[victim].view(-1)[0] = value
        refused(fresh, damaged, f"{victim}: it is not finite")


@every
def test_negative_and_lost_squares_are_named(name: str) -> None:
    _, tensors, fresh = stepped(name)
    for victim in [key for key in tensors if key.endswith(SQUARES) and tensors[key].ndim]:
        damaged = {**tensors, victim: -tensors[victim]}
        refused(fresh, damaged, f"{victim}: a mean of squares, and down to -")
        owner = victim.rpartition("/")[0]
        if f"{owner}/exp_avg" in tensors and tensors[victim].ndim == tensors[f"{owner}/exp_avg"].ndim:
            refused(fresh, {**tensors, victim: torch.zeros_like(tensors[victim])}, f"{victim}: 0 where exp_avg is not")


@every
@pytest.mark.parametrize(
    ("count", "words"),
    [(0.0, "0 steps beside"), (-1.0, "-1 is no count"), (2.5, "2.5 is no count"), (float("nan"), "nan is no count")],
)
def test_counts_that_no_run_has_are_named(name: str, count: float, words: str) -> None:
    _, tensors, fresh = stepped(name)
    moments = ("exp_avg", "momentum_buffer", "square_avg", *SQUARES)
    for victim in [key for key in tensors if key.endswith("/step") and tensors[key].is_floating_point()]:
        owner = victim.rpartition("/")[0]
        if count or any(f"{owner}/{key}" in tensors for key in moments):
            refused(fresh, {**tensors, victim: torch.tensor(count)}, f"{victim}: {words}")


@every
def test_a_count_that_was_saved_as_true_or_false_is_named(name: str) -> None:
    _, tensors, optimizer = stepped(name)
    counts = [key for key in tensors if key.endswith(("/step", "/rounded_steps"))]
    if counts:
        refused(optimizer, tensors | {key: tensors[key].bool() for key in counts}, *counts)


@pytest.mark.parametrize("value", [-0.5, 1.5])
def test_a_product_of_momenta_outside_its_range_is_named(value: float) -> None:
    _, tensors, optimizer = stepped("torch NAdam")
    refused(optimizer, tensors | {"0.weight/mu_product": torch.tensor(value)}, "0.weight/mu_product: a product")
    assert load_state_by_name(optimizer, tensors | {"0.weight/mu_product": torch.tensor(0.0)}) == []  # of a long run


def test_a_scalar_that_was_rounded_is_a_change_and_no_count() -> None:
    _, tensors, optimizer = stepped("torch NAdam")
    rounded = tensors | {"0.weight/mu_product": tensors["0.weight/mu_product"].bfloat16()}
    with pytest.raises(OptimizerError, match="dtype of mu_product: saved bfloat16, asked float32"):
        load_state_by_name(optimizer, rounded)


def test_all_damage_is_told_at_once() -> None:
    _, tensors, fresh = stepped("AdamW")
    tensors["0.weight/exp_avg_sq"].neg_()
    tensors["1.bias/step"].fill_(float("nan"))
    tensors["2.bias/exp_avg"].fill_(float("inf"))
    refused(fresh, tensors, "0.weight/exp_avg_sq", "1.bias/step", "2.bias/exp_avg")


def test_squares_that_float16_cannot_hold_are_no_damage_where_the_optimizer_keeps_float16() -> None:
    net = model(torch.float16)
    optimizer, other = torch.optim.AdamW(net.named_parameters()), AdamW(net.named_parameters(), rounding="master")
    for p in net.parameters():
        p.grad = torch.full_like(p, 1e-3)
    optimizer.step()
    tensors = state_by_name(optimizer)
    assert not tensors["0.weight/exp_avg_sq"].any()
    assert load_state_by_name(torch.optim.AdamW(net.named_parameters()), tensors) == []
    with pytest.raises(OptimizerError, match=r"0\.weight/exp_avg_sq: 0 where exp_avg is not"):
        load_state_by_name(other, tensors, on_change="override")


def test_squares_that_fade_before_the_mean_does_are_no_damage() -> None:
    """β2 < β1²: a row that is not seen for long loses its squares first."""
    net = model()

    def make() -> AdamW:
        return AdamW(net.named_parameters(), betas=(0.99, 0.5))

    optimizer = make()
    train(net, optimizer, 0, 1)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    for _ in range(200):
        optimizer.step()
    assert not optimizer.state[net.get_parameter("0.weight")]["exp_avg_sq"].any()
    assert load_state_by_name(make(), state_by_name(optimizer)) == []


# --- dtypes


@each
def test_state_in_another_dtype_is_a_change_and_override_converts_it(name: str) -> None:
    _, tensors, fresh = stepped(name)
    moments = {key for key, value in tensors.items() if value.is_floating_point() and value.ndim}
    if not moments:
        return
    wide = {key: value.double() if key in moments else value for key, value in tensors.items()}
    with pytest.raises(OptimizerError, match=r"dtype of \w+: saved float64, asked float32, for"):
        load_state_by_name(fresh, wide)
    with pytest.raises(OptimizerError, match=r"on_change='keep' cannot, \w+ steps with the dtype it makes"):
        load_state_by_name(fresh, wide, on_change="keep")
    found = load_state_by_name(fresh, wide, on_change="override")
    assert {f"{change.parameter}/{change.setting.removeprefix('dtype of ')}" for change in found} == moments
    assert {(change.saved, change.asked) for change in found} == {("float64", "float32")}
    loaded = state_by_name(fresh)
    assert all(value.dtype == tensors[key].dtype and torch.equal(value, tensors[key]) for key, value in loaded.items())


def test_counts_are_converted_where_no_digit_is_lost_and_are_no_change() -> None:
    _, tensors, fresh = stepped("AdamW")
    counted = {key: value.to(torch.int64) if key.endswith("/step") else value for key, value in tensors.items()}
    assert load_state_by_name(fresh, counted) == []
    assert all(state["step"].dtype == torch.float32 for state in fresh.state.values())
    counted["0.weight/step"] = torch.tensor(2**24 + 1)
    refused(fresh, counted, "0.weight/step: saved as int64, which float32 cannot hold")


@pytest.mark.parametrize("rounding", ["stochastic", "kahan", "master"])
@pytest.mark.parametrize("cls", ["AdamW", "Lion", "SGDW", "Muon", "Adafactor"])
def test_all_state_of_ours_comes_back_in_the_dtype_in_which_it_was_saved(cls: str, rounding: str) -> None:
    net = model(torch.bfloat16)

    def make() -> Any:
        return getattr(weightdecay, cls)(net.named_parameters(), lr=0.01, rounding=rounding)

    old, new = make(), make()
    train(net, old, 0, 2)
    for state in old.state.values():
        if "rounded_steps" in state:
            state["rounded_steps"].fill_(1001)  # which bfloat16 cannot hold
    assert load_state_by_name(new, state_by_name(old), settings_by_name(old)) == []
    for p in net.parameters():
        for key, value in old.state[p].items():
            assert not isinstance(value, Tensor) or (value.dtype, True) == (
                new.state[p][key].dtype,
                torch.equal(value, new.state[p][key]),
            )


# --- modules under new names


def renamed_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"linear": nn.Linear(6, 6), "norm": nn.LayerNorm(6), "head": nn.Linear(6, 6)})


def test_a_renamed_module_goes_on_bit_for_bit() -> None:
    old, new = model(), renamed_model()
    first = AdamW(weightdecay.plan(old), lr=0.01)
    train(old, first, 0, 3)
    for p, q in zip(old.parameters(), new.parameters(), strict=True):
        q.data.copy_(p.data)
    second = AdamW(weightdecay.plan(new), lr=0.01)
    tensors, settings = state_by_name(first), settings_by_name(first)
    rename = {"0.*": "linear.*", "1.*": "norm.*", "2.weight": "head.weight", "2.*": "head.*"}
    assert changes(second, settings, rename=rename) == []
    assert load_state_by_name(second, tensors, settings, rename=rename) == []
    train(old, first, 3, 2)
    train(new, second, 3, 2)
    assert all(torch.equal(a, b) for a, b in zip(weights(old), weights(new), strict=True))
    assert load_state_by_name(AdamW(new.named_parameters()), tensors, rename=rename) == []


def test_each_star_of_a_new_name_is_what_the_saved_names_star_stood_for() -> None:
    saved = ["h.0.attn.w", "h.11.attn.qkv.w", "h.0.mlp.w", r"a\1"]
    now = new_names(saved, {"h.*.attn.*": r"blocks.*.\attention.*", r"a\*": r"b\g<0>*"})
    assert now == {
        "h.0.attn.w": r"blocks.0.\attention.w",
        "h.11.attn.qkv.w": r"blocks.11.\attention.qkv.w",
        "h.0.mlp.w": "h.0.mlp.w",
        r"a\1": r"b\g<0>1",
    }


@pytest.mark.parametrize(
    ("rename", "words"),
    [
        ({"fc.*": "linear.*"}, "'fc.*' fits no tensor that was saved; there are 0.weight"),
        ({"0.*": "1.*"}, "0.weight and 1.weight would both be '1.weight'"),
        ({"*.weight": "w"}, "has 1 `*` and 'w' has 0"),
        ({"0.weight": "*"}, "has 0 `*` and '*' has 1"),
    ],
)
def test_a_renaming_that_cannot_be_meant_is_refused(rename: dict[str, str], words: str) -> None:
    _, tensors, fresh = stepped("AdamW")
    with pytest.raises(OptimizerError) as caught:
        load_state_by_name(fresh, tensors, rename=rename)
    assert words in str(caught.value)
    assert not fresh.state


def test_keep_goes_together_with_tensors_that_are_new() -> None:
    net = model()
    old = AdamW(net.named_parameters(), lr=0.01, weight_decay=0.3)
    train(net, old, 0, 2)
    net.append(nn.Linear(6, 2))
    new = AdamW(net.named_parameters(), lr=0.01, weight_decay=0.1)
    found = load_state_by_name(new, state_by_name(old), settings_by_name(old), on_change="keep")
    assert {change.setting for change in found} == {"tensor", "weight_decay"}
    assert new.param_groups[0]["weight_decay"] == 0.3
    assert net.get_parameter("3.weight") not in new.state
    assert torch.equal(
        new.state[net.get_parameter("0.weight")]["exp_avg"], old.state[net.get_parameter("0.weight")]["exp_avg"]
    )


# --- optimizers around optimizers


class Handing(torch.optim.Optimizer):
    """Hands everything on, as accelerate's optimizer does."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    state = property(lambda self: self.optimizer.state, lambda self, value: setattr(self.optimizer, "state", value))
    param_groups = property(
        lambda self: self.optimizer.param_groups, lambda self, value: setattr(self.optimizer, "param_groups", value)
    )
    defaults = property(lambda self: self.optimizer.defaults)

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


class Slow(torch.optim.Optimizer):
    """Keeps slow weights beside what it wraps, as Lookahead does."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer.param_groups, {})
        self.fast = optimizer


def test_a_wrapper_that_hands_on_is_seen_through() -> None:
    net = model()
    old = torch.optim.AdamW(net.named_parameters())
    train(net, old, 0, 1)
    around = Handing(torch.optim.AdamW(net.named_parameters()))
    assert settings_by_name(around)["optimizer"] == "AdamW"
    with pytest.raises(OptimizerError, match=r"0\.weight/exp_avg: saved with shape \(2,\), this model needs \(6, 6\)"):
        load_state_by_name(around, {**state_by_name(old), "0.weight/exp_avg": torch.ones(2)})
    assert load_state_by_name(around, state_by_name(old), settings_by_name(old)) == []
    assert state_by_name(around).keys() == state_by_name(old).keys()


def test_a_wrapper_with_state_of_its_own_is_refused_for_one_of_the_two_would_be_lost() -> None:
    net = model()
    around = Slow(torch.optim.AdamW(net.named_parameters()))
    for call in (state_by_name, settings_by_name):
        with pytest.raises(OptimizerError, match=r"Slow wraps a AdamW as `fast` and keeps state beside it"):
            call(around)
