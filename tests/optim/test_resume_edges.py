"""Loading by name at its edges: wrappers' names, shared tensors, strides, stacks, settings that were switched off."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightdecay
from tests.covering import covering
from weightdecay import load_state_by_name, settings_by_name, state_by_name
from weightdecay.errors import OptimizerError
from weightdecay.optim.state import from_positional

pytestmark = pytest.mark.filterwarnings("ignore::weightdecay.PrecisionWarning")

OURS: dict[str, Callable[..., Any]] = {
    "AdamW": weightdecay.AdamW,
    "AdamW amsgrad": lambda p, **kw: weightdecay.AdamW(p, amsgrad=True, **kw),
    "AdamL2": weightdecay.AdamL2,
    "Lion": weightdecay.Lion,
    "SGDW": lambda p, **kw: weightdecay.SGDW(p, momentum=0.9, **kw),
    "Adafactor": weightdecay.Adafactor,
    "Adafactor unfactored": lambda p, **kw: weightdecay.Adafactor(p, factored=False, beta1=0.9, **kw),
    "Muon": lambda p, **kw: weightdecay.Muon(p, neuron_beta2=0.9, **kw),
}


def step(model: nn.Module, *optimizers: Any, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
    for optimizer in optimizers:
        optimizer.step()


def same(model: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


# --- names


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_fsdp_wrapped_module.", ""])
def test_names_that_only_a_wrapper_made_are_those_of_the_model(prefix: str) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    theirs = torch.optim.AdamW([(prefix + name, p) for name, p in model.named_parameters()], lr=0.01)
    step(model, theirs)
    tensors, settings = from_positional(copy.deepcopy(theirs.state_dict()), model)
    assert {name.rpartition("/")[0] for name in tensors} == {name for name, _ in model.named_parameters()}
    fresh = weightdecay.AdamW(model.named_parameters(), lr=0.01)
    load_state_by_name(fresh, tensors, settings, names=model, on_change="override")
    for p in model.parameters():
        assert torch.equal(fresh.state[p]["exp_avg_sq"], theirs.state[p]["exp_avg_sq"])


@pytest.mark.parametrize("on_change", [None, "keep", "override"])
@pytest.mark.parametrize("with_settings", [True, False])
def test_state_of_which_no_name_is_here_is_refused_whatever_is_chosen(with_settings: bool, on_change: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    optimizer = weightdecay.AdamW([(f"encoder.{name}", p) for name, p in model.named_parameters()], lr=0.01)
    step(model, optimizer)
    tensors, settings = state_by_name(optimizer), settings_by_name(optimizer) if with_settings else None
    fresh = weightdecay.AdamW(model.named_parameters(), lr=0.01)
    with pytest.raises(OptimizerError, match=r"encoder\.0\.bias.* is one of those here .*rename"):
        load_state_by_name(fresh, tensors, settings, on_change=on_change)
    load_state_by_name(fresh, tensors, settings, rename={"encoder.*": "*"})
    assert len(fresh.state) == 2


# --- one tensor for several groups


def test_one_lr_tensor_cannot_be_kept_at_two_values() -> None:
    model = nn.Linear(4, 3)
    groups = [{"params": [("w", model.weight)], "lr": 0.01}, {"params": [("b", model.bias)], "lr": 0.1}]
    old = torch.optim.AdamW(groups)
    step(model, old)
    lr = torch.tensor(0.01)
    for made in (torch.optim.AdamW, weightdecay.AdamW):
        named: Any = [{"params": [("w", model.weight)]}, {"params": [("b", model.bias)]}]
        new: Any = made(named, lr=lr, foreach=False)
        with pytest.raises(OptimizerError, match="one tensor for lr and should get different values"):
            load_state_by_name(new, state_by_name(old), {**settings_by_name(old), "optimizer": ""}, on_change="keep")
        assert not new.state
        assert lr == torch.tensor(0.01)


# --- where numbers lie


def transposed() -> nn.Module:
    model = nn.Sequential(nn.Linear(67, 35, bias=False), nn.Linear(35, 5))
    for p in model.parameters():
        p.data = p.detach().t().contiguous().t() if p.ndim == 2 else p.detach()
    return model


def channels_last() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 2, 3))
    for p in model.parameters():
        p.data = p.detach().contiguous(memory_format=torch.channels_last) if p.ndim == 4 else p.detach()
    return model


@pytest.mark.parametrize("layout", [transposed, channels_last], ids=lambda one: one.__name__)
@pytest.mark.parametrize(
    ("name", "rounding", "rule"),
    [
        *covering(list(OURS), ["nearest", "stochastic", "kahan", "master"], ["decoupled", "towards_initial"]),
        pytest.param("Adafactor", "master", "decoupled"),  # whose norms tell
    ],
)
def test_weights_in_any_strides_go_on_by_name_bit_for_bit(
    name: str, rounding: str, rule: str, layout: Callable[[], nn.Module]
) -> None:
    """Norms over a master sum in the order in which it lies."""
    if name == "AdamL2":
        rule = "l2"
    dtype = torch.float32 if rounding == "nearest" else torch.bfloat16

    def made(model: nn.Module) -> Any:
        return OURS[name](model.named_parameters(), lr=0.05, weight_decay=0.1, rule=rule, rounding=rounding)

    torch.manual_seed(0)
    model = layout().to(dtype)
    other = copy.deepcopy(model)
    optimizer = made(model)
    for seed in range(3):
        step(model, optimizer, seed=seed)
    with torch.no_grad():
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            q.copy_(p)
    resumed = made(other)
    saved = {key: value.clone() for key, value in state_by_name(optimizer).items()}
    load_state_by_name(resumed, saved, settings_by_name(optimizer))
    for seed in range(3, 6):
        step(model, optimizer, seed=seed)
        step(other, resumed, seed=seed)
        assert same(model, other)
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            assert all(torch.equal(kept, resumed.state[q][key]) for key, kept in optimizer.state[p].items())


@pytest.mark.parametrize("rounding", ["stochastic", "kahan", "master"])
@pytest.mark.parametrize("name", ["AdamW", "Lion", "SGDW"])
def test_small_tensors_with_starts_of_unlike_dtypes_keep_their_own(name: str, rounding: str) -> None:
    """One weight was float32 when its run began, another bfloat16; together in a piece they took the first's dtype."""

    def run(starts: list[torch.dtype], together: bool) -> list[Tensor]:
        params = [nn.Parameter(torch.linspace(1, 2, 16).bfloat16()) for _ in starts]
        places = list(enumerate(params))
        groups = [places] if together else [[one] for one in places]
        settings = {"lr": 0.05, "weight_decay": 2.0, "rule": "towards_initial", "rounding": rounding}
        optimizers = [OURS[name]([(f"{place}", p) for place, p in group], **settings) for group in groups]
        for p in params:
            p.grad = torch.zeros_like(p)
        for optimizer, group in zip(optimizers, groups, strict=True):
            optimizer.step()
            for place, p in group:
                dtype = starts[place]
                start = torch.linspace(1, 2, 16, dtype=torch.float64).to(dtype)
                optimizer.state[p]["initial"] = start - 0.001
                if "noise_stream" in optimizer.state[p]:
                    optimizer.state[p]["noise_stream"].zero_()
            for _ in range(5):
                optimizer.step()
        return [p.detach() for p in params]

    starts = [torch.bfloat16, torch.float32, torch.bfloat16]
    for alone, joined in zip(run(starts, together=False), run(starts, together=True), strict=True):
        assert torch.equal(alone, joined)


