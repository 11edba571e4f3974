"""What a loaded state may change: not the dtype of what was saved, and not what a group was constructed with."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

import weightdecay
from weightdecay.errors import OptimizerError
from weightdecay.optim.base import DecayingOptimizer
from weightdecay.rules import FIXED, Rule

KEEPING = ["stochastic", "kahan", "master"]
MAKERS: dict[str, Callable[..., Any]] = {
    "AdamW": weightdecay.AdamW,
    "AdamL2": weightdecay.AdamL2,
    "Lion": weightdecay.Lion,
    "SGDW": lambda p, **kw: weightdecay.SGDW(p, momentum=0.9, **kw),
    "Adafactor": weightdecay.Adafactor,
    "Muon": weightdecay.Muon,
}


class Net(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 5, dtype=dtype)
        self.second = nn.Linear(5, 4, dtype=dtype)


def steps(net: nn.Module, optimizer: Any, count: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for p in net.parameters():
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


def by_state_dict(optimizer: Any, fresh: Any, net: nn.Module, other: nn.Module) -> Any:  # noqa: ARG001
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch's own loading shares tensors
    return fresh


def by_file(optimizer: Any, fresh: Any, net: nn.Module, other: nn.Module) -> Any:  # noqa: ARG001
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    return fresh


def by_pickle(optimizer: Any, fresh: Any, net: nn.Module, other: nn.Module) -> Any:  # noqa: ARG001
    return moved_to(pickle.loads(pickle.dumps(optimizer)), other)


def by_deepcopy(optimizer: Any, fresh: Any, net: nn.Module, other: nn.Module) -> Any:  # noqa: ARG001
    return moved_to(copy.deepcopy(optimizer), other)


def moved_to(optimizer: Any, net: nn.Module) -> Any:
    """A copied optimizer has copied its tensors, too: give it the other model's in their places."""
    ours = dict(net.named_parameters())
    for group in optimizer.param_groups:
        for place, name in enumerate(group["param_names"]):
            old = group["params"][place]
            group["params"][place] = ours[name]
            optimizer.state[ours[name]] = optimizer.state.pop(old)
    return optimizer


def by_distributed_checkpoint(optimizer: Any, fresh: Any, net: nn.Module, other: nn.Module) -> Any:
    set_optimizer_state_dict(other, fresh, copy.deepcopy(get_optimizer_state_dict(net, optimizer)))
    return fresh


def by_name(optimizer: Any, fresh: Any, net: nn.Module, other: nn.Module) -> Any:
    tensors = {name: tensor.clone() for name, tensor in weightdecay.state_by_name(optimizer, net).items()}
    weightdecay.load_state_by_name(fresh, tensors, weightdecay.settings_by_name(optimizer, net), names=other)
    return fresh


WAYS = [by_state_dict, by_file, by_pickle, by_deepcopy, by_distributed_checkpoint, by_name]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("rounding", KEEPING)
@pytest.mark.parametrize("name", MAKERS)
def test_every_state_comes_back_in_its_dtype_and_goes_on_bit_for_bit(name: str, rounding: str, way: Any) -> None:
    """With counters over 256, where bfloat16 stops counting: a rounded one would repeat its noise for ever."""

    def made(net: nn.Module) -> Any:
        return MAKERS[name](net.named_parameters(), lr=1e-3, weight_decay=0.3, rounding=rounding)

    net = Net()
    optimizer = made(net)
    steps(net, optimizer, 2)
    for state in optimizer.state.values():
        for key in ("step", "rounded_steps"):
            if key in state:
                state[key] += 999
    other = Net()
    other.load_state_dict(net.state_dict())
    resumed = way(optimizer, made(other), net, other)

    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        saved, loaded = optimizer.state[p], resumed.state[q]
        assert {k: (v.dtype, v.tolist()) for k, v in saved.items()} == {
            k: (v.dtype, v.tolist()) for k, v in loaded.items()
        }
    for each, of in ((net, optimizer), (other, resumed)):
        steps(each, of, 3, seed=1)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", MAKERS)
