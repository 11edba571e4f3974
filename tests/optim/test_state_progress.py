"""How far an optimizer has come, where it keeps that in its groups: restored with its type, and no matter of choice."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.optim.test_state import model, train
from weightdecay.errors import OptimizerError
from weightdecay.optim.adamw import AdamW
from weightdecay.optim.state import changes, load_state_by_name, settings_by_name, state_by_name
from weightdecay.rules import Rule

ON_CHANGE = (None, "keep", "override")


class Foreign(torch.optim.Optimizer):
    """Momentum, scaled by what its groups remember; a subclass says what that is."""

    def __init__(self, params: Any, lr: float = 0.01, weight_decay: float = 0.1, **extra: Any) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, **extra})

    def scale(self, group: dict[str, Any]) -> float:
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        del closure
        for group in self.param_groups:
            scale = self.scale(group)
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("m", torch.zeros_like(p))
                momentum.mul_(0.9).add_(p.grad)
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(momentum, alpha=group["lr"] * scale)


class IntFromTheStart(Foreign):
    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, step=0, **settings)

    def scale(self, group: dict[str, Any]) -> float:
        group["step"] += 1
        assert type(group["step"]) is int
        return 1 / float(group["step"])


class IntOfTheFirstStep(Foreign):
    def scale(self, group: dict[str, Any]) -> float:
        group["step"] = group.get("step", 0) + 1
        return 1 / float(group["step"])


class TensorOfTheFirstStep(Foreign):
    """As optimi: `setup` says whether the groups have been prepared, and the count is a tensor."""

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, setup=False, **settings)

    def scale(self, group: dict[str, Any]) -> float:
        if not group["setup"]:
            group["setup"], group["step"] = True, torch.tensor(0, dtype=torch.int32)
        group["step"].add_(1)
        return 1 / float(group["step"])


class FloatThatBecomesATensor(Foreign):
    """As pytorch_optimizer's Prodigy: the estimated step length is a float at first, and `lerp_`ed later."""

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, d=1e-6, best=float("-inf"), **settings)

    def scale(self, group: dict[str, Any]) -> float:
        d = group["d"]
        group["d"] = torch.tensor(d, dtype=torch.float64) if isinstance(d, float) else d.lerp_(torch.ones_like(d), 0.1)
        group["best"] = max(group["best"], float(group["d"]))
        return group["best"]  # type: ignore[no-any-return]


class Cache(Foreign):
    """As torch_optimizer's RAdam: lists of lists with nothing in them at first; and one keyed by numbers."""

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, **settings)
        for group in self.param_groups:
            group["buffer"], group["seen"] = [[None, None] for _ in range(2)], {}

    def scale(self, group: dict[str, Any]) -> float:
        count = (group["buffer"][0][0] or 0) + 1
        group["buffer"][0] = [count, 1 / count]
        group["seen"][count] = (count, float("inf"))
        return group["buffer"][0][1] * len(group["seen"])  # type: ignore[no-any-return]


class OwnLr(Foreign):
    """Its steps change lr itself."""

    def scale(self, group: dict[str, Any]) -> float:
        group["lr"] *= 0.9
        return 1.0


KINDS: list[type[Foreign]] = [
    IntFromTheStart, IntOfTheFirstStep, TensorOfTheFirstStep, FloatThatBecomesATensor, Cache, OwnLr,
]  # fmt: skip
each = pytest.mark.parametrize("cls", KINDS, ids=lambda cls: cls.__name__)


