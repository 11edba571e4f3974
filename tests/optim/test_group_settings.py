"""Settings that are no settings, groups that are added, tensors without elements: clear words, and nothing moved."""

from __future__ import annotations

import copy
import decimal
import fractions
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import weightdecay
from weightdecay.errors import OptimizerError, ScheduleError
from weightdecay.optim.precision import PrecisionWarning
from weightdecay.schedules import WarmupStableDecay

NAMES = ["AdamW", "AdamL2", "Lion", "SGDW", "Adafactor", "Muon"]
every = pytest.mark.parametrize("name", NAMES)


def matrix() -> nn.Parameter:
    p = nn.Parameter(torch.ones(3, 4))
    p.grad = torch.full((3, 4), 0.1)
    return p


def made(name: str, params: Any, **settings: Any) -> Any:
    return getattr(weightdecay, name)(params, **settings)


@every
@pytest.mark.parametrize(
    "value", ["1e-3", True, None, [1e-3], object(), complex(1, 0), float("nan"), float("inf"), -1.0]
)
@pytest.mark.parametrize("key", ["lr", "weight_decay"])
def test_an_lr_or_lambda_that_is_no_number_is_refused_by_name(name: str, key: str, value: Any) -> None:
    said = {"lr": "Invalid learning rate", "weight_decay": "Invalid weight_decay value"}[key]
    with pytest.raises(OptimizerError, match=said):
        made(name, [matrix()], **{key: value})
    with pytest.raises(OptimizerError, match=rf"{said}.*group 0 \('mine'\)"):
        made(name, [{"params": [matrix()], key: value, "name": "mine"}])
    optimizer = made(name, [matrix()])
    with pytest.raises(OptimizerError, match=rf"{said}.*group 1"):
        optimizer.add_param_group({"params": [matrix()], key: value})


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("AdamW", {"betas": 0.9}, "Invalid betas"),
        ("AdamW", {"betas": ("0.9", 0.99)}, "beta parameter at index 0"),
        ("AdamW", {"eps": "1e-8"}, "Invalid epsilon value"),
        ("AdamW", {"amsgrad": "no"}, "Invalid amsgrad: 'no'.*True or False"),
        ("AdamW", {"foreach": "yes"}, "Invalid foreach: 'yes'.*None"),
        ("AdamW", {"fused": 1}, "Invalid fused: 1"),
        ("AdamW", {"compiled": "yes"}, "Invalid compiled: 'yes'"),
        ("AdamW", {"maximize": 0}, "Invalid maximize: 0"),
        ("AdamW", {"rule": "independent", "peak_lr": "6e-4"}, "Invalid peak_lr: '6e-4'"),
        ("AdamW", {"rule": 3}, "unknown rule '3'"),
        ("AdamW", {"rounding": 16}, "unknown rounding '16'"),
        ("Lion", {"maximize": "no"}, "Invalid maximize"),
        ("Lion", {"betas": None}, "Invalid betas"),
        ("SGDW", {"momentum": "0.9"}, "Invalid momentum value"),
        ("SGDW", {"momentum": True}, "Invalid momentum value: True"),
        ("SGDW", {"dampening": "0"}, "Invalid dampening value"),
        ("SGDW", {"nesterov": "yes", "momentum": 0.9}, "Invalid nesterov"),
        ("Adafactor", {"eps": 1e-8}, "Invalid eps: 1e-08.*two numbers"),
        ("Adafactor", {"eps": ("a", 1e-3)}, "epsilon1"),
        ("Adafactor", {"beta2_decay": "-0.8"}, "beta2_decay"),
        ("Adafactor", {"d": None}, "d should be"),
        ("Adafactor", {"factored": "yes"}, "Invalid factored"),
        ("Muon", {"momentum": None}, "Invalid momentum value"),
        ("Muon", {"equal_rows": 1}, "Invalid equal_rows"),
        ("Muon", {"ns_steps": True}, "Invalid ns_steps"),
        ("Muon", {"ns_dtype": "flaot16"}, "Invalid ns_dtype: 'flaot16'"),
        ("Muon", {"ns_coefficients": (3.4, -4.7)}, "Invalid ns_coefficients.*three numbers"),
        ("Muon", {"adjust_lr_fn": "orignal"}, "orignal is not supported.*did you mean 'original'"),
        ("Muon", {"orthogonalisation": np.ones(2)}, "unknown orthogonalisation"),
        ("SGDW", {"nesterov": True}, "Nesterov momentum requires a momentum and zero dampening"),
        ("SGDW", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "Nesterov momentum requires"),
        ("SGDW", {"lr": torch.tensor(True)}, "Invalid learning rate"),
        ("Lion", {"lr": 10**400}, "Invalid learning rate"),
        ("AdamW", {"eps": fractions.Fraction(10**400)}, "Invalid epsilon value"),
        ("AdamW", {"rule": np.ones(2)}, "unknown rule"),
    ],
)
def test_settings_of_the_wrong_type_are_refused_by_name(name: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(OptimizerError, match=said):
        made(name, [matrix()], **settings)
    if "compiled" not in settings:  # the optimizer's, not a group's
        with pytest.raises(OptimizerError, match=f"{said}|{said.partition('.')[0]}"):
            made(name, [matrix()]).add_param_group({"params": [matrix()], **settings})


@every
@pytest.mark.parametrize("params", [None, 1, 0.5, True])
def test_what_is_no_parameters_at_all_is_said(name: str, params: Any) -> None:
    with pytest.raises(OptimizerError, match=r"params is .*give a decay plan"):
        made(name, params)


def test_all_faults_come_at_once() -> None:
    with pytest.raises(OptimizerError) as caught:
        made("AdamW", [{"params": [matrix()], "weigth_decay": 0.5}], lr="x", amsgrad="no", rounding="stochstic")
    assert len(caught.value.faults) == 4


@every
@pytest.mark.parametrize("path", [{}, {"foreach": True}, {"fused": True}], ids=str)
def test_lambda_may_be_a_tensor_with_an_axis(name: str, path: dict[str, bool]) -> None:
    if "fused" in path and name in ("Lion", "Adafactor"):
        pytest.skip("has no fused kernel")
    p, q = matrix(), matrix()
    rule = {"rule": "l2"} if name == "SGDW" else {}
    made(name, [p], weight_decay=torch.tensor([0.5]), **rule, **path).step()
    made(name, [q], weight_decay=0.5, **rule, **path).step()
    assert torch.equal(p, q)


@every
@pytest.mark.parametrize(
    "value", [np.array(1e-3), np.float32(1e-3), np.float64(1e-3), decimal.Decimal("1e-3"), fractions.Fraction(1, 1000)]
)
def test_numbers_of_every_kind_are_numbers(name: str, value: Any) -> None:
    p, q = matrix(), matrix()
    made(name, [p], lr=value, weight_decay=0.1).step()
    made(name, [{"params": [q], "lr": float(value)}], weight_decay=0.1).step()
    assert torch.equal(p, q)


@every
@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("weigth_decay", "weight_decay"),
        ("rul", "rule"),
        ("roundng", "rounding"),
        ("peak_lrr", "peak_lr"),
        ("Lr", "lr"),
        ("weightDecay", "weight_decay"),
        ("wd", "weight_decay"),
        ("learning_rate", "lr"),
    ],
)
def test_a_misspelt_key_of_a_group_brings_the_nearest(name: str, key: str, meant: str) -> None:
    with pytest.raises(OptimizerError, match=f"'{key}', which nothing reads: did you mean '{meant}'"):
        made(name, [{"params": [matrix()], key: 0.5}])
    optimizer = made(name, [matrix()])
    with pytest.raises(OptimizerError, match=f"did you mean '{meant}'"):
        optimizer.add_param_group({"params": [matrix()], key: 0.5})


