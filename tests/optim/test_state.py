from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import weightdecay
from weightdecay.errors import OptimizerError
from weightdecay.optim.adafactor import Adafactor
from weightdecay.optim.adamw import AdamL2, AdamW
from weightdecay.optim.lion import Lion
from weightdecay.optim.muon import Muon
from weightdecay.optim.sgdw import SGDW
from weightdecay.optim.state import (
    Change,
    changes,
    describe,
    load_state_by_name,
    settings_by_name,
    state_by_name,
)
from weightdecay.rules import RULES

Make = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "AdamW": lambda p: AdamW(p, lr=0.01),
    "AdamW fused amsgrad": lambda p: AdamW(p, lr=0.01, fused=True, amsgrad=True),
    "AdamW towards_initial": lambda p: AdamW(p, lr=0.01, rule="towards_initial"),
    "AdamL2": lambda p: AdamL2(p, lr=0.01, weight_decay=0.1),
    "Lion": lambda p: Lion(p, lr=0.01),
    "SGDW": lambda p: SGDW(p, lr=0.01, momentum=0.9),
    "SGDW without state": lambda p: SGDW(p, lr=0.01),
    "Adafactor": lambda p: Adafactor(p, lr=0.01),
    "Adafactor PaLM": lambda p: Adafactor(p, lr=0.01, factored=False, beta1=0.9),
    "Muon": lambda p: Muon(p, lr=0.01),
    "torch Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "torch NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "torch RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "torch ASGD": lambda p: torch.optim.ASGD(p, lr=0.01),
}
each = pytest.mark.parametrize("name", OPTIMIZERS)


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 6)).to(dtype)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, first: int, steps: int) -> None:
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        for p in net.parameters():
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