# --- settings that were switched off while the run went on

SWITCHED: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
    (weightdecay.AdamW, {"amsgrad": True}, {"amsgrad": False}),
    (weightdecay.AdamW, {"rule": "towards_initial"}, {"rule": "decoupled"}),
    (weightdecay.SGDW, {"momentum": 0.9}, {"momentum": 0.0}),
    (weightdecay.Adafactor, {"beta1": 0.9}, {"beta1": None}),
    (weightdecay.Muon, {"neuron_beta2": 0.9}, {"neuron_beta2": 0.0}),
    *((weightdecay.AdamW, {"rounding": rounding}, {"rounding": "stochastic"}) for rounding in ("kahan", "master")),
    (weightdecay.Lion, {"rounding": "stochastic"}, {"rounding": "kahan"}),
    (torch.optim.AdamW, {"amsgrad": True}, {"amsgrad": False}),
    (torch.optim.Adam, {"amsgrad": True}, {"amsgrad": False}),
    (torch.optim.SGD, {"momentum": 0.9}, {"momentum": 0.0}),
    (torch.optim.RMSprop, {"centered": True}, {"centered": False}),
    (torch.optim.RMSprop, {"momentum": 0.9}, {"momentum": 0.0}),
]


@pytest.mark.parametrize("way", ["keep", "override", None, "by position"])
@pytest.mark.parametrize(("cls", "on", "off"), SWITCHED)
def test_what_a_setting_left_that_was_switched_off_is_in_nobodys_way(
    cls: Any, on: dict[str, Any], off: dict[str, Any], way: str | None
) -> None:
    dtype = torch.bfloat16 if "rounding" in on else torch.float32
    model = nn.Linear(4, 3).to(dtype)
    other = copy.deepcopy(model)
    old = cls(model.named_parameters(), lr=0.01, weight_decay=0.1, **on)
    step(model, old)
    for group in old.param_groups:
        group.update({key: value for key, value in off.items() if key in group})
    step(model, old, seed=1)
    other.load_state_dict(model.state_dict())
    new = cls(other.named_parameters(), lr=0.01, weight_decay=0.1, **off)
    if way == "by position":
        new.load_state_dict(copy.deepcopy(old.state_dict()))
    else:
        saved = {key: value.clone() for key, value in state_by_name(old).items()}
        load_state_by_name(new, saved, settings_by_name(old), on_change=way)  # type: ignore[arg-type]
    for seed in (2, 3):
        step(model, old, seed=seed)
        step(other, new, seed=seed)
    assert same(model, other)


