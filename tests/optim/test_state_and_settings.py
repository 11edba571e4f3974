"""What an optimizer's saved state and its saved settings tell of each other."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.optim.test_state import model, train
from weightdecay.errors import OptimizerError
from weightdecay.optim.adafactor import Adafactor
from weightdecay.optim.adamw import AdamW
from weightdecay.optim.lion import Lion
from weightdecay.optim.muon import Muon
from weightdecay.optim.sgdw import SGDW
from weightdecay.optim.state import changes, from_positional, load_state_by_name, settings_by_name, state_by_name


@pytest.mark.parametrize("on_change", [None, "keep", "override"])
def test_lost_unknown_and_nameless_state_is_named_at_once_and_nothing_is_loaded(on_change: Any) -> None:
    net = model()
    optimizer = AdamW(net.named_parameters())
    train(net, optimizer, 0, 2)
    tensors, settings = state_by_name(optimizer), settings_by_name(optimizer)
    damaged = {key: value for key, value in tensors.items() if not key.startswith(("0.bias/", "2.weight/"))}
    damaged |= {"9.weight/exp_avg": torch.ones(2), "1.weight": torch.ones(2)}
    fresh = AdamW(net.named_parameters())
    with pytest.raises(OptimizerError) as caught:
        load_state_by_name(fresh, damaged, settings, on_change=on_change)
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        "'1.weight' is no state", "0.bias", "2.weight", "9.weight",
    ]  # fmt: skip
    assert not fresh.state


def test_a_tensor_that_never_had_a_gradient_has_no_state_to_lose() -> None:
    net = model()
    optimizer = AdamW(net.named_parameters())
    train(net[1:], optimizer, 0, 2)
    tensors, settings = state_by_name(optimizer), settings_by_name(optimizer)
    assert settings["stateless"] == ["0.weight", "0.bias"]
    fresh = AdamW(net.named_parameters())
    load_state_by_name(fresh, tensors, settings)
    assert state_by_name(fresh).keys() == tensors.keys()


def test_a_positional_state_without_some_tensors_says_which() -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    train(net[1:], optimizer, 0, 1)
    tensors, settings = from_positional(optimizer.state_dict(), net)
    assert settings["stateless"] == ["0.weight", "0.bias"]
    load_state_by_name(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), tensors, settings, net)
    del tensors["1.bias/momentum_buffer"]
    with pytest.raises(OptimizerError, match=r"1\.bias: it had state"):
        load_state_by_name(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), tensors, settings, net)


@pytest.mark.parametrize("settings", [{}, {"groups": [{"lr": 0.1}]}, {"groups": "decay"}])
def test_settings_of_somebody_else_are_refused(settings: Any) -> None:
    optimizer = AdamW(model().named_parameters())
    with pytest.raises(OptimizerError, match="give what settings_by_name gave"):
        load_state_by_name(optimizer, {}, settings)


def test_how_far_schedule_free_had_come_is_no_matter_of_choice() -> None:
    """Its groups hold the count of steps and the weight of the average: begun anew, the next step would undo it."""
    schedulefree = pytest.importorskip("schedulefree")

    def make(net: nn.Sequential, weight_decay: float) -> Any:
        optimizer = schedulefree.AdamWScheduleFree(net.parameters(), lr=0.01, weight_decay=weight_decay)
        optimizer.train()
        return optimizer

    through, resumed = model(), model()
    first, second = make(through, 0.1), make(resumed, 0.4)
    train(through, first, 0, 3)
    resumed.load_state_dict(through.state_dict())
    settings = settings_by_name(first, through)
    assert {change.setting for change in changes(second, settings, resumed)} == {"weight_decay"}
    load_state_by_name(second, state_by_name(first, through), settings, resumed, on_change="override")
    for group in first.param_groups:
        group["weight_decay"] = 0.4
    train(through, first, 3, 3)
    train(resumed, second, 3, 3)
    assert all(torch.equal(a, b) for a, b in zip(through.parameters(), resumed.parameters(), strict=True))


def test_keep_leaves_alone_what_json_cannot_hold() -> None:
    """A group may hold a function or a dtype: its type's name is compared and never put in its place."""

    def make(**extra: Any) -> AdamW:
        return AdamW([{"params": list(model().named_parameters()), **extra}], lr=0.01)

    saved = settings_by_name(make(dtype=torch.bfloat16, weight_decay=0.3))
    assert saved["groups"][0]["dtype"] == "<dtype>"
    same = make(dtype=torch.bfloat16)
    load_state_by_name(same, {}, saved, on_change="keep")
    assert (same.param_groups[0]["dtype"], same.param_groups[0]["weight_decay"]) == (torch.bfloat16, 0.3)
    with pytest.raises(OptimizerError, match="group 0: dtype was saved by the name of its type, <dtype>, and cannot"):
        load_state_by_name(make(dtype="bfloat16"), {}, saved, on_change="keep")