@every
def test_keys_of_schedulers_plans_and_users_are_no_misspelt_ones(name: str) -> None:
    keys = {
        "initial_lr": 0.1,
        "max_lr": 0.1,
        "lr_multiplier": 1.0,
        "decay_multiplier": 0.5,
        "lr_scale": 1.0,
        "layer": 3,
    }
    assert made(name, [{"params": [matrix()], **keys}]).param_groups[0]["layer"] == 3


# --- groups that grow


@every
def test_named_and_nameless_tensors_join_each_other(name: str) -> None:
    net = nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 4)})
    settings = {"lr": 0.01, "momentum": 0.9} if name in ("SGDW", "Muon") else {"lr": 0.01}
    named = made(name, list(net["first"].named_parameters()), **settings)
    named.add_param_group({"params": net["second"].parameters(), "lr": 0.02})
    assert [len(group["param_names"]) for group in named.param_groups] == [
        len(group["params"]) for group in named.param_groups
    ]
    assert len(weightdecay.state_by_name(named, net)) == 0

    nameless = made(name, net["first"].parameters(), **settings)
    nameless.add_param_group({"params": list(net["second"].named_parameters()), "lr": 0.02})
    for optimizer in (named, nameless):
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        assert len(optimizer.state) == 4


@every
def test_a_plans_optimizer_takes_what_was_frozen_with_and_without_names(name: str) -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    net[0].requires_grad_(False)
    for given in (net[0].parameters(), net[0].named_parameters()):
        optimizer = made(name, weightdecay.plan(net), lr=1e-3)
        optimizer.add_param_group({"params": given, "weight_decay": 0.0})
        assert sum(len(group["params"]) for group in optimizer.param_groups) == 4