# --- stacks


@pytest.mark.parametrize("stacked", [1, 2, 3, 7, 12, 13, 16, 17, 24, 64])
@pytest.mark.parametrize("tall", [True, False])
def test_a_stack_of_any_number_of_matrices_goes_on_by_name(stacked: int, tall: bool) -> None:
    shape = (stacked * 5, 3) if tall else (stacked * 3, 5)
    model, other = (nn.Module() for _ in range(2))
    model.w = nn.Parameter(torch.randn(shape))
    other.w = nn.Parameter(model.w.detach().clone())

    def made(p: nn.Parameter) -> Any:
        groups = [{"params": [("w", p)], "algorithm": "muon", "stacked": stacked}]
        return weightdecay.Muon(groups, lr=0.01, neuron_beta2=0.9)

    optimizer, resumed = made(model.w), made(other.w)
    step(model, optimizer)
    other.w.data.copy_(model.w.data)
    load_state_by_name(resumed, state_by_name(optimizer), settings_by_name(optimizer))
    step(model, optimizer, seed=1)
    step(other, resumed, seed=1)
    assert same(model, other)
    assert (
        resumed.state[other.w]["second_momentum_buffer"].shape
        == optimizer.state[model.w]["second_momentum_buffer"].shape
    )


# --- what a hand or another program wrote