GARBAGE = [None, 1, 0.5, True, "x", [1], {1: 2}, object(), torch.ones(2)]


def saved_and_fresh() -> tuple[nn.Module, dict[str, torch.Tensor], dict[str, Any], AdamW]:
    net = model()
    optimizer = AdamW(net.named_parameters(), lr=1e-3)
    train(net, optimizer, 0, 2)
    return net, state_by_name(optimizer), settings_by_name(optimizer), AdamW(net.named_parameters(), lr=1e-3)


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda value: repr(value)[:12])
def test_what_is_none_of_what_was_saved_is_refused_in_our_words(garbage: Any) -> None:
    net, tensors, settings, fresh = saved_and_fresh()
    group = settings["groups"][0]
    calls: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "tensors": (garbage, settings, {}),
        "a tensor": (tensors | {"0.weight/exp_avg": garbage}, settings, {}),
        "settings": (tensors, garbage, {}),
        "groups": (tensors, settings | {"groups": garbage}, {}),
        "params": (tensors, settings | {"groups": [group | {"params": garbage}]}, {"on_change": "keep"}),
        "progress": (tensors, settings | {"groups": [group | {"progress": garbage}]}, {}),
        "stateless": (tensors, settings | {"stateless": garbage}, {}),
        "names": (tensors, settings, {"names": garbage}),
        "ignore": (tensors, settings, {"ignore": garbage}),
        "rename": (tensors, settings, {"rename": garbage}),
    }
    # These are what they may be: nothing given, a list of names, a mapping.
    if garbage is None:
        calls = {name: call for name, call in calls.items() if name not in ("settings", "names", "rename")}
    if isinstance(garbage, list | dict | torch.Tensor):
        calls.pop("ignore")
    for what, (given, its, more) in calls.items():
        with pytest.raises(OptimizerError):
            load_state_by_name(fresh, given, its, **{"names": net, **more})
        assert not fresh.state, what
    with pytest.raises(OptimizerError):
        state_by_name(garbage, net)
    with pytest.raises(OptimizerError):
        from_positional(garbage, net)


@pytest.mark.parametrize(
    ("key", "value"),
    [("lr", "x"), ("lr", True), ("lr", None), ("lr", -1.0), ("lr", [0.1]), ("weight_decay", {"of": 1}), ("betas", 0.9),
     ("betas", [0.9]), ("betas", [0.9, 1.5]), ("amsgrad", 1), ("rounding", 3), ("rule", "decouplde"), ("eps", "1e-8")],
)  # fmt: skip
def test_a_saved_setting_that_no_optimizer_can_have_is_never_kept(key: str, value: Any) -> None:
    net, tensors, settings, fresh = saved_and_fresh()
    before = {name: held for name, held in fresh.param_groups[0].items() if name != "params"}
    damaged = settings | {"groups": [settings["groups"][0] | {key: value}]}
    with pytest.raises(OptimizerError, match=rf"{key}|Invalid learning rate|beta|epsilon"):
        load_state_by_name(fresh, tensors, damaged, names=net, on_change="keep")
    assert not fresh.state
    assert {name: held for name, held in fresh.param_groups[0].items() if name != "params"} == before


def test_one_name_to_ignore_is_no_list_of_letters() -> None:
    net, tensors, settings, _ = saved_and_fresh()
    with pytest.raises(OptimizerError, match="ignore is 'lr'"):
        load_state_by_name(AdamW(net.named_parameters(), lr=1.0), tensors, settings, names=net, ignore="lr")