def saved(optimizer: torch.optim.Optimizer, net: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {key: value.clone() for key, value in state_by_name(optimizer, net).items()}
    return tensors, json.loads(json.dumps(settings_by_name(optimizer, net), allow_nan=False))


def pair(make: Callable[[nn.Module], Any], again: Callable[[nn.Module], Any]) -> tuple[Any, ...]:
    """A run of four steps, and a fresh optimizer beside it on the same weights."""
    through, resumed = model(), model()
    first = make(through)
    train(through, first, 0, 4)
    resumed.load_state_dict(through.state_dict())
    return through, first, resumed, again(resumed)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@each
@pytest.mark.parametrize("on_change", ON_CHANGE)
def test_an_unchanged_resume_needs_no_choice_and_goes_on_bit_for_bit(cls: Any, on_change: Any) -> None:
    through, first, resumed, second = pair(lambda net: cls(net.parameters()), lambda net: cls(net.parameters()))
    assert load_state_by_name(second, *saved(first, through), resumed, on_change=on_change) == []
    for before, after in zip(first.param_groups, second.param_groups, strict=True):
        assert {key: type(value) for key, value in before.items()} == {key: type(value) for key, value in after.items()}
        assert all(a.dtype == after[key].dtype for key, a in before.items() if isinstance(a, Tensor))
    train(through, first, 4, 3)
    train(resumed, second, 4, 3)
    assert same(through, resumed)


@each
@pytest.mark.parametrize("on_change", ["keep", "override"])
def test_another_lambda_is_the_only_change_and_progress_goes_on_beside_it(cls: Any, on_change: Any) -> None:
    through, first, resumed, second = pair(
        lambda net: cls(net.parameters(), weight_decay=0.1), lambda net: cls(net.parameters(), weight_decay=0.4)
    )
    tensors, settings = saved(first, through)
    assert {change.setting for change in changes(second, settings, resumed)} == {"weight_decay"}
    load_state_by_name(second, tensors, settings, resumed, on_change=on_change)
    if on_change == "override":
        for group in first.param_groups:
            group["weight_decay"] = 0.4
    train(through, first, 4, 3)
    train(resumed, second, 4, 3)
    assert same(through, resumed)


@pytest.mark.parametrize("cls", [IntFromTheStart, IntOfTheFirstStep], ids=lambda cls: cls.__name__)
def test_files_that_hold_progress_as_plain_numbers_are_read(cls: Any) -> None:
    """As they were written before progress had a place of its own."""
    through, first, resumed, second = pair(lambda net: cls(net.parameters()), lambda net: cls(net.parameters()))
    tensors, settings = saved(first, through)
    for group in settings["groups"]:
        del group["progress"]
        group["step"] = 4
    assert load_state_by_name(second, tensors, settings, resumed) == []
    train(through, first, 4, 3)
    train(resumed, second, 4, 3)
    assert same(through, resumed)


def test_progress_that_cannot_be_saved_is_named() -> None:
    class Holder(Foreign):
        def scale(self, group: dict[str, Any]) -> float:
            group["last"] = object()
            return 1.0

    net = model()
    optimizer = Holder(net.parameters())
    train(net, optimizer, 0, 1)
    with pytest.raises(OptimizerError, match="group 0: last changes with the steps and is a object"):
        settings_by_name(optimizer, net)


def test_tensors_of_groups_that_had_come_to_different_lengths_are_refused_together_and_counts_go_on() -> None:
    def apart(net: nn.Module) -> Foreign:
        params = list(net.parameters())
        return FloatThatBecomesATensor([{"params": params[:2]}, {"params": params[2:]}])

    through, first, resumed, second = pair(apart, lambda net: FloatThatBecomesATensor(net.parameters()))
    tensors, settings = saved(first, through)
    settings["groups"][0]["progress"]["d"]["tensor"] = [0.5]
    with pytest.raises(OptimizerError, match="group 0: its tensors were saved in groups that had come to different d"):
        load_state_by_name(second, tensors, settings, resumed)
    assert not second.state


def test_a_rule_of_ones_own_and_numbers_that_json_lacks_are_settings_as_any_other() -> None:
    mine = Rule("mine", lr_power=2, mask="agreeing")
    net = model()
    old = AdamW(net.named_parameters(), rule=mine)
    settings = json.loads(json.dumps(settings_by_name(old), allow_nan=False))
    assert settings["groups"][0]["rule"]["name"] == "mine"
    assert changes(AdamW(net.named_parameters(), rule=mine), settings) == []
    other = AdamW(net.named_parameters(), rule="fixed")
    assert {change.setting for change in changes(other, settings)} == {"rule"}
    load_state_by_name(other, {}, settings, on_change="keep")
    assert other.param_groups[0]["rule"] == mine

    endless = IntFromTheStart(net.named_parameters(), clip=float("inf"))
    settings = json.loads(json.dumps(settings_by_name(endless), allow_nan=False))
    assert changes(IntFromTheStart(net.named_parameters(), clip=float("inf")), settings) == []
    bounded = IntFromTheStart(net.named_parameters(), clip=1.0)
    load_state_by_name(bounded, {}, settings, on_change="keep")
    assert bounded.param_groups[0]["clip"] == float("inf")


def test_a_multiplier_that_one_side_does_not_say_is_no_change() -> None:
    net = model()
    old, new = AdamW(net.named_parameters()), AdamW(net.named_parameters())
    for group in old.param_groups:
        group.pop("decay_multiplier", None)
    for group in new.param_groups:
        group["decay_multiplier"] = 1.0
    assert changes(new, settings_by_name(old)) == []
    new_settings = settings_by_name(new)
    new.param_groups[0]["decay_multiplier"] = 0.5
    assert {change.setting for change in changes(new, new_settings)} == {"decay_multiplier"}


class CountOfAllGroups(Foreign):
    """torch gives each group the very tensor of the defaults, so that all groups count in one."""

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, step=torch.tensor(0), **settings)

    def scale(self, group: dict[str, Any]) -> float:
        return 1 / float(group["step"].add_(1))


