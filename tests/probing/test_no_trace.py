"""Probing leaves everything as it was: weights, state, groups, generators, hooks, classes and models."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.probing import optimizers as own
from tests.probing.test_probe import parameters
from weightdecay.probing.probe import probe_step
from weightdecay.probing.progress import progress_keys, stepped_state

OWN = [own.Plain, own.BoundMethods, own.StateInConstructor, own.ProgressInGroups, own.CachesInGroup, own.DrawsNumbers]
TORCHS = [torch.optim.AdamW, torch.optim.Adafactor, torch.optim.Adagrad]


def everything(optimizer: torch.optim.Optimizer) -> Any:
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return copy.deepcopy(
        (groups, [optimizer.state.get(p) for p in params], [p.detach() for p in params], [p.grad for p in params])
    )


def numpys() -> Any:
    state: Any = np.random.get_state()
    return state[1]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


@pytest.mark.parametrize("cls", OWN + TORCHS, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("steps", [0, 2])
def test_the_optimizer_is_as_it_was(cls: Any, steps: int) -> None:
    params = parameters()
    optimizer = cls(params, lr=0.01, weight_decay=0.1)
    for p in params:
        p.grad = torch.ones_like(p)
    for _ in range(steps):
        optimizer.step()
    before = everything(optimizer)
    probe_step(optimizer, hooks=True)
    progress_keys(optimizer)
    stepped_state(optimizer, optimizer.param_groups[0], (2, 3), torch.float32, torch.device("cpu"))
    assert same(everything(optimizer), before)


def test_no_generator_moves() -> None:
    optimizer = own.DrawsNumbers(parameters())
    before = torch.get_rng_state(), optimizer.generator.get_state(), random.getstate(), numpys().copy()
    probe_step(optimizer)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(optimizer.generator.get_state(), before[1])
    assert random.getstate() == before[2]
    assert np.array_equal(numpys(), before[3])


def test_no_seed_is_given_to_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    probe_step(own.DrawsNumbers(parameters()))
    assert seeds == []


def test_hooks_for_all_optimizers_do_not_see_it_and_stay() -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    calls: list[Any] = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: calls.append("before")),
        register_optimizer_step_post_hook(lambda *_: calls.append("after")),
    ]
    try:
        optimizer = torch.optim.SGD(parameters(), lr=0.1, weight_decay=0.1)
        optimizer.register_step_pre_hook(lambda *_: calls.append("own"))
        probe_step(optimizer)
        assert calls == []
        optimizer.step()
        assert calls == ["before", "own", "after"]
    finally:
        for handle in handles:
            handle.remove()


def test_no_step_of_a_class_is_patched_or_counted() -> None:
    optimizer = own.Plain(parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    steps = {cls: vars(cls).get("step") for cls in (own.Plain, torch.optim.Adam, torch.optim.Optimizer)}
    probe_step(optimizer, hooks=True)
    assert {cls: vars(cls).get("step") for cls in steps} == steps
    assert not getattr(optimizer, "_opt_called", False)
    assert scheduler.last_epoch == 0


class Counted(nn.Linear):
    copies = 0

    def __deepcopy__(self, memo: Any) -> Any:
        Counted.copies += 1
        return self


def test_no_model_is_copied() -> None:
    model = Counted(3, 3)
    report = probe_step(own.KeepsModel(model.parameters(), model))
    assert (report.opaque, Counted.copies) == ("", 0)
    assert report.groups[0].own_decay_is_lr_times_lambda


def test_a_write_to_what_is_real_is_refused_before_it_happens() -> None:
    before = own.WritesElsewhere.elsewhere.clone()
    report = probe_step(own.WritesElsewhere(parameters()))
    assert "writes to a tensor of shape (3,)" in report.opaque
    assert torch.equal(own.WritesElsewhere.elsewhere, before)


def test_a_hook_that_keeps_the_real_weights_cannot_change_them() -> None:
    params = parameters()
    optimizer = torch.optim.SGD(params, lr=0.1, weight_decay=0.1)
    optimizer.register_step_pre_hook(lambda *_: [p.data.mul_(0.5) for p in params])  # type: ignore[arg-type]
    before = [p.detach().clone() for p in params]
    assert "not the copy's own" in probe_step(optimizer, hooks=True).opaque
    assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))


def test_a_hook_that_sets_the_real_groups_is_seen_and_undone() -> None:
    optimizer = torch.optim.SGD(parameters(), lr=0.1, weight_decay=0.1)

    def halve(*_: Any) -> None:
        optimizer.param_groups[0]["lr"] = 0.05

    optimizer.register_step_pre_hook(halve)
    assert "the settings of group 0" in probe_step(optimizer, hooks=True).opaque
    assert optimizer.param_groups[0]["lr"] == 0.1
