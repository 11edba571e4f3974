"""Probing leaves everything as it was: weights, state, groups, generators, hooks, classes and models."""

from __future__ import annotations

import copy
import itertools
import random
from collections import deque
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from tests.probing import optimizers as own
from tests.probing.test_probe import parameters
from weightdecay.errors import OptimizerError
from weightdecay.optim.control import control
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


# --- what is outside of the optimizer and shared with its twins

log: list[int] = []
table: dict[str, Any] = {"steps": 0, "inner": [1]}
names: set[int] = set()
last: deque[int] = deque(maxlen=3)
steps = 0
noise = torch.Generator().manual_seed(5)
numpys_noise = np.random.default_rng(5)
old_numpys_noise = np.random.RandomState(5)
pythons_noise = random.Random(5)
thing = SimpleNamespace(steps=0, log=[])
numbers = itertools.count()
ids: set[int] = set()


class Helper:
    """Counts in its class."""

    calls = 0

    def count(self) -> None:
        Helper.calls += 1


def helper() -> None:
    table["by helper"] = table.get("by helper", 0) + 1


class MovesWhatIsOutside(own.Plain):
    """Its step calls what its class is given as `move`, and decays as AdamW."""

    calls = 0
    log: ClassVar[list[int]] = []
    table: ClassVar[dict[str, Any]] = {"log": []}
    noise = torch.Generator().manual_seed(6)

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.helper = Helper()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        self.move()
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(p.grad.sign(), alpha=float(group["lr"]))

    def move(self) -> None:
        raise NotImplementedError


def of_variable() -> None:
    global steps
    steps += 1


def by_closure() -> tuple[Any, Any]:
    count, kept, held = 0, [1], torch.Generator().manual_seed(1)

    def move(self: Any) -> None:  # noqa: ARG001
        nonlocal count
        count += 1
        kept.append(count)
        torch.rand(3, generator=held)

    return move, lambda _: (count, list(kept), held.get_state())


def by_default() -> tuple[Any, Any]:
    held = torch.Generator().manual_seed(1)

    def move(self: Any, generator: torch.Generator = held) -> None:  # noqa: ARG001
        torch.rand(3, generator=generator)

    return move, lambda _: held.get_state()


MOVES: dict[str, tuple[Any, Any]] = {
    "a class's number": (lambda o: setattr(type(o), "calls", type(o).calls + 1), lambda o: type(o).calls),
    "a new attribute of a class": (lambda o: setattr(type(o), "new", 1), lambda o: hasattr(type(o), "new")),
    "a class's list": (lambda o: o.log.append(1), lambda o: list(o.log)),
    "a list within a class's dict": (lambda o: o.table["log"].append(1), lambda o: list(o.table["log"])),
    "a class's generator": (lambda o: torch.rand(3, generator=o.noise), lambda o: o.noise.get_state()),
    "a class of what hangs on it": (lambda o: o.helper.count(), lambda _: Helper.calls),
    "a module's list": (lambda _: log.append(1), lambda _: list(log)),
    "a module's dict": (lambda _: table.update(steps=table["steps"] + 1), lambda _: dict(table)),
    "a list within a module's dict": (lambda _: table["inner"].append(1), lambda _: list(table["inner"])),
    "a module's set": (lambda _: names.add(len(names)), lambda _: set(names)),
    "a module's deque": (lambda _: last.append(len(last) + 1), lambda _: list(last)),
    "a module's number": (lambda _: of_variable(), lambda _: steps),
    "a module's generator": (lambda _: torch.rand(3, generator=noise), lambda _: noise.get_state()),
    "numpy's generator": (lambda _: numpys_noise.random(), lambda _: str(numpys_noise.bit_generator.state)),
    "numpy's old generator": (
        lambda _: old_numpys_noise.rand(),
        lambda _: str(old_numpys_noise.get_state(legacy=False)),
    ),
    "python's generator": (lambda _: pythons_noise.random(), lambda _: pythons_noise.getstate()),
    "a module's object": (lambda _: setattr(thing, "steps", thing.steps + 1), lambda _: thing.steps),
    "a list of a module's object": (lambda _: thing.log.append(1), lambda _: list(thing.log)),
    "by another function": (lambda _: helper(), lambda _: dict(table)),
    "another module's list": (lambda _: own.journal.append(1), lambda _: list(own.journal)),
    "a closure's": by_closure(),
    "a default's generator": by_default(),
}


def moving(move: Any) -> Any:
    return type("Moves", (MovesWhatIsOutside,), {"move": move, "__module__": __name__})(parameters())


@pytest.mark.parametrize("what", MOVES)
def test_what_a_step_moves_outside_is_put_back(what: str) -> None:
    move, read = MOVES[what]
    optimizer = moving(move)
    before = read(optimizer)
    assert probe_step(optimizer, hooks=True).opaque == ""
    progress_keys(optimizer)
    stepped_state(optimizer, optimizer.param_groups[0], (2, 3), torch.float32, torch.device("cpu"))
    held = control(optimizer)
    assert same(read(optimizer), before)
    optimizer.param_groups[0]["params"][0].grad = torch.zeros(5)
    optimizer.param_groups[0]["params"][1].grad = torch.zeros(20, 30)
    optimizer.step()
    after = read(optimizer)
    assert not same(after, before)
    held.remove()
    if what != "a new attribute of a class":
        optimizer.step()
        assert not same(read(optimizer), after)


def test_what_a_hook_moves_is_put_back() -> None:
    seen: list[int] = []
    optimizer = torch.optim.AdamW(parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: seen.append(1))
    assert probe_step(optimizer, hooks=True).opaque == ""
    assert seen == []


def test_an_iterator_that_only_a_constructor_moves_is_no_reason_to_refuse() -> None:
    class Numbered(own.Plain):
        serial = itertools.count()

        def __init__(self, params: Any) -> None:
            super().__init__(params)
            self.number = next(Numbered.serial)

    optimizer = Numbered(parameters())
    assert probe_step(optimizer).opaque == ""
    assert next(Numbered.serial) == 1


@pytest.mark.parametrize("where", ["variable", "class"])
def test_what_cannot_be_put_back_is_refused_before_it_moves(where: str) -> None:
    optimizer = moving((lambda _: next(numbers)) if where == "variable" else (lambda o: next(o.numbers)))
    optimizer.__class__.numbers, before = numbers, repr(numbers)
    assert "numbers`, which nobody can put back" in probe_step(optimizer).opaque
    assert repr(numbers) == before  # none has been taken
    with pytest.raises(OptimizerError, match="nobody can put back"):
        control(optimizer)


@pytest.mark.parametrize("by", ["a module's set", "a closure's set", "a class's list", "a closure's tensors"])
def test_tensors_told_apart_by_what_is_outside_are_refused(by: str) -> None:
    optimizer: Any = moving({"a module's set": lambda _: len(ids)}.get(by, lambda _: None))
    p = optimizer.param_groups[0]["params"][0]
    ids.clear()
    if by == "a module's set":
        ids.add(id(p))
    elif by == "a class's list":
        type(optimizer).told = [id(p)]
    else:
        skip: Any = {id(p)} if by == "a closure's set" else [p]
        type(optimizer).move = lambda _: len(skip)
    assert "may tell its tensors apart" in probe_step(optimizer).opaque
    with pytest.raises(OptimizerError, match="may tell its tensors apart"):
        control(optimizer)