# --- nothing there, or hardly anything


@every
def test_empty_groups_and_empty_tensors_are_stepped_over(name: str) -> None:
    p = matrix()
    optimizer = made(name, [{"params": [p]}, {"params": []}], lr=0.01, weight_decay=0.1)
    empty = [nn.Parameter(torch.zeros(shape)) for shape in ((4, 0), (0, 4), (0,))]
    for each in empty:
        each.grad = torch.zeros_like(each)
        optimizer.add_param_group({"params": [each]})
    if name == "Muon":  # which may also be told that an empty matrix is a matrix
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(5, 0))], "algorithm": "muon"})
        optimizer.param_groups[-1]["params"][0].grad = torch.zeros(5, 0)
    before = p.detach().clone()
    for _ in range(2):
        optimizer.step()
    assert not torch.equal(p, before)
    assert bool(p.isfinite().all())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "AdamL2"])
@pytest.mark.parametrize("lr", [5e-324, 1e-310, 1e-40, 1e-31, 0.0])
@pytest.mark.parametrize("fused", [None, True])
def test_a_decay_that_does_not_know_the_lr_is_exact_at_any_lr(name: str, lr: float, fused: bool | None) -> None:
    """A kernel would have to be given λ = a/lr, which has no float32, or none at all."""
    settings = {"fused": fused} if name in ("AdamW", "SGDW", "Muon") else {}
    p = matrix()
    p.grad = torch.zeros_like(p)
    made(name, [p], lr=lr, weight_decay=0.1, rule="fixed", **settings).step()
    assert torch.allclose(p.detach(), torch.full((3, 4), 0.9), rtol=1e-6)


def test_a_shape_with_an_axis_of_one_is_no_matrix_for_muon() -> None:
    shapes = [(4, 4), (3, 4, 4), (1, 4), (4, 1), (1, 1, 4), (64, 1, 4), (4,), (2, 2, 2, 2), ()]
    optimizer = weightdecay.Muon([nn.Parameter(torch.ones(shape)) for shape in shapes])
    taken = {tuple(p.shape) for g in optimizer.param_groups if g["algorithm"] == "muon" for p in g["params"]}
    assert taken == {(4, 4), (3, 4, 4)}


def test_a_step_with_an_lr_that_became_a_word_changes_nothing() -> None:
    p = matrix()
    optimizer = made("AdamW", [p])
    for key in ("lr", "weight_decay"):
        optimizer.param_groups[0] |= {"lr": 1e-3, "weight_decay": 0.1} | {key: "0.1"}
        with pytest.raises(OptimizerError, match=f"{key} must be a number, got '0.1'"):
            optimizer.step()
    assert torch.equal(p, torch.ones(3, 4))
    assert not optimizer.state


def test_bfloat16_groups_that_join_are_warned_of() -> None:
    optimizer = made("AdamW", [matrix()])
    with pytest.warns(PrecisionWarning):
        optimizer.add_param_group({"params": [nn.Parameter(torch.randn(64, 64).bfloat16())]})