def test_a_tensor_that_groups_share_is_shared_after_a_resume() -> None:
    def make(net: nn.Sequential) -> CountOfAllGroups:
        return CountOfAllGroups([{"params": list(part.parameters())} for part in net])

    through, resumed = model(), model()
    optimizer, again = make(through), make(resumed)
    train(through, optimizer, 0, 3)
    resumed.load_state_dict(through.state_dict())
    load_state_by_name(again, state_by_name(optimizer, through), settings_by_name(optimizer, through), resumed)
    train(through, optimizer, 3, 2)
    train(resumed, again, 3, 2)
    assert int(again.param_groups[0]["step"]) == int(again.param_groups[2]["step"]) == 15
    assert all(torch.equal(a, b) for a, b in zip(through.parameters(), resumed.parameters(), strict=True))


DAMAGED: list[tuple[str, Any, str]] = [
    ("progress", {"step": {"tensor": [1.0]}}, "group 0: step was saved as"),
    ("progress", {"step": {"tensor": [1.0], "shape": [2], "dtype": "float32", "device": "cpu"}}, "it is damaged"),
    ("progress", {"step": {"tensor": [1.0], "shape": [1], "dtype": "float31", "device": "cpu"}}, "it is damaged"),
    ("progress", {"step": {"dict": [1]}}, "it is damaged"),
    ("lr", {"a": 1}, "lr was saved as {'a': 1}, which it cannot be"),
    ("lr", {"float": "fast"}, "group 0: lr was saved as"),
]


@pytest.mark.parametrize(("key", "value", "words"), DAMAGED)
def test_values_that_are_damaged_are_named_and_nothing_is_loaded(key: str, value: Any, words: str) -> None:
    net = model()
    optimizer = IntFromTheStart(net.parameters())
    train(net, optimizer, 0, 2)
    tensors, settings = state_by_name(optimizer, net), settings_by_name(optimizer, net)
    settings["groups"][0][key] = value
    fresh = IntFromTheStart(net.parameters(), lr=0.02)
    with pytest.raises(OptimizerError, match=words):
        load_state_by_name(fresh, tensors, settings, net, on_change="keep")
    assert not fresh.state
    assert (fresh.param_groups[0]["lr"], fresh.param_groups[0]["step"]) == (0.02, 0)
