"""Bad input: all faults at once, in words that say what to do, and nothing changed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import weightdecay
from weightdecay.errors import OptimizerError
from weightdecay.optim.adafactor import Adafactor
from weightdecay.optim.adamw import AdamL2, AdamW
from weightdecay.optim.lion import Lion
from weightdecay.optim.muon import Muon
from weightdecay.optim.sgdw import SGDW

ALL = [AdamW, AdamL2, Lion, SGDW, Adafactor, Muon]
each = pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)


def matrix(dtype: torch.dtype = torch.float32) -> nn.Parameter:
    p = nn.Parameter(torch.ones(3, 2, dtype=dtype))
    p.grad = torch.ones_like(p)
    return p


@each
def test_every_fault_of_every_group_comes_at_once(cls: Any) -> None:
    with pytest.raises(OptimizerError) as caught:
        cls(
            [
                {"params": [matrix()], "lr": -1.0, "weight_decay": float("nan"), "name": "first"},
                {"params": [matrix()], "lr": float("inf"), "rule": "decuopled", "rounding": "up"},
            ]
        )
    faults = caught.value.faults
    assert len(faults) == 5
    assert sum("('first')" in fault for fault in faults) == 2
    assert sum("did you mean 'decoupled'" in fault for fault in faults) == 1


@each
@given(value=st.one_of(st.floats(max_value=-1e-30), st.just(float("nan")), st.just(float("inf"))))
def test_negative_and_endless_lr_and_lambda_are_refused(cls: Any, value: float) -> None:
    for setting in ("lr", "weight_decay"):
        with pytest.raises(OptimizerError, match="give a finite number"):
            cls([matrix()], **{setting: value})


@pytest.mark.parametrize("cls", [AdamW, AdamL2, Lion], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("betas", [(1.0, 0.9), (0.9, -0.1), (0.9, float("nan"))])
def test_betas_outside_zero_to_one_are_refused(cls: Any, betas: tuple[float, float]) -> None:
    with pytest.raises(OptimizerError, match="Invalid beta parameter at index"):
        cls([matrix()], betas=betas)


@pytest.mark.parametrize(
    ("cls", "settings", "words"),
    [
        (AdamW, {"lr": "0.1"}, r"Invalid learning rate: '0\.1' \(group 0\): give a finite number"),
        (AdamW, {"weight_decay": None}, "Invalid weight_decay value: None"),
        (AdamW, {"betas": 0.9}, r"Invalid betas: 0\.9 \(group 0\): give two numbers"),
        (Lion, {"betas": (0.9,)}, "give two numbers"),
        (AdamW, {"betas": ("0.9", 0.99)}, r"Invalid beta parameter at index 0: 0\.9"),
        (Adafactor, {"beta1": 1.0}, "Invalid beta parameter"),
        (Muon, {"momentum": -0.1}, r"Invalid momentum value: -0\.1"),
        (Muon, {"ns_steps": 0}, "whole number from 1 to 99"),
        (Muon, {"ns_steps": 100}, "whole number from 1 to 99"),
        (Muon, {"neuron_beta2": 1.0}, r"Invalid beta parameter at index 1: 1\.0"),
        (Muon, {"orthogonalisation": "polar_expres"}, "unknown orthogonalisation.*did you mean 'polar_express'"),
        (AdamW, {"rule": None}, "unknown rule 'None'"),
        (AdamW, {"rounding": None}, "unknown rounding 'None'"),
        (AdamW, {"peak_lr": -3.0}, r"Invalid peak_lr: -3\.0"),
    ],
)
def test_settings_of_no_meaning_say_what_they_should_be(cls: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(OptimizerError, match=words):
        cls([matrix()], **settings)


def test_a_group_for_an_algorithm_that_is_none_is_refused() -> None:
    with pytest.raises(OptimizerError, match=r"unknown algorithm 'moun'.*did you mean 'muon'"):
        Muon([{"params": [matrix()], "algorithm": "moun"}])


@pytest.mark.parametrize(
    ("stacked", "words"), [(0, "at least 1"), ("3", "Invalid stacked"), (3, "4 rows .* are not 3")]
)
def test_stacked_matrices_that_are_none_are_refused(stacked: Any, words: str) -> None:
    with pytest.raises(OptimizerError, match=words):
        Muon([{"params": [nn.Parameter(torch.ones(4, 3))], "stacked": stacked}])


@each
def test_a_tensor_in_two_groups_is_refused(cls: Any) -> None:
    p, q = matrix(), matrix()
    with pytest.raises(OptimizerError, match=r"group 1: 'w' is in group 0 as well") as refused:
        cls([{"params": [p, q]}, {"params": [("w", p), ("v", q)]}])
    assert len(refused.value.faults) == 2
    optimizer = cls([p])
    with pytest.raises(OptimizerError, match=r"group 1: tensor 0 of shape .* more than one parameter group: leave"):
        optimizer.add_param_group({"params": iter([p])})
    assert len(optimizer.param_groups) == 1


@each
def test_a_group_added_later_is_checked_and_inherits(cls: Any) -> None:
    optimizer = cls([matrix()], lr=0.01, weight_decay=0.1)
    with pytest.raises(OptimizerError, match="Invalid learning rate: -1"):
        optimizer.add_param_group({"params": [matrix()], "lr": -1})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [matrix()]})
    first, second = optimizer.param_groups
    assert {key: value for key, value in first.items() if key != "params"} == {
        key: value for key, value in second.items() if key != "params"
    }


@pytest.mark.parametrize("cls", [AdamW, Lion, SGDW, Adafactor, Muon], ids=lambda cls: cls.__name__)
def test_a_decay_over_one_is_known_when_the_optimizer_is_made(cls: Any) -> None:
    with pytest.raises(OptimizerError, match="sign of the weights"):
        cls([matrix()], lr=0.5, weight_decay=3.0)


def test_a_peak_that_cannot_be_known_is_asked_for() -> None:
    with pytest.raises(OptimizerError, match="give peak_lr"):
        AdamW([matrix()], lr=0.0, rule="independent")
    with pytest.raises(OptimizerError, match="give peak_lr"):
        AdamW([matrix()], lr=0.1, rule="corrected", peak_lr=float("nan"))


@each
def test_sparse_gradients_are_refused_with_everything_unchanged(cls: Any) -> None:
    p, dense = nn.Parameter(torch.ones(4, 2)), matrix()
    optimizer = cls([{"params": [dense]}, {"params": [p], "name": "embedding"}], lr=0.1, weight_decay=0.1)
    p.grad = torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1, 2), (4, 2), check_invariants=False)
    with pytest.raises((OptimizerError, RuntimeError), match=r"sparse=False|sparse"):
        optimizer.step()
    assert torch.equal(p, torch.ones(4, 2))
    assert torch.equal(dense, torch.ones(3, 2))


def test_the_coupled_rule_refuses_sparse_gradients_in_the_same_words() -> None:
    p = nn.Parameter(torch.ones(4, 2))
    p.grad = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1, 2), (4, 2), check_invariants=False)
    with pytest.raises(OptimizerError, match="sparse=False"):
        SGDW([p], lr=0.1, weight_decay=0.1, rule="l2").step()


@pytest.mark.parametrize("rounding", ["stochastic", "kahan", "master"])
def test_a_rounding_refuses_sparse_gradients_in_the_same_words(rounding: Any) -> None:
    p = nn.Parameter(torch.ones(4, 2, dtype=torch.bfloat16))
    p.grad = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1, 2).bfloat16(), (4, 2), check_invariants=False)
    with pytest.raises(OptimizerError, match=r"of a rounding: .*sparse=False"):
        SGDW([p], lr=0.1, rounding=rounding).step()


def test_sgdw_takes_sparse_gradients_where_nothing_decays() -> None:
    ours, theirs = nn.Parameter(torch.ones(4, 2)), nn.Parameter(torch.ones(4, 2))
    for p, optimizer in ((ours, SGDW([ours], lr=0.1)), (theirs, torch.optim.SGD([theirs], lr=0.1))):
        p.grad = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1, 2), (4, 2), check_invariants=False)
        optimizer.step()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("cls", [Adafactor, Muon], ids=lambda cls: cls.__name__)
def test_complex_weights_are_refused_where_the_direction_has_no_meaning_for_them(cls: Any) -> None:
    first, second = matrix(), matrix(torch.complex64)
    before = first.detach().clone()
    with pytest.raises(OptimizerError, match=r"group 1: .* does not support complex"):
        cls([{"params": [first]}, {"params": [second]}], weight_decay=0.1).step()
    assert torch.equal(first, before)  # refused before anything moved


@pytest.mark.parametrize("cls", [AdamW, Lion, SGDW], ids=lambda cls: cls.__name__)
def test_cautious_refuses_complex_weights(cls: Any) -> None:
    p = matrix(torch.complex64)
    with pytest.raises(OptimizerError, match="signs, which complex weights do not have"):
        cls([p], weight_decay=0.1, rule="cautious").step()


def test_muon_refuses_vectors_in_its_own_groups() -> None:
    with pytest.raises(OptimizerError, match="algorithm='adamw'"):
        Muon([{"params": [nn.Parameter(torch.ones(3))], "algorithm": "muon"}])
    with pytest.raises(OptimizerError, match="did you mean 'original'"):
        Muon([matrix()], adjust_lr_fn="orignal")


@each
def test_a_plan_gives_the_groups_their_lambda_and_names(cls: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    optimizer = cls(weightdecay.plan(model, weight_decay=0.2), lr=0.01)
    named = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["param_names"]}
    assert named == {name: 0.2 if name in ("0.weight", "2.weight") else 0.0 for name, _ in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    before = copy.deepcopy(model.state_dict())
    optimizer.step()
    after = model.state_dict()
    if cls is not AdamL2:
        assert torch.allclose(after["0.weight"], (1 - 0.01 * 0.2) * before["0.weight"])
        assert torch.equal(after["1.weight"], before["1.weight"])


def test_a_tensor_lr_reaches_the_groups_of_a_plan() -> None:
    lr = torch.tensor(0.01)
    optimizer = AdamW(weightdecay.plan(nn.Linear(2, 2), weight_decay=0.2), lr=lr)
    assert all(group["lr"] is lr for group in optimizer.param_groups)


def test_named_parameters_are_taken_as_torch_takes_them() -> None:
    model = nn.Linear(3, 2)
    assert AdamW(model.named_parameters()).param_groups[0]["param_names"] == ["weight", "bias"]


def test_the_public_names_lead_to_what_they_name() -> None:
    for name in ("AdamW", "AdamL2", "Lion", "SGDW", "Adafactor", "Muon", "control", "convert", "penalty"):
        assert getattr(weightdecay, name).__name__ == name