def test_noise_goes_with_its_tensor_through_another_order_other_groups_and_new_names(name: str) -> None:
    class Renamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.third = Net().children()

    net, other = Net(), Renamed()

    def made(groups: list[Any]) -> Any:
        first, *later = [{"params": group, "weight_decay": 0.3} for group in groups]
        optimizer = MAKERS[name]([first], lr=1e-3, rounding="stochastic")
        for group in later:
            optimizer.add_param_group(group)
        return optimizer

    optimizer = made([list(net.named_parameters())])
    steps(net, optimizer, 3)
    other.load_state_dict({key.replace("second", "third"): value for key, value in net.state_dict().items()})
    resumed = made([[pair] for pair in reversed(list(other.named_parameters()))])
    weightdecay.load_state_by_name(
        resumed, weightdecay.state_by_name(optimizer), weightdecay.settings_by_name(optimizer),
        rename={"second.*": "third.*"},
    )  # fmt: skip
    for each, of in ((net, optimizer), (other, resumed)):
        steps(each, of, 3, seed=1)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_state_of_before_tensors_had_a_noise_of_their_own_begins_one() -> None:
    net = Net()
    optimizer, resumed = (weightdecay.AdamW(net.named_parameters(), rounding="stochastic") for _ in range(2))
    steps(net, optimizer, 3)
    tensors = {key: value for key, value in weightdecay.state_by_name(optimizer).items() if "noise" not in key}
    weightdecay.load_state_by_name(resumed, tensors, weightdecay.settings_by_name(optimizer))
    steps(net, resumed, 1)
    assert all(int(state["rounded_steps"]) == 4 and "noise_stream" in state for state in resumed.state.values())


def test_torchs_checkpointing_of_a_fresh_optimizer_leaves_each_tensor_a_noise_of_its_own() -> None:
    net = Net()
    optimizer = weightdecay.AdamW(net.parameters(), rounding="stochastic")
    get_optimizer_state_dict(net, optimizer)
    assert len({int(state["noise_stream"]) for state in optimizer.state.values()}) == 4


def test_a_resumed_run_in_bfloat16_decays_as_one_that_was_not_stopped() -> None:
    """1,200 steps at a = 3e-4 leave 0.6976; a counter in bfloat16 stopped at 256 and left 0.894."""

    def norm_ratio(resume: bool) -> float:
        torch.manual_seed(0)
        w = nn.Parameter(torch.rand(64, 64).add(0.5).bfloat16())

        def made() -> Any:
            return weightdecay.AdamW([("w", w)], lr=1e-3, weight_decay=0.3, rounding="stochastic")

        optimizer, start = made(), w.detach().double().norm()
        for step in range(1_200):
            if step == 300 and resume:
                saved = optimizer.state_dict()
                optimizer = made()
                optimizer.load_state_dict(saved)
            w.grad = torch.zeros_like(w)
            optimizer.step()
        return float(w.detach().double().norm() / start)

    assert norm_ratio(resume=True) == norm_ratio(resume=False) == pytest.approx(0.6976, abs=0.003)


# --- what a foreign state does not know


def torchs(name: str, params: Any, **settings: Any) -> Any:
    cls = {"AdamW": "AdamW", "AdamL2": "Adam", "SGDW": "SGD", "Adafactor": "Adafactor", "Muon": "Muon"}[name]
    extra = {"momentum": 0.9} if name == "SGDW" else {}
    return getattr(torch.optim, cls)(params, **extra, **settings)


OWN = Rule("mine", lr_power=2, peak_power=1, mask="agreeing")