def weights(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def save(optimizer: torch.optim.Optimizer, net: nn.Module, folder: Path) -> None:
    save_file(state_by_name(optimizer, net), folder / "optimizer.safetensors")
    (folder / "settings.json").write_text(json.dumps(settings_by_name(optimizer, net), allow_nan=False))


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return load_file(folder / "optimizer.safetensors"), json.loads((folder / "settings.json").read_text())


@each
@pytest.mark.parametrize("order", ["same order", "another order"])
def test_a_resume_by_name_continues_bit_for_bit(name: str, order: str, tmp_path: Path) -> None:
    through, make = model(), OPTIMIZERS[name]
    optimizer = make(through.named_parameters())
    train(through, optimizer, 0, 3)
    save(optimizer, through, tmp_path)
    resumed = model()
    resumed.load_state_dict(through.state_dict())
    train(through, optimizer, 3, 3)

    named = list(resumed.named_parameters())
    again = make(named if order == "same order" else named[::-1])
    tensors, settings = load(tmp_path)
    found = load_state_by_name(again, tensors, settings, names=resumed)
    assert all(change.harmless for change in found)
    assert bool(found) == (order == "another order")
    train(resumed, again, 3, 3)
    assert all(torch.equal(a, b) for a, b in zip(weights(through), weights(resumed), strict=True))


@pytest.mark.parametrize("rounding", ["stochastic", "kahan", "master"])
@pytest.mark.parametrize("by", ["name", "position", "pickle"])
@pytest.mark.parametrize("name", ["AdamW", "Lion", "SGDW", "Muon", "Adafactor"])
def test_a_resume_in_low_precision_continues_bit_for_bit(name: str, rounding: str, by: str, tmp_path: Path) -> None:
    cls: Any = getattr(weightdecay, name)
    through = model(torch.bfloat16)
    optimizer = cls(through.named_parameters(), lr=0.01, weight_decay=0.1, rounding=rounding)
    train(through, optimizer, 0, 3)
    resumed = model(torch.bfloat16)
    resumed.load_state_dict(through.state_dict())
    again = cls(resumed.named_parameters(), lr=0.01, weight_decay=0.1, rounding=rounding)
    if by == "name":
        save(optimizer, through, tmp_path)
        load_state_by_name(again, *load(tmp_path), names=resumed)
    elif by == "position":
        torch.save(optimizer.state_dict(), tmp_path / "state.pt")
        again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    else:
        torch.save((resumed, optimizer), tmp_path / "state.pt")
        _, copied = torch.load(tmp_path / "state.pt", weights_only=False)  # our own file of a moment ago
        again.load_state_dict(copied.state_dict())
    train(through, optimizer, 3, 3)
    train(resumed, again, 3, 3)
    assert all(torch.equal(a, b) for a, b in zip(weights(through), weights(resumed), strict=True))


def test_float32_state_is_restored_from_what_the_users_hook_made_of_it() -> None:
    """A hook that finds the tensors by name hands torch another order than the file's."""
    net = model(torch.bfloat16)
    named = list(net.named_parameters())
    old = AdamW(named, lr=0.01, rounding="master")
    train(net, old, 0, 2)
    new = AdamW(named[::-1], lr=0.01, rounding="master")

    def by_name(_: Any, given: dict[str, Any]) -> dict[str, Any]:
        group = given["param_groups"][0]
        found = dict(zip(group["param_names"], group["params"], strict=True))
        order = [name for name, _ in named[::-1]]
        return {**given, "param_groups": [{**group, "params": [found[n] for n in order], "param_names": order}]}

    new.register_load_state_dict_pre_hook(by_name)
    new.load_state_dict(old.state_dict())
    for _, p in named:
        assert new.state[p]["master"].dtype == torch.float32
        assert torch.equal(new.state[p]["master"], old.state[p]["master"])


def test_torch_swaps_the_moments_of_two_swapped_tensors_and_we_do_not() -> None:
    net = model()
    trained = torch.optim.AdamW(net.parameters(), lr=0.01)
    train(net, trained, 0, 2)
    first, second = net.get_parameter("0.weight"), net.get_parameter("2.weight")
    moments = {p: trained.state[p]["exp_avg"].clone() for p in (first, second)}
    swapped = [second if p is first else first if p is second else p for p in net.parameters()]

    by_position = torch.optim.AdamW(swapped, lr=0.01)
    by_position.load_state_dict(trained.state_dict())
    assert torch.equal(by_position.state[first]["exp_avg"], moments[second])

    by_name = torch.optim.AdamW(swapped, lr=0.01)
    load_state_by_name(by_name, state_by_name(trained, net), settings_by_name(trained, net), names=net)
    assert torch.equal(by_name.state[first]["exp_avg"], moments[first])
    assert torch.equal(by_name.state[second]["exp_avg"], moments[second])


def test_a_resume_with_another_lambda_uses_it_in_its_first_step_if_told_to() -> None:
    results = {}
    for choice in ("override", "keep"):
        net = model()
        old = AdamW(weightdecay.plan(net, weight_decay=0.1), lr=0.01)
        train(net, old, 0, 2)
        new = AdamW(weightdecay.plan(net, weight_decay=0.4), lr=0.01)
        tensors, settings = state_by_name(old), settings_by_name(old)
        with pytest.raises(OptimizerError, match=r"weight_decay: saved 0\.1, asked 0\.4, for 2 tensors"):
            load_state_by_name(new, tensors, settings)
        assert not new.state
        found = load_state_by_name(new, tensors, settings, on_change=choice)
        assert {(change.setting, change.saved, change.asked) for change in found} == {("weight_decay", 0.1, 0.4)}
        before = net.get_parameter("0.weight").detach().clone()
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        for state in new.state.values():
            state["exp_avg"].zero_()
        new.step()
        results[choice] = float((net.get_parameter("0.weight").detach() / before).mean())
    assert results["override"] == pytest.approx(1 - 0.01 * 0.4, rel=1e-6)
    assert results["keep"] == pytest.approx(1 - 0.01 * 0.1, rel=1e-6)


def test_torchs_own_load_takes_the_old_lambda() -> None:
    net = model()
    old = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)
    new = torch.optim.AdamW(net.parameters(), lr=0.02, weight_decay=0.4)
    new.load_state_dict(old.state_dict())
    assert (new.param_groups[0]["lr"], new.param_groups[0]["weight_decay"]) == (0.01, 0.1)


def test_missing_and_new_tensors_are_named_and_only_override_lets_them_pass() -> None:
    old_net, new_net = model(), model()
    old = AdamW(old_net.named_parameters())
    train(old_net, old, 0, 1)
    new_net.append(nn.Linear(6, 2))
    kept = [(name, p) for name, p in new_net.named_parameters() if not name.startswith("2.")]
    new = AdamW(kept)
    tensors, settings = state_by_name(old), settings_by_name(old)
    with pytest.raises(OptimizerError) as caught:
        load_state_by_name(new, tensors, settings)
    assert all(name in str(caught.value) for name in ("2.weight", "2.bias", "3.weight", "3.bias"))
    with pytest.raises(OptimizerError, match=r"2\.weight, 2\.bias; on_change='keep' cannot bring it back") as caught:
        load_state_by_name(new, tensors, settings, on_change="keep")
    assert "3.weight" not in str(caught.value)
    assert not new.state
    load_state_by_name(new, tensors, settings, on_change="override")
    assert set(state_by_name(new)) == {key for key in tensors if not key.startswith("2.")}


def test_without_settings_the_state_alone_tells_what_is_missing() -> None:
    net = model()
    old = AdamW(net.named_parameters())
    train(net, old, 0, 1)
    tensors = {key: value for key, value in state_by_name(old).items() if not key.startswith("1.bias/")}
    new = AdamW(net.named_parameters())
    with pytest.raises(OptimizerError, match=r"1\.bias"):
        load_state_by_name(new, tensors)
    load_state_by_name(new, {}, None)  # a fresh optimizer was saved
    assert not new.state


