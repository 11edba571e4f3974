"""State that is not an optimizer's own, put there between two steps or loaded by position: nothing moves."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightdecay
from tests.covering import covering
from weightdecay.errors import OptimizerError

pytestmark = pytest.mark.filterwarnings("ignore::weightdecay.PrecisionWarning")

MAKERS: dict[str, Callable[..., Any]] = {
    "AdamW": weightdecay.AdamW,
    "AdamW fused": lambda p, **kw: weightdecay.AdamW(p, fused=True, amsgrad=True, **kw),
    "AdamW foreach": lambda p, **kw: weightdecay.AdamW(p, foreach=True, **kw),
    "AdamW cautious": lambda p, **kw: weightdecay.AdamW(p, rule="cautious", fused=True, **kw),
    "AdamW towards_initial": lambda p, **kw: weightdecay.AdamW(p, rule="towards_initial", **kw),
    "AdamL2": lambda p, **kw: weightdecay.AdamL2(p, fused=True, **kw),
    "Lion": weightdecay.Lion,
    "SGDW": lambda p, **kw: weightdecay.SGDW(p, momentum=0.9, **kw),
    "SGDW fused": lambda p, **kw: weightdecay.SGDW(p, momentum=0.9, fused=True, **kw),
    "Adafactor": weightdecay.Adafactor,
    "Adafactor unfactored": lambda p, **kw: weightdecay.Adafactor(p, factored=False, beta1=0.9, **kw),
    "Muon": weightdecay.Muon,
    "Muon of even neurons": lambda p, **kw: weightdecay.Muon(p, neuron_beta2=0.9, **kw),
}
ROUNDINGS = ["nearest", "stochastic", "kahan", "master"]
KINDS = covering(list(MAKERS), list(ROUNDINGS))


def made(name: str, rounding: str = "nearest", steps: int = 2, **more: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.Linear(8, 6).to(torch.float32 if rounding == "nearest" else torch.bfloat16)
    optimizer = MAKERS[name](model.named_parameters(), lr=0.01, weight_decay=0.1, rounding=rounding, **more)
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def step(model: nn.Module, optimizer: Any) -> None:
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.5)
    optimizer.step()


def counts(key: str) -> bool:
    return key in ("step", "rounded_steps", "noise_stream")


def everything(model: nn.Module, optimizer: Any) -> Any:
    return copy.deepcopy([[p.detach(), list(optimizer.state.get(p, {}).items())] for p in model.parameters()])


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other)


# --- between two steps


def in_its_place(value: Tensor, state: dict[str, Any], key: str) -> None:
    state[key] = value


def in_its_memory(value: Tensor, state: dict[str, Any], key: str) -> None:
    state[key].data = value


BY = [in_its_place, in_its_memory]
OTHERS: dict[str, Callable[[Tensor], Any]] = {
    "shorter": lambda t: t.reshape(-1)[:-3].clone(),
    "longer": lambda t: torch.zeros(t.numel() + 5),
    "of one axis": lambda t: torch.zeros(t.numel(), dtype=t.dtype) if t.ndim > 1 else t.reshape(1, -1).clone(),
    "in another dtype": lambda t: t.double(),
}
NO_TENSORS: dict[str, Any] = {"text": "a lot", "a number": 0.5, "a list": [0.5]}


@pytest.mark.parametrize(("name", "rounding"), KINDS)
def test_state_that_was_replaced_between_two_steps_is_refused_before_anything_moves(name: str, rounding: str) -> None:
    for at_step in (1, 3):  # after the first, and when nothing has been looked at for a while
        _, seen = made(name, rounding)
        for key in seen.state[seen.param_groups[0]["params"][0]]:
            for other in OTHERS.values() if not counts(key) else ():
                for by in BY if other is not OTHERS["of one axis"] else BY[:1]:
                    model, optimizer = made(name, rounding, at_step)
                    p = optimizer.param_groups[0]["params"][0]
                    by(other(optimizer.state[p][key]), optimizer.state[p], key)
                    refused(model, optimizer, key)
            for no_tensor in NO_TENSORS.values():
                model, optimizer = made(name, rounding, at_step)
                optimizer.state[optimizer.param_groups[0]["params"][0]][key] = no_tensor
                refused(model, optimizer, key)


# A momentum that was switched on, what a rounding or a rule remembers; and all of Lion's, whose only state it is.
BEGINNING = ("momentum_buffer", "second_momentum_buffer", "initial", "master", "compensation", "noise_stream",
             "rounded_steps", "exp_avg")  # fmt: skip


@pytest.mark.parametrize(("name", "rounding"), KINDS)
def test_state_that_was_taken_away_is_refused_or_begun_and_never_stepped_in_part(name: str, rounding: str) -> None:
    _, seen = made(name, rounding)
    for key in seen.state[seen.param_groups[0]["params"][0]]:
        for none in (True, False):
            model, optimizer = made(name, rounding, 3)
            state = optimizer.state[optimizer.param_groups[0]["params"][0]]
            if none:
                state[key] = None
            else:
                del state[key]
            before = everything(model, optimizer)
            said = stepping(model, optimizer)
            if said:
                assert key in said
                assert alike(everything(model, optimizer), before)
            else:
                # What began with this step; and Muon's own step does not read its count.
                assert isinstance(state[key], Tensor), key
                assert key in (*BEGINNING, *(["step"] if "Muon" in name else ())), key


def stepping(model: nn.Module, optimizer: Any) -> str:
    try:
        step(model, optimizer)
    except OptimizerError as error:
        return str(error)
    return ""


def refused(model: nn.Module, optimizer: Any, key: str) -> None:
    before = everything(model, optimizer)
    for _ in range(2):
        with pytest.raises(OptimizerError, match=f"its {key} .*put in its place"):
            step(model, optimizer)
    assert alike(everything(model, optimizer), before)


@pytest.mark.parametrize("name", MAKERS)
def test_counts_in_low_precision_which_stop_at_256_are_refused(name: str) -> None:
    for low in (torch.bfloat16, torch.float16):
        model, optimizer = made(name, "stochastic")
        p = optimizer.param_groups[0]["params"][0]
        for key in [key for key in ("step", "rounded_steps") if key in optimizer.state[p]]:
            kept = optimizer.state[p][key]
            optimizer.state[p][key] = kept.to(low)
            refused(model, optimizer, key)
            optimizer.state[p][key] = kept


@pytest.mark.parametrize(("name", "rounding"), KINDS)
def test_state_in_other_memory_of_the_same_kind_goes_on_bit_for_bit(name: str, rounding: str) -> None:
    """As an offload leaves it, or a load."""
    (model, optimizer), (same, undisturbed) = made(name, rounding, 3), made(name, rounding, 3)
    for state in optimizer.state.values():
        state.update({key: value.clone() for key, value in state.items()})
    step(model, optimizer)
    step(same, undisturbed)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), same.parameters(), strict=True))


# --- loaded by position

FOREIGN: dict[str, Callable[..., Any]] = {
    **{name: maker for name, maker in MAKERS.items() if " " not in name},
    "torch.AdamW": torch.optim.AdamW,
    "torch.Adam": torch.optim.Adam,
    "torch.SGD": lambda p, **kw: torch.optim.SGD(p, momentum=0.9, **kw),
    "torch.Adafactor": torch.optim.Adafactor,
    "torch.RMSprop": lambda p, **kw: torch.optim.RMSprop(p, momentum=0.9, **kw),
    "torch.NAdam": torch.optim.NAdam,
    "torch.Adamax": torch.optim.Adamax,
    "torch.Rprop": lambda p, lr, weight_decay: torch.optim.Rprop(p, lr),  # noqa: ARG005
    "torch.ASGD": torch.optim.ASGD,
}
SAME = {
    "AdamW": {"AdamW", "torch.AdamW", "torch.Adam"},
    "AdamL2": {"AdamL2", "torch.AdamW", "torch.Adam"},
    "Lion": {"Lion"},
    "SGDW": {"SGDW", "torch.SGD"},
    "Adafactor": {"Adafactor", "torch.Adafactor"},
    "Muon": {"Muon"},
}


@pytest.mark.parametrize("theirs", FOREIGN)
@pytest.mark.parametrize("ours", SAME)
def test_by_position_only_state_of_the_same_direction_is_taken(ours: str, theirs: str) -> None:
    def made(maker: Any) -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        groups = [{"params": [model.weight]}, {"params": [model.bias]}]  # as Muon divides them
        return model, maker(groups, lr=0.01, weight_decay=0.1)

    (from_, other), (model, optimizer) = made(FOREIGN[theirs]), made(MAKERS[ours])
    step(from_, other)
    step(model, optimizer)
    before, saved = everything(model, optimizer), copy.deepcopy(optimizer.state_dict())
    if theirs in SAME[ours]:
        optimizer.load_state_dict(copy.deepcopy(other.state_dict()))
        step(model, optimizer)
        return
    with pytest.raises(OptimizerError, match=r"another optimizer|other settings|coupled"):
        optimizer.load_state_dict(copy.deepcopy(other.state_dict()))
    assert alike(everything(model, optimizer), before)
    assert optimizer.state_dict()["param_groups"] == saved["param_groups"]


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "rounding"), KINDS)
def test_counts_that_a_file_holds_in_low_precision_count_on(name: str, rounding: str, low: torch.dtype) -> None:
    model, optimizer = made(name, rounding)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        for key in ("step", "rounded_steps"):
            if key in state:
                state[key] = torch.tensor(256.0 if low == torch.bfloat16 else 2048.0, dtype=low)
    other, fresh = made(name, rounding, 0)
    other.load_state_dict(model.state_dict())
    fresh.load_state_dict(saved)
    for _ in range(3):
        step(other, fresh)
    for state in fresh.state.values():
        for key in [key for key in ("step", "rounded_steps") if key in state]:
            assert int(state[key]) == (259 if low == torch.bfloat16 else 2051), key


DAMAGE: dict[str, Callable[[Any], Any]] = {
    "text": lambda _: "a lot",
    "a list": lambda _: [1.0],
    "NaN for a count, a shorter moment": lambda t: t * float("nan") if t.ndim == 0 else t.reshape(-1)[:-1],
    "complex": lambda t: t.to(torch.complex64) if t.ndim == 0 else t.reshape(1, *t.shape),
    "below 0": lambda t: -1 - t if t.ndim == 0 else t[..., :-1],
}


@pytest.mark.parametrize(("name", "rounding"), KINDS)
def test_damaged_state_is_refused_by_group_tensor_and_key_and_nothing_is_loaded(name: str, rounding: str) -> None:
    _, optimizer = made(name, rounding)
    keys = list(optimizer.state[optimizer.param_groups[0]["params"][0]])
    for key in keys:
        for damage in DAMAGE.values():
            saved = copy.deepcopy(optimizer.state_dict())
            saved["state"][0][key] = damage(saved["state"][0][key])
            model, fresh = made(name, rounding, 1)
            before, settings = everything(model, fresh), fresh.state_dict()["param_groups"]
            with pytest.raises(OptimizerError, match=rf"group 0: 'weight' .*{key}"):
                fresh.load_state_dict(saved)
            assert alike(everything(model, fresh), before)
            assert fresh.state_dict()["param_groups"] == settings


BAD_SETTINGS: dict[str, tuple[str, Any, str]] = {
    "a rule that is none": ("rule", "indepndent", "independent"),
    "a rounding that is none": ("rounding", "kahn", "kahan"),
    "an lr below 0": ("lr", -1.0, "Invalid learning rate"),
    "an lr of text": ("lr", "0.1", "Invalid learning rate"),
    "NaN for λ": ("weight_decay", float("nan"), "Invalid weight_decay"),
    "a decay over 1": ("weight_decay", 1e9, "decay per step"),
    "no lr": ("lr", None, "Invalid learning rate"),
}


@pytest.mark.parametrize("bad", BAD_SETTINGS)
@pytest.mark.parametrize("name", MAKERS)
def test_settings_that_no_optimizer_can_have_are_refused_and_nothing_is_loaded(name: str, bad: str) -> None:
    key, value, said = BAD_SETTINGS[bad]
    if name == "AdamL2" and said == "decay per step":
        return  # whose λ is a penalty's, and has no bound
    _, optimizer = made(name)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][-1][key] = value
    model, fresh = made(name, steps=1)
    before, settings = everything(model, fresh), fresh.state_dict()["param_groups"]
    with pytest.raises(OptimizerError, match=re.escape(said)):
        fresh.load_state_dict(saved)
    assert alike(everything(model, fresh), before)
    assert fresh.state_dict()["param_groups"] == settings
    step(model, fresh)


NO_STATE_DICTS: list[Any] = [
    {}, {"state": {}}, {"param_groups": []}, {"model": {}, "epoch": 3}, {"state": {}, "param_groups": [3]},
    {"state": {0: 3}, "param_groups": [{"params": [0]}]}, {"state": {}, "param_groups": [{"lr": 1.0}]},
]  # fmt: skip


@pytest.mark.parametrize("given", NO_STATE_DICTS, ids=str)
@pytest.mark.parametrize("name", ["AdamW", "Lion", "Muon"])
def test_what_is_no_state_dict_is_said_to_be_none(name: str, given: Any) -> None:
    _, optimizer = made(name)
    with pytest.raises(OptimizerError, match="no optimizer's state_dict"):
        optimizer.load_state_dict(given)


@pytest.mark.parametrize("name", ["AdamW fused", "Lion", "SGDW", "Muon"])
def test_numbers_that_others_keep_beside_all_state_are_theirs(name: str) -> None:
    model, optimizer = made(name)
    optimizer.state["scale"] = 65536.0
    step(model, optimizer)
    step(model, optimizer)
    other, fresh = made(name, steps=0)
    other.load_state_dict(model.state_dict())
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert fresh.state["scale"] == 65536.0
    step(model, optimizer)
    step(other, fresh)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


# --- names


class Four(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)


def of(model: nn.Module, name: str, prefix: str = "", *, backwards: bool = False) -> Any:
    named = [(prefix + name, p) for name, p in model.named_parameters()]
    return MAKERS[name](named[::-1] if backwards else named, lr=0.01, weight_decay=0.1)


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod."])
@pytest.mark.parametrize("name", MAKERS)
def test_names_of_a_file_never_take_the_place_of_the_optimizers(name: str, prefix: str) -> None:
    model, other = Four(), Four()
    optimizer, fresh = of(model, name, prefix), of(other, name)
    step(model, optimizer)
    names = [group["param_names"] for group in fresh.param_groups]
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch's loading shares tensors
    assert [group["param_names"] for group in fresh.param_groups] == names
    other.load_state_dict(model.state_dict())
    step(model, optimizer)
    step(other, fresh)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", MAKERS)
def test_state_in_another_order_is_refused_by_name_and_not_given_to_others(name: str) -> None:
    model, other = Four(), Four()
    optimizer, fresh = of(model, name), of(other, name, backwards=True)
    step(model, optimizer)
    with pytest.raises(OptimizerError, match=r"stands where '\w+\.(weight|bias)' was saved"):
        fresh.load_state_dict(optimizer.state_dict())
    assert not fresh.state
    renamed = of(other, name, "encoder.")  # of other names nothing can be said
    renamed.load_state_dict(optimizer.state_dict())
    assert renamed.param_groups[0]["param_names"][0].startswith("encoder.")


# --- a peak


@pytest.mark.parametrize("way", ["none", "pickled", "loaded"])
@pytest.mark.parametrize("name", ["AdamW", "Lion", "SGDW", "Adafactor", "Muon"])
def test_the_peak_of_a_group_that_is_added_is_not_the_annealed_lr_of_a_tensor(name: str, way: str) -> None:
    model, lr = Four(), torch.tensor(0.04)
    optimizer = MAKERS[name](model.first.named_parameters(), lr=lr, weight_decay=0.1, rule="independent")
    step(model.first, optimizer)
    lr.fill_(0.001)
    if way == "pickled":
        optimizer = copy.deepcopy(optimizer)
    if way == "loaded":
        saved = optimizer.state_dict()
        optimizer = MAKERS[name](model.first.named_parameters(), lr=0.04, weight_decay=0.1, rule="independent")
        optimizer.load_state_dict(saved)
    optimizer.add_param_group({"params": [model.second.weight], "param_names": ["new"]})
    assert optimizer.param_groups[-1]["peak_lr"] == pytest.approx(0.04)