NO_WORDS = [np.array(["zero", "one"]), np.array([0.0, 1.0]), ["zero"], {"zero"}, 1, object(), torch.zeros(2)]


@pytest.mark.parametrize("value", NO_WORDS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(("parameter", "called"), [
    ("target", lambda value: weightdecay.Rule("mine", target=value)),
    ("mask", lambda value: weightdecay.Rule("mine", mask=value)),
    ("shape", lambda value: WarmupStableDecay(0.1, warmup_steps=1, stable_steps=1, decay_steps=1, shape=value)),
    ("on_change", lambda value: weightdecay.load_state_by_name(made("AdamW", [matrix()]), {}, {}, on_change=value)),
])  # fmt: skip
def test_what_is_no_word_where_one_is_chosen_is_refused_with_the_parameters_name(
    parameter: str, called: Any, value: Any
) -> None:
    with pytest.raises((OptimizerError, ScheduleError), match=parameter):
        called(value)


@pytest.mark.parametrize("value", [None, "lr", 1, object()])
def test_settings_to_ignore_that_are_no_names_are_refused_with_the_parameters_name(value: Any) -> None:
    net = nn.Linear(4, 3)
    optimizer = made("AdamW", net.parameters())
    settings = weightdecay.settings_by_name(optimizer, names=net)
    with pytest.raises(OptimizerError, match="ignore"):
        weightdecay.load_state_by_name(optimizer, {}, settings, names=net, ignore=value)


@pytest.mark.parametrize("settings", [{}, {"foreach": True}, {"foreach": False}], ids=str)
@pytest.mark.parametrize("name", ["AdamW", "AdamL2"])
def test_a_step_for_cuda_graphs_is_refused_by_name_on_a_processor(name: str, settings: dict[str, Any]) -> None:
    p = matrix()
    before = p.detach().clone()
    optimizer = made(name, [{"params": [p], "name": "mine"}], capturable=True, **settings)
    with pytest.raises(OptimizerError, match=r"group 0 \('mine'\).*capturable"):
        optimizer.step()
    assert torch.equal(p, before)


EDITED: dict[str, tuple[Any, str]] = {
    "betas": ((0.9, 2.0), "beta parameter at index 1"),
    "eps": (None, "eps"),
    "maximize": ("no", "Invalid maximize: 'no'"),
    "momentum": ("0.9", "momentum"),
    "ns_steps": (0, "Invalid ns_steps: 0"),
    "d": (None, "Clipping threshold d"),
    "rounding": ("khan", "did you mean 'kahan'"),
    "rule": ("cautios", "did you mean 'cautious'"),
}


@every
@pytest.mark.parametrize("key", EDITED)
def test_a_setting_that_is_edited_into_none_stops_the_next_step_with_nothing_changed(name: str, key: str) -> None:
    p = nn.Parameter(torch.ones(3, 3))
    optimizer = made(name, [p], lr=1e-2, weight_decay=0.1)
    group = optimizer.param_groups[0]
    if key not in group:
        pytest.skip(f"{name} has no {key}")
    for _ in range(2):
        p.grad = torch.full_like(p, 0.5)
        optimizer.step()
    before, state = p.detach().clone(), copy.deepcopy(optimizer.state[p])

    sound, (group[key], words) = group[key], EDITED[key]
    with pytest.raises(OptimizerError, match=words):
        optimizer.step()
    assert torch.equal(p, before)
    assert all(torch.equal(optimizer.state[p][kept], value) for kept, value in state.items())
    group[key] = sound
    optimizer.step()
    assert not torch.equal(p, before)


@pytest.mark.parametrize(
    ("name", "made_with", "edit", "lacking"),
    [
        ("AdamW", {}, {"amsgrad": True}, "max_exp_avg_sq"),
        ("AdamW", {"rule": "cautious", "fused": True}, {"amsgrad": True}, "max_exp_avg_sq"),
        ("AdamL2", {"fused": True}, {"amsgrad": True}, "max_exp_avg_sq"),
        ("Adafactor", {}, {"beta1": 0.9}, "exp_avg"),
        ("Adafactor", {"factored": False}, {"factored": True}, "col_var, row_var"),
        ("Muon", {}, {"algorithm": "adamw"}, "exp_avg, exp_avg_sq"),
    ],
)
def test_a_setting_that_needs_other_state_stops_the_next_step_with_nothing_changed(
    name: str, made_with: dict[str, Any], edit: dict[str, Any], lacking: str
) -> None:
    p = matrix()
    optimizer = made(name, [p], lr=0.1, **made_with)
    optimizer.step()
    group, before = optimizer.param_groups[0], p.detach().clone()
    asked = {key: group[key] for key in edit}
    group |= edit
    with pytest.raises(
        OptimizerError, match=f"group 0: the state of tensor 0 has .* lacks {lacking}: .*other settings"
    ):
        optimizer.step()
    assert torch.equal(p, before)
    group |= asked
    optimizer.step()
    group |= edit
    optimizer.state.clear()
    optimizer.step()


@pytest.mark.parametrize(
    ("name", "fused", "key"),
    [
        ("AdamW", True, "lr"), ("AdamW", True, "weight_decay"), ("AdamW", False, "lr"),
        ("AdamL2", True, "weight_decay"), ("SGDW", False, "lr"), ("SGDW", False, "momentum"),
        ("SGDW", True, "momentum"), ("Muon", False, "momentum"),
        ("AdamW", True, "betas"), ("Lion", False, "betas"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("number", [decimal.Decimal, fractions.Fraction], ids=lambda kind: kind.__name__)
def test_numbers_of_every_kind_may_be_written_into_groups(name: str, fused: bool, key: str, number: Any) -> None:
    params = [matrix(), matrix()]
    settings: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.1} | ({"fused": True} if fused else {})
    for p, value in zip(params, (number("0.25"), 0.25), strict=True):
        optimizer = made(name, [p], **settings, **({"momentum": 0.9} if name == "SGDW" else {}))
        optimizer.step()
        optimizer.param_groups[0][key] = (value, value) if key == "betas" else value
        for _ in range(2):
            optimizer.step()
    assert torch.equal(*params)


def test_a_tensor_that_is_put_into_a_second_group_stops_the_next_step_with_nothing_changed() -> None:
    first, second = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = weightdecay.AdamW([{"params": [first]}, {"params": [second]}], lr=1e-2)
    for p in (first, second):
        p.grad = torch.ones(3)
    optimizer.step()
    before = first.detach().clone()
    optimizer.param_groups[1]["params"].append(first)
    for _ in range(2):
        with pytest.raises(
            OptimizerError, match=r"group 1: tensor 1 of shape .* is in group 0 as well and would decay"
        ):
            optimizer.step()
    assert torch.equal(first, before)
    optimizer.param_groups[0]["params"].clear()
    optimizer.step()


@every
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_tensors_put_into_or_taken_out_of_named_groups_are_stepped_as_in_torch(name: str, rounding: str) -> None:
    params = [nn.Parameter(torch.ones(2, 3, dtype=torch.bfloat16)) for _ in range(4)]
    named = [(f"w{index}", p) for index, p in enumerate(params[:3])]
    optimizer = made(name, [{"params": named[:2]}, {"params": named[2:]}], lr=0.1, weight_decay=0.0, rounding=rounding)
    optimizer.param_groups[0]["params"].append(params[3])
    optimizer.param_groups[1]["params"].pop()
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert [bool((p != 1).all()) for p in params] == [True, True, False, True]
    with pytest.raises(OptimizerError, match="3 of 3 parameters have no name: give the model"):
        weightdecay.state_by_name(optimizer)


def test_an_optimizer_whose_named_groups_were_changed_is_seen_and_controlled() -> None:
    params = [nn.Parameter(torch.ones(shape)) for shape in ((3,), (1, 3))]
    optimizer = torch.optim.AdamW([("w", params[0])], lr=0.1, weight_decay=0.1)
    optimizer.param_groups[0]["params"].append(params[1])
    held = weightdecay.control(optimizer, rule="fixed")
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert [p.flatten().tolist() for p in params] == [pytest.approx([0.9] * 3)] * 2
    held.remove()


def test_names_that_are_not_as_many_as_the_tensors_are_told() -> None:
    params = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    with pytest.raises(OptimizerError, match="group 0 has 2 tensors and 1 names: give one for each"):
        weightdecay.AdamW([{"params": params, "param_names": ["w"]}])


def test_a_vector_among_muons_matrices_stops_the_next_step_with_nothing_changed() -> None:
    p = matrix()
    optimizer = weightdecay.Muon([p], lr=0.1)
    vector = nn.Parameter(torch.ones(3))
    vector.grad = torch.ones(3)
    optimizer.param_groups[0]["params"].append(vector)
    with pytest.raises(OptimizerError, match=r"one has size \(3,\): put it into a group with algorithm='adamw'"):
        optimizer.step()
    assert torch.equal(p, torch.ones(3, 4))


@pytest.mark.parametrize(("name", "other"), [("AdamW", "Adam"), ("AdamL2", "AdamW"), ("Muon", "Adam")])
def test_torchs_flag_for_the_form_of_decay_follows_the_rule_or_is_refused(name: str, other: str) -> None:
    """It would turn AdamW's step into Adam's, under a rule that says otherwise."""
    p, wrong = nn.Parameter(torch.ones(3)), other == "AdamW"
    said = f"decoupled_weight_decay is {wrong} .*rule '.*' is not so"
    with pytest.raises(OptimizerError, match=said):
        made(name, [{"params": [p], "decoupled_weight_decay": wrong}])
    optimizer = made(name, [("w", p)], lr=0.1, weight_decay=0.1)
    optimizer.param_groups[0]["decoupled_weight_decay"] = wrong
    with pytest.raises(OptimizerError, match=said):
        optimizer.step()

    p.grad = torch.ones(3)
    theirs = getattr(torch.optim, other)([("w", p)], lr=0.1, weight_decay=0.1)
    theirs.step()
    optimizer.load_state_dict(theirs.state_dict())
    assert optimizer.param_groups[0]["decoupled_weight_decay"] is not wrong
    optimizer.step()
    with pytest.raises(OptimizerError, match=said):
        weightdecay.load_state_by_name(
            optimizer, weightdecay.state_by_name(theirs), weightdecay.settings_by_name(theirs), on_change="keep"
        )


def test_what_others_schedulers_write_into_a_group_is_theirs() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = weightdecay.AdamW([p], lr=1e-2)
    optimizer.param_groups[0] |= {"base_lr": 1.0, "lr_scale": "of layer 3", "betas_": None}
    p.grad = torch.ones(3)
    optimizer.step()


NO_PARAMS: dict[str, Any] = {
    "a model": nn.Sequential(nn.Linear(2, 2)),
    "one module": nn.Linear(2, 2),
    "a tensor": nn.Parameter(torch.ones(2)),
    "one group": {"params": [nn.Parameter(torch.ones(2))]},
    "tensors and groups": [nn.Parameter(torch.ones(2)), {"params": [nn.Parameter(torch.ones(2))]}],
    "text": "abc",
}


@every
@pytest.mark.parametrize("given", NO_PARAMS)
def test_parameters_that_are_none_are_said_to_be_none(name: str, given: str) -> None:
    with pytest.raises(OptimizerError, match=r"(?s)params is .*: give a decay plan, parameters") as caught:
        made(name, NO_PARAMS[given])
    assert isinstance(caught.value, TypeError)  # as torch's own is


@every
@pytest.mark.parametrize("group", [{"lr": 0.1}, {"params": None}, {"params": "ab"}, [nn.Parameter(torch.ones(2))]])
def test_a_group_to_add_that_is_none_is_said_to_be_none_and_nothing_is_added(name: str, group: Any) -> None:
    optimizer = made(name, [("w", matrix())])
    with pytest.raises(OptimizerError, match=r"(?s)param_group is .*: give a dictionary with params"):
        optimizer.add_param_group(copy.copy(group))
    assert len(optimizer.param_groups) == 1


@every
@pytest.mark.parametrize("given", [matrix(), ("w", matrix())], ids=["nameless", "named"])
def test_an_empty_group_may_be_added(name: str, given: Any) -> None:
    optimizer = made(name, [given])
    optimizer.add_param_group({"params": [], "lr": 0.5})
    optimizer.step()
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 0]
