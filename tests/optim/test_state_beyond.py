"""Progress that an optimizer keeps in attributes and hands on through a `state_dict` of its own."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.optim.test_state import model, train
from weightdecay.errors import OptimizerError
from weightdecay.optim.adamw import AdamW
from weightdecay.optim.state import load_state_by_name, settings_by_name, state_by_name


class Growing(torch.optim.Optimizer):
    """Its step grows with numbers that lie in attributes, as HeavyBall's and pytorch_optimizer's StableSPAM's do."""

    def __init__(self, params: Any, lr: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": 0.0})
        self.steps, self.chances, self.generator = 0, {"sum": 0.0, "last": None}, torch.zeros(2, dtype=torch.uint8)
        self.schedule: Any = pickle.dumps("mine")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        del closure
        self.steps += 1
        self.chances = {"sum": self.chances["sum"] + 0.5 / self.steps, "last": self.steps}  # type: ignore[operator]
        self.generator += 3
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"] * self.steps * self.chances["sum"] + float(self.generator[0]) * 1e-3)

    def own(self) -> dict[str, Any]:
        return {"steps": self.steps, "chances": self.chances, "generator": self.generator, "by": {"how": self.schedule}}


class ByMethod(Growing):
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **self.own()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps, self.chances = state_dict["steps"], state_dict["chances"]
        self.generator, self.schedule = state_dict["generator"].clone(), state_dict["by"]["how"]
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})


class ByHook(Growing):
    def __init__(self, params: Any, lr: float = 0.01) -> None:
        super().__init__(params, lr)
        hooks: Any = self
        hooks.register_state_dict_post_hook(lambda _, state_dict: state_dict.update(mine=self.own()))
        hooks.register_load_state_dict_pre_hook(lambda _, state_dict: self.take(state_dict))

    def take(self, state_dict: dict[str, Any]) -> None:
        mine = state_dict["mine"]
        self.steps, self.chances, self.generator = mine["steps"], mine["chances"], mine["generator"].clone()
        self.schedule = mine["by"]["how"]


class Switching(torch.optim.Optimizer):
    """A wrapper that shows the state of what it holds, and whose own `state_dict` has more."""

    def __init__(self, optimizer: torch.optim.Optimizer, more: bool) -> None:
        self.optimizer, self.more = optimizer, more

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.optimizer.state

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self.optimizer.param_groups

    def state_dict(self) -> dict[str, Any]:
        return {**self.optimizer.state_dict(), **({"switched": {(0, 1): 2}} if self.more else {})}

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


def saved(optimizer: torch.optim.Optimizer, net: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    settings = json.dumps(settings_by_name(optimizer, net), allow_nan=False)
    return state_by_name(optimizer, net), json.loads(settings)


@pytest.mark.parametrize("cls", [ByMethod, ByHook])
@pytest.mark.parametrize("on_change", [None, "keep", "override"])
def test_what_an_optimizer_hands_on_in_its_own_way_comes_back_in_it(cls: Any, on_change: Any) -> None:
    through, resumed = model(), model()
    optimizer, again = cls(through.parameters()), cls(resumed.parameters())
    train(through, optimizer, 0, 4)
    resumed.load_state_dict(through.state_dict())
    assert load_state_by_name(again, *saved(optimizer, through), resumed, on_change=on_change) == []
    assert (again.steps, again.chances, again.generator.dtype) == (4, optimizer.chances, torch.uint8)
    train(through, optimizer, 4, 3)
    train(resumed, again, 4, 3)
    assert all(torch.equal(a, b) for a, b in zip(through.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize("cls", [ByMethod, ByHook])
def test_keep_reaches_the_groups_of_an_optimizer_that_loads_in_its_own_way(cls: Any) -> None:
    net = model()
    optimizer, again = cls(net.parameters()), cls(net.parameters())
    optimizer.param_groups[0]["lr"] = 0.25
    train(net, optimizer, 0, 2)
    load_state_by_name(again, *saved(optimizer, net), net, on_change="keep")
    assert again.param_groups[0]["lr"] == 0.25


def test_a_pickle_is_neither_saved_nor_brought_back() -> None:
    net = model()
    optimizer, again = ByHook(net.parameters()), ByHook(net.parameters())
    again.schedule = pickle.dumps("the fresh one's")
    tensors, settings = saved(optimizer, net)
    assert "how" not in json.dumps(settings["beyond"])
    load_state_by_name(again, tensors, settings, net)
    assert pickle.loads(again.schedule) == "the fresh one's"


def test_torchs_optimizers_and_ours_have_nothing_beyond() -> None:
    for cls in (torch.optim.AdamW, AdamW):
        assert "beyond" not in settings_by_name(cls(model().named_parameters()))


def test_a_wrapper_that_keeps_more_than_it_holds_is_refused_and_one_that_does_not_is_not() -> None:
    net = model()
    plain = Switching(AdamW(net.named_parameters()), more=False)
    train(net, plain, 0, 1)
    assert settings_by_name(plain, net)["optimizer"] == "AdamW"
    assert len(state_by_name(plain, net)) == 18
    for save in (state_by_name, settings_by_name):
        with pytest.raises(OptimizerError, match=r"Switching wraps a AdamW and keeps more .*switched"):
            save(Switching(AdamW(net.named_parameters()), more=True), net)


def test_what_goes_by_the_places_of_tensors_is_refused() -> None:
    net = model()
    optimizer = ByHook(net.parameters())
    optimizer.chances = {(0, 1): 2.0}  # type: ignore[dict-item]
    with pytest.raises(OptimizerError, match=r"ByHook's state_dict: mine\.chances goes by the places"):
        settings_by_name(optimizer, net)


def test_state_of_no_parameter_is_named() -> None:
    net = model()
    optimizer = AdamW(net.named_parameters())
    optimizer.state["count"] = {"k": torch.ones(())}  # type: ignore[index]
    with pytest.raises(OptimizerError, match="AdamW keeps state of 'count', which is no parameter"):
        state_by_name(optimizer)