def test_state_of_another_optimizer_or_model_is_refused_with_every_name() -> None:
    net = model()
    lion = Lion(net.named_parameters())
    train(net, lion, 0, 1)
    adam = AdamW(net.named_parameters())
    with pytest.raises(OptimizerError) as caught:
        load_state_by_name(adam, state_by_name(lion))
    assert len(caught.value.faults) == 12  # exp_avg_sq and step for each of six tensors
    assert "0.weight/exp_avg_sq: AdamW needs it and it is missing" in caught.value.faults
    assert not adam.state

    train(net, adam, 0, 1)
    with pytest.raises(OptimizerError, match="Lion has no such state"):
        load_state_by_name(lion, state_by_name(adam))

    wide = nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 6))
    other = AdamW(wide.named_parameters())
    with pytest.raises(
        OptimizerError, match=r"0\.weight/exp_avg: saved with shape \(6, 6\), this model needs \(6, 8\)"
    ):
        load_state_by_name(other, state_by_name(adam))
    assert not other.state


@each
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_any_lost_invented_or_misshapen_entry_is_named_and_nothing_is_loaded(name: str, data: st.DataObject) -> None:
    net = model()
    optimizer = OPTIMIZERS[name](net.named_parameters())
    train(net, optimizer, 0, 1)
    tensors = state_by_name(optimizer)
    if not tensors or "RMSprop" in name:
        return
    victim = data.draw(st.sampled_from(sorted(tensors)))
    damage = data.draw(st.sampled_from(["lost", "invented", "misshapen"]))
    if damage == "lost":
        del tensors[victim]
    elif damage == "invented":
        victim += "_2"
        tensors[victim] = torch.ones(3)
    else:
        tensors[victim] = torch.ones(2, 2, 2)
    fresh = OPTIMIZERS[name](net.named_parameters())
    before = {key: value.clone() for key, value in state_by_name(fresh).items()}  # Adagrad's is there at once
    with pytest.raises(OptimizerError) as caught:
        load_state_by_name(fresh, tensors)
    assert victim.split(":")[0].split("/")[0] in str(caught.value)
    assert state_by_name(fresh).keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in state_by_name(fresh).items())


def test_what_a_fresh_optimizer_saved_drops_the_state_of_one_that_has_stepped() -> None:
    net = model()
    optimizer = AdamW(net.named_parameters())
    saved = state_by_name(optimizer), settings_by_name(optimizer)
    train(net, optimizer, 0, 2)
    load_state_by_name(optimizer, *saved)
    assert not optimizer.state


def test_state_of_another_optimizer_says_whose_it_is_and_not_how_its_settings_differ() -> None:
    net = model()
    adam, lion = AdamW(net.named_parameters()), Lion(net.named_parameters())
    train(net, adam, 0, 1)
    with pytest.raises(OptimizerError) as caught:
        load_state_by_name(lion, state_by_name(adam), settings_by_name(adam))
    assert caught.value.faults[0] == "the state is of AdamW, and this optimizer is Lion"
    assert len(caught.value.faults) == 13
    assert not any("betas" in fault for fault in caught.value.faults)


