"""Twins: small, of every kind of tensor, with nothing of the original."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.covering import covering
from tests.probing import optimizers as own
from tests.probing.test_probe import parameters
from weightdecay.errors import OptimizerError
from weightdecay.optim.control import control
from weightdecay.probing.probe import probe_step
from weightdecay.probing.progress import progress_keys, stepped_state
from weightdecay.probing.twin import Twins


def test_there_is_a_small_tensor_of_each_kind_in_the_place_of_its_own() -> None:
    params = [
        nn.Parameter(torch.zeros(shape, dtype=dtype))
        for shape, dtype in (
            ((100,), torch.float32), ((50, 60), torch.float32), ((300,), torch.float32), ((50, 60), torch.bfloat16),
            ((50, 1), torch.float32), ((8, 3, 3, 3), torch.float32),
        )
    ]  # fmt: skip
    named = [(f"t{index}", p) for index, p in enumerate(params)]
    twin = Twins(torch.optim.SGD(named, lr=0.1)).make()
    (group,) = twin.optimizer.param_groups
    assert group["param_names"] == ["t1", "t2", "t3", "t4", "t5"]
    assert [tuple(p.shape) for p in group["params"]] == [(12, 12), (12,), (12, 12), (12, 1), (8, 3, 3, 3)]
    assert group["params"][2].dtype == torch.bfloat16


def test_weights_on_no_device_are_tried_on_the_processor() -> None:
    p = nn.Parameter(torch.empty(4, 4, device="meta"))
    twin = Twins(torch.optim.AdamW([p])).make()
    assert twin.params[0][0].device.type == "cpu"


def test_bound_methods_and_inner_optimizers_are_the_copys_own() -> None:
    optimizer = own.BoundMethods(parameters())
    optimizer.inner = torch.optim.SGD(optimizer.param_groups[0]["params"], lr=0.1)  # type: ignore[attr-defined]
    twin: Any = Twins(optimizer).make()
    assert twin.optimizer.chain[0].__self__ is twin.optimizer
    assert twin.optimizer.chain[1].func.__self__ is twin.optimizer
    assert twin.optimizer.inner is not optimizer.inner  # type: ignore[attr-defined]
    assert twin.optimizer.inner.param_groups[0]["params"] == twin.params[0]
    assert optimizer.calls == 0


def test_what_is_a_tensor_in_a_group_stays_one() -> None:
    optimizer = own.WantsTensorLr(parameters(), lr=0.1)
    twin = Twins(optimizer).make()
    twin.set(lr=0.5)
    assert isinstance(twin.optimizer.param_groups[0]["lr"], Tensor)
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.1)


def test_state_is_cut_from_the_real_one_so_that_the_phase_is_kept() -> None:
    params = parameters()
    optimizer = own.Lookahead(params, k=5)
    for _ in range(3):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
    twins = Twins(optimizer)
    assert twins.manner.keeps_phase
    twin = twins.make()
    assert [state["step"] for state in twin.optimizer.state.values()] == [3, 3]
    for small, real in zip(twin.optimizer.state.values(), optimizer.state.values(), strict=True):
        part = real["slow"][tuple(slice(0, n) for n in small["slow"].shape)]
        assert torch.equal(small["slow"], part)
        assert small["slow"].data_ptr() != real["slow"].data_ptr()


def test_progress_is_what_steps_change_in_groups() -> None:
    assert progress_keys(own.ProgressInGroups(parameters())) == {"k"}
    assert progress_keys(own.CachesInGroup(parameters())) == {"buffer"}
    assert progress_keys(torch.optim.AdamW(parameters())) == frozenset()


def test_the_progress_of_schedule_free_is_seen_whatever_its_mode() -> None:
    schedulefree = pytest.importorskip("schedulefree")
    assert progress_keys(schedulefree.AdamWScheduleFree(parameters())) >= {"k", "weight_sum", "lr_max"}


def test_the_state_that_a_step_leaves_has_the_axes_of_its_tensor() -> None:
    optimizer = torch.optim.Adafactor(parameters())
    state: Any = stepped_state(optimizer, optimizer.param_groups[0], (13, 17), torch.float32, torch.device("cpu"))
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        "step": (),
        "row_var": (13, 1),
        "col_var": (1, 17),
    }
    broken = own.KeepsModel(parameters(), nn.Linear(2, 2), uses=True)
    assert stepped_state(broken, broken.param_groups[0], (2, 3), torch.float32, torch.device("cpu")) is None


@contextmanager
def default(of: Any) -> Iterator[None]:
    if isinstance(of, torch.dtype):
        before = torch.get_default_dtype()
        torch.set_default_dtype(of)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
    elif of == "within meta":
        with torch.device("meta"):
            yield
    else:
        torch.set_default_device(of)
        try:
            yield
        finally:
            torch.set_default_device(None)


@pytest.mark.parametrize(
    ("of", "make"),
    covering(
        ["meta", "within meta", "cpu", torch.float64, torch.bfloat16, torch.float16],
        [torch.optim.AdamW, own.Plain, torch.optim.Adafactor],
    ),
)
def test_defaults_of_devices_and_dtypes_change_nothing_of_what_is_seen(of: Any, make: Any) -> None:
    optimizer = make(parameters(), lr=0.1, weight_decay=0.1)
    plain = probe_step(optimizer)
    progress = progress_keys(optimizer)
    shapes = {key: value.shape for key, value in state_after_a_step(optimizer).items() if isinstance(value, Tensor)}
    refuses = refused(optimizer)
    with default(of):
        assert probe_step(optimizer) == plain
        assert progress_keys(optimizer) == progress
        within = state_after_a_step(optimizer)
        assert {key: value.shape for key, value in within.items() if isinstance(value, Tensor)} == shapes
        assert not any(value.is_meta for value in within.values() if isinstance(value, Tensor))
        assert refused(optimizer) == refuses


class MakesTensors(own.Plain):
    """Its updates are made wherever tensors are made by default."""

    def change(self, p: Any, group: dict[str, Any]) -> None:
        update = torch.zeros(p.shape, dtype=p.dtype).add_(p.grad)
        p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=float(group["lr"]))


@pytest.mark.parametrize("of", ["meta", "within meta", "cpu"])
def test_what_a_step_makes_has_storage_whatever_the_default_device_is(of: str) -> None:
    optimizer = MakesTensors(parameters())
    plain = probe_step(optimizer)
    assert plain.groups[0].own_decay_is_lr_times_lambda
    with default(of):
        assert probe_step(optimizer) == plain


def state_after_a_step(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    state = stepped_state(optimizer, optimizer.param_groups[0], (13, 17), torch.float32, torch.device("cpu"))
    assert state is not None
    return state


def refused(optimizer: torch.optim.Optimizer) -> bool:
    try:
        control(optimizer, rule="fixed").remove()
    except OptimizerError:
        return True
    return False