@pytest.mark.parametrize("way", [by_state_dict, by_file, by_distributed_checkpoint], ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", ["AdamW", "SGDW", "Adafactor", "Muon"])
@pytest.mark.parametrize(
    "given",
    [
        {"rule": "corrected", "peak_lr": 6e-4},
        {"rule": "corrected"},
        {"rule": "fixed", "rounding": "kahan", "weight_decay": 1e-4},
        {"rule": "independent", "rounding": "master", "peak_lr": 1e-3},
        {"rule": OWN, "rounding": "stochastic"},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::weightdecay.optim.precision.PrecisionWarning")
def test_what_a_group_was_constructed_with_holds_over_a_state_of_torchs(name: str, given: Any, way: Any) -> None:
    """Its peak too: the lr that was saved in the middle of an anneal is none."""
    names = ["first.weight", "second.weight"] if name == "Muon" else [n for n, _ in Net().named_parameters()]
    net, other = Net(), Net()
    theirs = torchs(name, [(n, net.get_parameter(n)) for n in names], lr=6e-4, weight_decay=0.1)
    for n in names:
        net.get_parameter(n).grad = torch.ones_like(net.get_parameter(n))
    theirs.step()
    theirs.param_groups[0]["lr"] = 1e-4
    settings = {"lr": 6e-4, "weight_decay": 0.1, **given}
    cls = getattr(weightdecay, name)
    extra = {"momentum": 0.9} if name == "SGDW" else {}
    ours = cls([(n, other.get_parameter(n)) for n in names], **extra, **settings)
    constructed = [dict(group) for group in ours.param_groups]
    way(theirs, ours, net, other)
    for before, after in zip(constructed, ours.param_groups, strict=True):
        for key in ("rule", "rounding", "peak_lr"):
            assert after.get(key) == before.get(key)
        assert after["lr"] == 1e-4


@pytest.mark.parametrize("name", ["AdamW", "SGDW", "Adafactor", "Muon"])
@pytest.mark.parametrize("rounding", KEEPING)
def test_state_that_torch_kept_in_bfloat16_goes_on_in_float32_under_a_rounding(name: str, rounding: str) -> None:
    p = nn.Parameter(torch.ones(4, 3, dtype=torch.bfloat16))
    p.grad = torch.full_like(p, 0.01)
    momentum: dict[str, Any] = {"momentum": 0.9} if name == "SGDW" else {}
    torchs: Any = {"SGDW": torch.optim.SGD}.get(name) or getattr(torch.optim, name)
    theirs = torchs([p], lr=1e-3, weight_decay=0.1, **momentum)
    theirs.step()

    ours = getattr(weightdecay, name)([p], lr=1e-3, weight_decay=0.1, rounding=rounding, **momentum)
    ours.load_state_dict(theirs.state_dict())
    ours.step()
    moments = {key: value.dtype for key, value in ours.state[p].items() if value.ndim and key != "compensation"}
    assert set(moments.values()) == {torch.float32}, moments


@pytest.mark.filterwarnings("ignore::weightdecay.optim.precision.PrecisionWarning")
@pytest.mark.parametrize("name", ["AdamW", "AdamL2", "SGDW", "Adafactor", "Muon"])
def test_wider_state_goes_on_with_low_precision_weights_as_torch_takes_it(name: str) -> None:
    wide, low = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(4, 3, dtype=torch.bfloat16))
    theirs = torchs(name, [wide], lr=1e-3)
    wide.grad = torch.full_like(wide, 0.01)
    theirs.step()
    ours = MAKERS[name]([low], lr=1e-3)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    low.grad = torch.full_like(low, 0.01)
    ours.step()
    assert {value.dtype for value in ours.state[low].values() if value.ndim} == {torch.bfloat16}


def test_groups_with_rules_by_pattern_keep_them_over_a_state_of_torchs() -> None:
    net = Net(torch.float32)
    groups = [{"params": net.first.parameters()}, {"params": net.second.parameters()}]
    theirs = torch.optim.AdamW(groups, lr=1e-3)
    steps(net, theirs, 1)
    theirs.param_groups[1]["lr"] = 1e-5
    ours = weightdecay.AdamW(
        net.named_parameters(), lr=1e-3, rule={"first.*": "fixed", "*": "corrected"}, weight_decay=0
    )
    ours.load_state_dict(theirs.state_dict())
    assert [group["rule"] for group in ours.param_groups] == ["fixed", "corrected"]
    assert ours.param_groups[1]["peak_lr"] == 1e-3
    assert ours.param_groups[1]["lr"] == 1e-5


def test_a_rule_of_ones_own_is_saved_by_its_fields_and_comes_back_as_itself() -> None:
    net = Net(torch.float32)
    saved = weightdecay.AdamW(net.named_parameters(), lr=1e-3, rule=OWN).state_dict()
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    for rule in (OWN, FIXED):
        fresh = weightdecay.AdamW(net.named_parameters(), lr=1e-3, rule=rule, weight_decay=1e-4)
        buffer.seek(0)
        fresh.load_state_dict(torch.load(buffer, weights_only=True))
        assert fresh.param_groups[0]["rule"] == OWN


# --- saving steps nothing


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("rule", ["decoupled", "fixed", "towards_one", "towards_initial", "cautious"])
@pytest.mark.parametrize("rounding", ["nearest", *KEEPING])
@pytest.mark.filterwarnings("ignore::weightdecay.optim.precision.PrecisionWarning")
def test_torchs_checkpointing_moves_neither_weights_nor_counters_of_a_fresh_optimizer(
    name: str, rule: str, rounding: str
) -> None:
    net = Net()
    before = copy.deepcopy(net.state_dict())
    settings = {} if name == "AdamL2" else {"rule": rule}
    optimizer = MAKERS[name](net.named_parameters(), lr=0.1, weight_decay=0.1, rounding=rounding, **settings)
    get_optimizer_state_dict(net, optimizer)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    for state in optimizer.state.values():
        assert all(float(state[key]) == 0.0 for key in ("step", "rounded_steps") if key in state)


def test_a_step_of_training_at_lr_zero_is_no_saving() -> None:
    """`fixed` decays in the warm-up, too: with a gradient, with `closure=None`, or in a fresh optimizer."""

    def left(gradient: float, **given: Any) -> float:
        p = nn.Parameter(torch.ones(3))
        p.grad = torch.full((3,), gradient)
        weightdecay.SGDW([p], lr=0.0, weight_decay=0.1, rule="fixed").step(**given)
        return float(p.detach()[0])

    assert left(0.0) == left(1.0) == left(1.0, closure=None) == pytest.approx(0.9)
    assert left(0.0, closure=None) == 1.0


def test_every_optimizer_of_ours_is_here() -> None:
    def leaves(cls: type) -> set[str]:
        subclasses: list[type] = cls.__subclasses__()
        below = {name for sub in subclasses for name in leaves(sub)}
        return below | ({cls.__name__} if cls.__module__.startswith("weightdecay.optim") else set())

    public = {name for name in leaves(DecayingOptimizer) if hasattr(weightdecay, name)}
    assert public == set(MAKERS)


OTHERS: list[tuple[Any, Any, dict[str, Any], str]] = [
    (weightdecay.AdamW, torch.optim.SGD, {"momentum": 0.9}, "momentum_buffer and lacks exp_avg, exp_avg_sq, step"),
    (weightdecay.AdamW, torch.optim.Adafactor, {}, "and lacks exp_avg, exp_avg_sq"),
    (weightdecay.AdamL2, torch.optim.RMSprop, {}, "lacks exp_avg, exp_avg_sq"),
    (weightdecay.AdamW, weightdecay.Lion, {}, "lacks exp_avg_sq, step"),
    (weightdecay.Adafactor, torch.optim.AdamW, {}, "lacks col_var, row_var"),
    (weightdecay.Adafactor, weightdecay.Adafactor, {"factored": False, "beta1": None}, ""),
    (weightdecay.Muon, torch.optim.SGD, {"momentum": 0.9}, "lacks exp_avg, exp_avg_sq"),
    (weightdecay.AdamW, torch.optim.Adam, {"amsgrad": True}, ""),
]


@pytest.mark.parametrize(("cls", "other", "settings", "reason"), OTHERS)
def test_a_state_with_which_no_step_can_go_on_is_refused_by_name_and_nothing_is_loaded(
    cls: Any, other: Any, settings: dict[str, Any], reason: str
) -> None:
    def made(cls: Any, **settings: Any) -> Any:
        params = [("w", nn.Parameter(torch.ones(3, 3))), ("b", nn.Parameter(torch.ones(3)))]
        optimizer = cls([{"params": [named]} for named in params], lr=0.01, **settings)  # Muon's would be two anyway
        for _, p in params:
            p.grad = torch.ones_like(p)
        return optimizer

    theirs, ours = made(other, **settings), made(cls)
    theirs.step()
    before = copy.deepcopy(ours.state_dict())
    if not reason:
        ours.load_state_dict(theirs.state_dict())
        ours.step()
        return
    with pytest.raises(OptimizerError, match=rf"the state of '[wb]' has .*{reason}"):
        ours.load_state_dict(theirs.state_dict())
    assert ours.state_dict() == before
    ours.step()