# (optimizer, saved with, asked with, state that goes, state that a step must find)
WITH_STATE: list[tuple[Any, dict[str, Any], dict[str, Any], set[str], set[str]]] = [
    (AdamW, {"amsgrad": True}, {"amsgrad": False}, {"max_exp_avg_sq"}, set()),
    (AdamW, {"amsgrad": False}, {"amsgrad": True}, set(), {"max_exp_avg_sq"}),
    (AdamW, {"rule": "towards_initial"}, {"rule": "decoupled"}, {"initial"}, set()),
    (AdamW, {"rule": "decoupled"}, {"rule": "towards_initial"}, set(), set()),
    (AdamW, {"rounding": "master"}, {"rounding": "kahan"}, {"master"}, set()),
    (AdamW, {"rounding": "kahan"}, {"rounding": "stochastic"}, {"compensation"}, set()),
    (Lion, {"rounding": "stochastic"}, {"rounding": "master"}, {"rounded_steps", "noise_stream"}, set()),
    (SGDW, {"momentum": 0.9}, {"momentum": 0.0}, {"momentum_buffer"}, set()),
    (SGDW, {"momentum": 0.0}, {"momentum": 0.9}, set(), set()),
    (Adafactor, {"beta1": 0.9}, {"beta1": None}, {"exp_avg"}, set()),
    (Adafactor, {"beta1": None}, {"beta1": 0.9}, set(), {"exp_avg"}),
    (Muon, {"neuron_beta2": 0.9}, {"neuron_beta2": 0.0}, {"second_momentum_buffer"}, set()),
    (Muon, {"neuron_beta2": 0.0}, {"neuron_beta2": 0.9}, set(), {"second_momentum_buffer"}),
    (torch.optim.AdamW, {"amsgrad": True}, {"amsgrad": False}, {"max_exp_avg_sq"}, set()),
    (torch.optim.SGD, {"momentum": 0.9}, {"momentum": 0.0}, {"momentum_buffer"}, set()),
    (torch.optim.RMSprop, {"centered": False}, {"centered": True}, set(), {"grad_avg"}),
]


@pytest.mark.filterwarnings("ignore::weightdecay.PrecisionWarning")
@pytest.mark.parametrize("on_change", ["keep", "override", None])
@pytest.mark.parametrize(("cls", "saved", "asked", "goes", "lacks"), WITH_STATE)
def test_a_setting_that_comes_with_state_is_a_choice_as_any_other(
    cls: Any, saved: dict[str, Any], asked: dict[str, Any], goes: set[str], lacks: set[str], on_change: Any
) -> None:
    def step(p: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        p.grad = torch.linspace(-1, 2, 12).view(3, 4).to(p.dtype)
        optimizer.step()

    first = nn.Parameter(torch.linspace(-3, 1, 12).view(3, 4).to(torch.bfloat16 if "rounding" in saved else None))
    old = cls([("w", first)], lr=0.01, weight_decay=0.1, **saved)
    step(first, old)
    step(first, old)

    second = nn.Parameter(first.detach().clone())
    new = cls([("w", second)], lr=0.01, weight_decay=0.1, **asked)
    before = copy.deepcopy(dict(old.state[first]))

    def load() -> None:
        load_state_by_name(new, state_by_name(old), settings_by_name(old), on_change=on_change)

    if on_change is None or (on_change == "override" and lacks):
        (setting,) = saved
        reason = f"{setting}: saved .* choose" if on_change is None else f"w/{min(lacks)}: .* choose on_change='keep'"
        with pytest.raises(OptimizerError, match=reason) as refused:
            load()
        assert "another optimizer" not in str(refused.value)
        assert not new.state
        return
    load()
    if on_change == "override":  # as if it had been changed in the run
        old.param_groups[0].update(asked)
        for key in goes:
            del old.state[first][key]
    assert new.state[second].keys() == old.state[first].keys()
    step(first, old)
    step(second, new)
    assert torch.equal(first, second)
    assert all(torch.equal(new.state[second][key], value) for key, value in old.state[first].items())
    assert on_change == "override" or before.keys() == new.state[second].keys()