def test_all_tensors_that_came_or_went_are_named() -> None:
    net, longer = model(), nn.Sequential(*model(), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    old, new = AdamW(net.named_parameters()), AdamW(longer.named_parameters())
    (line,) = describe(changes(new, settings_by_name(old)))
    assert line == "tensors without saved state: 3.weight, 3.bias, 4.weight, 4.bias, 5.weight, 5.bias"
    (line,) = describe(changes(old, settings_by_name(new)))
    assert line.startswith("tensors that were saved and are not here: 3.weight, 3.bias, 4.weight")


def test_a_wrapper_around_the_model_changes_no_name() -> None:
    """Neither where the model is given, nor where only the groups' names are left, which no author would choose."""
    net = model()
    expected = [name for name, _ in net.named_parameters()]
    compiled: Any = torch.compile(net)
    for optimizer, names in ((AdamW(net.parameters()), compiled), (AdamW(compiled.named_parameters()), None)):
        assert list(settings_by_name(optimizer, names)["groups"][0]["params"]) == expected


def test_a_submodule_called_module_keeps_its_name_beside_a_tensor_of_the_same() -> None:
    net = nn.Module()
    net.module, net.weight = nn.Linear(3, 3), nn.Parameter(torch.ones(3))
    optimizer = AdamW(net.named_parameters())
    train(net, optimizer, 0, 1)
    for names in (net, None, dict(net.named_parameters())):
        saved = state_by_name(optimizer, names)
        assert {key.rpartition("/")[0] for key in saved} == {"weight", "module.weight", "module.bias"}
        load_state_by_name(AdamW(net.named_parameters()), saved, settings_by_name(optimizer, names), names)


def test_parameters_without_names_are_refused() -> None:
    net = model()
    with pytest.raises(OptimizerError, match="6 of 6 parameters have no name: give the model"):
        state_by_name(AdamW(net.parameters()))
    with pytest.raises(OptimizerError, match="names of more than one parameter: a"):
        state_by_name(AdamW(net.parameters()), ["a"] * 6)
    with pytest.raises(OptimizerError, match="2 names for 6 parameters"):
        state_by_name(AdamW(net.parameters()), ["a", "b"])


def test_changes_are_told_in_a_line_for_each_kind() -> None:
    net = model()
    old = AdamW(weightdecay.plan(net, weight_decay=0.1), lr=0.01)
    saved = settings_by_name(old)
    new = AdamW(net.named_parameters(), lr=0.02, weight_decay=0.1, betas=(0.9, 0.95))
    lines = describe(changes(new, saved))
    assert "lr: saved 0.01, asked 0.02, for 6 tensors (0.weight, 0.bias, 1.weight, …)" in lines
    assert "weight_decay: saved 0.0, asked 0.1, for 4 tensors (0.bias, 1.weight, 1.bias, …)" in lines
    assert any(line.startswith("betas: ") for line in lines)
    assert "the parameters come in another order: they are matched by name" in lines
    assert not any(change.setting == "lr" for change in changes(new, saved, ignore=["lr"]))


def test_a_group_whose_tensors_were_saved_apart_cannot_keep() -> None:
    net = model()
    old = AdamW(weightdecay.plan(net, weight_decay=0.1), lr=0.01)
    new = AdamW(net.named_parameters(), lr=0.01, weight_decay=0.1)
    with pytest.raises(OptimizerError, match="saved with different weight_decay"):
        load_state_by_name(new, {}, settings_by_name(old), on_change="keep")


def test_keep_writes_into_a_tensor_lr_and_restores_tuples() -> None:
    net = model()
    old = AdamW(net.named_parameters(), lr=0.01, betas=(0.8, 0.9))
    lr = torch.tensor(0.05)
    new = AdamW(net.named_parameters(), lr=lr, fused=True)
    load_state_by_name(new, {}, json.loads(json.dumps(settings_by_name(old))), on_change="keep")
    assert new.param_groups[0]["lr"] is lr
    assert float(lr) == pytest.approx(0.01)
    assert new.param_groups[0]["betas"] == (0.8, 0.9)


def test_an_unknown_choice_is_refused() -> None:
    net = model()
    with pytest.raises(OptimizerError, match="did you mean 'keep'"):
        load_state_by_name(AdamW(net.named_parameters()), {}, on_change="kepp")  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", [name for name in RULES if name != "l2"])
@pytest.mark.parametrize("cls", [AdamW, SGDW, Lion, Muon, Adafactor], ids=lambda cls: cls.__name__)
def test_saving_a_fresh_optimizer_changes_neither_weights_nor_the_count(cls: Any, rule: str) -> None:
    net = model()
    optimizer = cls(weightdecay.plan(net, weight_decay=0.1), lr=0.01, rule=rule)
    before = weights(net)
    assert state_by_name(optimizer) == {}
    saved: Any = get_optimizer_state_dict(net, optimizer)  # torch's checkpointing makes a step to see the state
    assert all(torch.equal(a, b) for a, b in zip(before, weights(net), strict=True))
    assert all(float(state.get("step", 0)) == 0 for state in saved["state"].values())
    reference_net = model()
    reference = cls(weightdecay.plan(reference_net, weight_decay=0.1), lr=0.01, rule=rule)
    train(net, optimizer, 0, 2)
    train(reference_net, reference, 0, 2)
    assert all(torch.equal(a, b) for a, b in zip(weights(net), weights(reference_net), strict=True))


def test_a_change_that_names_settle_is_harmless() -> None:
    assert Change("", "order", [], []).harmless
    assert not Change("w", "weight_decay", 0.1, 0.2).harmless


def test_names_come_as_pairs_too_and_are_text_or_refused() -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    expected = state_by_name(optimizer, net)
    assert state_by_name(optimizer, list(net.named_parameters())).keys() == expected.keys()
    for wrong in ([b"w"] * 6, range(6), dict(enumerate(net.parameters())), dict.fromkeys(net.parameters(), "w")):
        with pytest.raises(
            OptimizerError, match=r"give the model, dict\(model.named_parameters\(\)\), or a list of names"
        ):
            state_by_name(optimizer, wrong)  # type: ignore[arg-type]