def saved(**more: Any) -> tuple[nn.Linear, dict[str, Tensor], dict[str, Any]]:
    model = nn.Linear(4, 3)
    optimizer = weightdecay.AdamW(model.named_parameters(), lr=0.01, **more)
    step(model, optimizer)
    return model, state_by_name(optimizer), settings_by_name(optimizer)


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a misspelt setting": (lambda s: s["groups"][0].update(weight_decy=0.3), "weight_decy"),
    "a name twice": (lambda s: s["groups"].append({**s["groups"][0]}), "'weight' 2 times"),
    "an lr below 0": (lambda s: s["groups"][0].update(lr=-1.0), "lr"),
    "λ that is no number": (lambda s: s["groups"][0].update(weight_decay={"float": "nan"}), "weight_decay"),
    "a list for a number": (lambda s: s["groups"][0].update(lr=[[1]]), "lr"),
    "a rule that is none": (lambda s: s["groups"][0].update(rule="indepndent"), "independent"),
    "a rounding that is none": (lambda s: s["groups"][0].update(rounding="kahn"), "kahan"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("cls", [weightdecay.AdamW, torch.optim.AdamW])
def test_settings_that_a_hand_has_spoilt_are_refused_with_the_setting(cls: Any, bad: str) -> None:
    spoil, said = BAD[bad]
    model, tensors, settings = saved()
    settings = copy.deepcopy(settings)
    spoil(settings)
    if cls is torch.optim.AdamW:
        settings = {**settings, "optimizer": "AdamW"}
        if "misspelt" in bad or "rule" in bad or "rounding" in bad:
            return  # which torch's has not, and does not read
    fresh = cls(model.named_parameters(), lr=0.01)
    before = copy.deepcopy(fresh.state_dict()["param_groups"])
    with pytest.raises(OptimizerError, match=said):
        load_state_by_name(fresh, tensors, settings, on_change="keep")
    assert not fresh.state
    assert fresh.state_dict()["param_groups"] == before


@pytest.mark.parametrize("stacked", [[[1]], "3", 0, -1, 2.5, None])
@pytest.mark.parametrize("on_change", ["keep", "override", None])
def test_a_stack_that_is_none_is_said_to_be_none(stacked: Any, on_change: Any) -> None:
    p = nn.Parameter(torch.randn(6, 4))
    old, new = (weightdecay.Muon([("w", p)], lr=0.01) for _ in range(2))
    p.grad = torch.ones_like(p)
    old.step()
    settings = copy.deepcopy(settings_by_name(old))
    settings["groups"][0]["stacked"] = stacked
    if on_change == "override":
        load_state_by_name(new, state_by_name(old), settings, on_change=on_change)
        assert new.param_groups[0]["stacked"] == 1
        return
    with pytest.raises(OptimizerError, match="stacked"):
        load_state_by_name(new, state_by_name(old), settings, on_change=on_change)
    assert not new.state


def test_a_misspelt_setting_to_ignore_is_told_with_the_nearest() -> None:
    model, tensors, settings = saved()
    with pytest.raises(OptimizerError, match=r"ignore has 'weigth_decay', .* 'weight_decay'"):
        load_state_by_name(weightdecay.AdamW(model.named_parameters()), tensors, settings, ignore=["weigth_decay"])


ODD: dict[str, Callable[[Tensor], Tensor]] = {
    "on meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "quantised": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "complex": lambda t: t.to(torch.complex64),
    "boolean": lambda t: t.bool(),
}


@pytest.mark.filterwarnings("ignore:.*quantiz.*")
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "step"])
@pytest.mark.parametrize("on_change", [None, "keep", "override"])
def test_tensors_of_odd_kinds_are_refused_by_name_and_never_a_raw_error(key: str, odd: str, on_change: Any) -> None:
    model, tensors, settings = saved()
    tensors = {**tensors, f"weight/{key}": ODD[odd](tensors[f"weight/{key}"])}
    fresh = weightdecay.AdamW(model.named_parameters(), lr=0.01)
    if odd == "float8" and key == "exp_avg_sq":
        return  # in which small squares are 0, which is told as damage
    if odd == "float8" and (on_change == "override" or key == "step"):
        load_state_by_name(fresh, tensors, settings, on_change=on_change)  # a dtype that was chosen, or loses nothing
        assert fresh.state[model.weight][key].dtype == torch.float32
        return
    with pytest.raises(OptimizerError, match=rf"weight/{key}|{key}: "):
        load_state_by_name(fresh, tensors, settings, on_change=on_change)
    assert not fresh.state
