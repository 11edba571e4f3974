"""One group of a kind stands for all of them, and one tensor of a kind for all in its group."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.probing import optimizers as own
from tests.probing import telling_apart
from weightdecay.errors import OptimizerError
from weightdecay.optim.control import control
from weightdecay.probing.kinds import options, sample
from weightdecay.probing.probe import probe_step

Groups = list[dict[str, Any]]


def groups(*settings: dict[str, Any]) -> Groups:
    return [{"params": [nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(4))], **own} for own in settings]


SETTINGS = st.fixed_dictionaries(
    {
        "lr": st.sampled_from([0.1, 0.2]),
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "betas": st.sampled_from([(0.9, 0.99), (0.8, 0.99)]),
    }
)


@given(st.lists(SETTINGS, min_size=1, max_size=6))
def test_a_group_is_stood_for_by_one_with_the_same_options(settings: Groups) -> None:
    optimizer = torch.optim.AdamW(groups(*settings))
    tried = sample(optimizer)
    assert len(tried.groups) == len({options(group) for group in optimizer.param_groups})
    for group, place in zip(optimizer.param_groups, tried.stands_for, strict=True):
        assert options(tried.groups[place]) == options(group)


@pytest.mark.parametrize(
    "other",
    [{"name": "head"}, {"lr": 0.2}, {"lr": torch.tensor(0.1)}, {"nesterov": True}, {"mine": "muon"}, {"mine": [1]}],
    ids=str,
)
def test_a_group_that_differs_in_anything_is_tried_itself(other: dict[str, Any]) -> None:
    optimizer = torch.optim.SGD(groups({}, other, {}), lr=0.1, momentum=0.9)
    assert sample(optimizer).stands_for == [0, 1, 0]


@pytest.mark.parametrize("params", [[torch.ones(4)], [torch.ones(3, 4).double(), torch.ones(4)], [torch.ones(1, 4)]])
def test_a_group_with_tensors_of_other_kinds_is_tried_itself(params: list[torch.Tensor]) -> None:
    other = {"params": [nn.Parameter(p) for p in params]}
    assert sample(torch.optim.SGD([*groups({}), other, *groups({})], lr=0.1)).stands_for == [0, 1, 0]


def test_groups_that_began_at_other_steps_are_tried_apart() -> None:
    optimizer = torch.optim.AdamW(groups({}, {}))
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.add_param_group(groups({})[0])
    assert sample(optimizer).stands_for == [0, 0, 1]


def test_all_groups_are_tried_where_the_optimizer_keeps_a_list_beside_them() -> None:
    assert sample(own.KeepsListOfGroups(groups({}, {}, {}))).stands_for == [0, 1, 2]


def test_a_flag_that_hangs_on_a_tensor_makes_it_another_kind() -> None:
    plain, flagged, other = (nn.Parameter(torch.ones(4)) for _ in range(3))
    flagged.no_decay = True  # type: ignore[attr-defined]
    other.no_decay = False  # type: ignore[attr-defined]
    assert sample(torch.optim.SGD([plain, flagged, other], lr=0.1)).tensors == [[0, 1, 2]]


WAYS_AND_COUNTS = [
    pytest.param(way, count, id=f"{name}-{count}", marks=() if count == (4, 40)[place % 2] else pytest.mark.long)
    for place, (name, way) in enumerate(telling_apart.WAYS.items())
    for count in (4, 40)
]


@pytest.mark.parametrize(("way", "count"), WAYS_AND_COUNTS)
def test_an_optimizer_that_tells_tensors_apart_is_refused_however_it_knows_them(
    way: telling_apart.Way, count: int
) -> None:
    params = [nn.Parameter(torch.ones(6, 5)) for _ in range(count)]
    optimizer = way.make(params, params[2:3])
    (group,) = probe_step(optimizer).groups
    assert (group.opaque, group.decays_apart) == ("", True)
    with pytest.raises(OptimizerError, match="takes more of some of its tensors than of others"):
        control(optimizer, rule="independent", peak_lr=0.1)


# That each way is read is shown above; that none refuses for nothing, by every third of them.
@pytest.mark.parametrize(
    ("way", "count"),
    [
        pytest.param(way, count, id=f"{name}-{count}", marks=[pytest.mark.long] * (place % 3 > 0 or count == 4))
        for place, (name, way) in enumerate(telling_apart.WAYS.items())
        for count in (4, 40)
    ],
)
def test_an_optimizer_that_could_tell_tensors_apart_and_does_not_is_exact(way: telling_apart.Way, count: int) -> None:
    params = [nn.Parameter(torch.ones(6, 5)) for _ in range(count)]
    optimizer = way.make(params, [])
    (group,) = probe_step(optimizer).groups
    assert (group.opaque, group.decays_apart, group.own_decay_is_lr_times_lambda) == ("", False, True)
    assert sum(map(len, sample(optimizer).tensors)) <= 4
    control(optimizer)


def test_numbers_that_each_tensor_has_of_its_own_make_no_kinds() -> None:
    params = [nn.Parameter(torch.ones(4)) for _ in range(1_000)]
    for index, p in enumerate(params):
        p.number, p.is_gain = index, index == 500  # type: ignore[attr-defined]
    assert sample(torch.optim.SGD(params, lr=0.1)).tensors == [[0, 500]]


def test_what_is_seen_of_a_group_is_said_of_all_of_its_kind_under_their_own_names() -> None:
    settings: Groups = [{"weight_decay": 0.1}, {"weight_decay": 0.0}] * 3
    report = probe_step(torch.optim.AdamW(groups(*settings), lr=0.1))
    assert [group.title for group in report.groups] == [f"group {index}" for index in range(6)]
    assert [group.decay_per_step for group in report.groups] == pytest.approx([0.01, 0.0] * 3)
