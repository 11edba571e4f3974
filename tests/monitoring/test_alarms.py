"""Each alarm provoked, and none of them in runs in which nothing is wrong."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, get_args

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import weightdecay
from tests.monitoring.noise import Matrices, of_tensors, train, watched
from weightdecay import Alarm, Monitor
from weightdecay.auditing.findings import CODES
from weightdecay.monitoring.alarms import Code, Judge
from weightdecay.schedules import Cosine, Warmup

SHAPES = ((40, 60), (60, 40))
AUDITS_OWN = {"lost-to-rounding", "not-decaying", "decays-twice", "decays-exempt", "coupled", "exempt-matrix"}


def adamw(λ: float = 0.1, lr: float = 1e-3) -> Callable[[Any], Any]:
    return lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=λ)


def raised(monitor: Monitor) -> dict[str, Alarm]:
    assert len({(alarm.code, alarm.tensors) for alarm in monitor.alarms}) == len(monitor.alarms), "told twice"
    assert [row for row in monitor.rows if row["kind"] == "alarm"] == [
        {**alarm.row(), "tokens": None} for alarm in monitor.alarms
    ]
    return {alarm.code: alarm for alarm in monitor.alarms}


def test_codes_that_are_the_audits_are_spelt_as_the_audit_spells_them() -> None:
    assert set(get_args(Code)) & set(CODES) == AUDITS_OWN


@pytest.mark.parametrize("ours", [True, False])
def test_decay_that_bfloat16_rounds_away(ours: bool) -> None:
    kind: Any = weightdecay.AdamW if ours else torch.optim.AdamW
    with pytest.warns(weightdecay.PrecisionWarning) if ours else nullcontext():
        found = raised(
            watched(Matrices(*SHAPES, dtype=torch.bfloat16), lambda p: kind(p, lr=1e-3, weight_decay=0.1), 40)
        )
    alarm = found["lost-to-rounding"]
    assert alarm.severity == "error"
    assert alarm.tensors == ("layers.0.weight", "layers.1.weight")
    assert alarm.asked == pytest.approx(1e-4)
    assert abs(alarm.realised or 0.0) < 1e-5
    assert "bfloat16 rounding" in alarm.title


def test_decay_under_the_floor_of_float32() -> None:
    found = raised(watched(Matrices(*SHAPES), adamw(λ=0.01, lr=1e-6), 30))
    assert found["lost-to-rounding"].realised == 0.0


def test_the_tail_of_an_anneal_is_no_loss() -> None:
    lr = Cosine(1e-3, 1e-8, steps=60)
    assert not raised(watched(Matrices(*SHAPES), adamw(λ=0.1), 50, lr=lr))


def test_the_start_of_a_warm_up_is_no_loss() -> None:
    """Each step is under the floor of float32, and the next is larger."""
    assert not raised(watched(Matrices(*SHAPES), adamw(λ=0.1), 40, lr=lambda step: 1e-9 * (step + 1)))


def test_a_second_decay_in_the_loop() -> None:
    model = Matrices(*SHAPES)

    @torch.no_grad()
    def again(_: int) -> None:
        for p in model.parameters():
            p.mul_(1 - 1e-4)

    found = raised(watched(model, adamw(), 30, between=again))
    alarm = found["decays-twice"]
    assert alarm.realised == pytest.approx(2e-4, rel=0.01)
    assert "between steps" in alarm.detail
    assert alarm.severity == "error"


@pytest.mark.parametrize("before_the_monitor", [True, False])
def test_a_second_decay_in_a_hook(before_the_monitor: bool) -> None:
    model = Matrices(*SHAPES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)

    @torch.no_grad()
    def again(*_: Any) -> None:
        for p in model.parameters():
            p.mul_(1 - 1e-4)

    handle = optimizer.register_step_pre_hook(again) if before_the_monitor else None
    monitor = Monitor(model, optimizer, interval=5)
    handle = handle or optimizer.register_step_pre_hook(again)
    train(model, optimizer, 30)
    assert raised(monitor)["decays-twice"].realised == pytest.approx(2e-4, rel=0.01)


def test_a_decay_that_nobody_asked_for() -> None:
    model = Matrices(*SHAPES)

    @torch.no_grad()
    def shrink(_: int) -> None:
        for p in model.parameters():
            p.mul_(1 - 1e-4)

    found = raised(watched(model, adamw(λ=0.0), 30, between=shrink))
    assert found["decays-exempt"].realised == pytest.approx(1e-4, rel=0.01)


class Undone(torch.optim.AdamW):
    """Makes good what its own decay takes."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.div_(1 - group["lr"] * group["weight_decay"])
        return super().step(closure)


def test_a_step_that_takes_nothing_of_what_is_asked() -> None:
    found = raised(watched(Matrices(*SHAPES), lambda p: Undone(p, lr=1e-3, weight_decay=0.1), 30))
    assert found["not-decaying"].severity == "error"
    assert "audit" in found["not-decaying"].detail


def test_a_norm_that_nothing_holds() -> None:
    found = raised(watched(Matrices(*SHAPES, std=0.01), adamw(λ=0.0, lr=1e-2), 60))
    assert found["norm-growing"].severity == "warning"
    assert "nothing decays" in found["norm-growing"].detail


def test_a_norm_that_leaves_what_holds_it() -> None:
    """Weights that are multiplied behind the optimizer's back, again and again."""
    model = Matrices(*SHAPES, std=0.02)

    @torch.no_grad()
    def grow(_: int) -> None:
        for p in model.parameters():
            p.mul_(1.05)

    found = raised(watched(model, adamw(), 80, between=grow))
    assert "where η and λ would hold it" in found["norm-growing"].detail


@pytest.mark.parametrize("λ", [0.0, 0.1])
def test_a_table_that_grows_is_as_many_do(λ: float) -> None:
    """Exempt, as in many a plan, or decaying as asked, with rows that seldom come and are led by no noise."""
    table = nn.Embedding(50, 20)
    nn.init.normal_(table.weight, std=1e-3)
    optimizer = torch.optim.AdamW(table.parameters(), lr=3e-3, weight_decay=λ)
    with Monitor(nn.Sequential(table), optimizer, interval=5) as monitor:
        for _ in range(80):
            table.weight.grad = table.weight.sign().detach()
            table.weight.grad.neg_()
            optimizer.step()
    assert of_tensors(monitor)[-1]["weight_rms"] > 50 * of_tensors(monitor)[0]["weight_rms"] / 5
    assert not monitor.alarms


def test_a_spectral_norm_above_its_bound() -> None:
    model = Matrices(*SHAPES, std=0.1)

    @torch.no_grad()
    def scale(step: int) -> None:
        if step == 11:
            for p in model.parameters():
                p.mul_(20)

    make = lambda p: weightdecay.Muon(p, lr=1e-2, weight_decay=1.0)  # noqa: E731
    found = raised(watched(model, make, 30, between=scale))
    assert found["over-bound"].severity == "error"
    assert not raised(watched(Matrices(*SHAPES, std=0.1), make, 30))


def test_a_decay_that_comes_to_nothing_over_the_run() -> None:
    found = raised(watched(Matrices(*SHAPES), adamw(), 40, steps=400))
    assert found["decay-too-small"].tensors == ()
    assert "0.04 over 400 steps" in found["decay-too-small"].title
    assert not raised(watched(Matrices(*SHAPES), adamw(), 40, steps=10_000))
    assert not raised(watched(Matrices(*SHAPES), adamw(), 40)), "of a run of unknown length nothing is said"


def test_in_a_warm_up_nothing_is_said_of_the_whole_run() -> None:
    warmup = Warmup(2000, then=Cosine(1e-3, 0.0, steps=8_000))
    assert not raised(watched(Matrices(*SHAPES), adamw(λ=1.0), 60, steps=10_000, lr=warmup))


def test_weights_that_are_not_finite() -> None:
    model = Matrices(*SHAPES)

    @torch.no_grad()
    def spoil(step: int) -> None:
        if step == 11:
            model.weights()[0][0, 0] = torch.nan

    monitor = watched(model, adamw(), 30, between=spoil)
    alarm = raised(monitor)["not-finite"]
    assert alarm.tensors == ("layers.0.weight",)
    assert of_tensors(monitor, "layers.0.weight")[-1]["weight_rms"] is None


def test_rows_that_were_written_raise_the_alarms_that_the_run_has_raised() -> None:
    monitor = watched(Matrices(*SHAPES, std=0.01), adamw(λ=0.0, lr=1e-2), 60)
    judge, again = Judge(), []
    for step in range(61):
        again += judge.read([dict(row) for row in of_tensors(monitor) if row["step"] == step])
    assert again == monitor.alarms
    assert [Alarm.of_row(alarm.row()) for alarm in again] == again


# --- runs in which nothing is wrong


class Small(nn.Module):
    """A language model of a table, two blocks and a head: it learns to add."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(32, 24)
        self.first, self.second = nn.Linear(48, 64), nn.Linear(64, 24)
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 32, bias=False)

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        x = self.table(pairs).flatten(1)
        return torch.as_tensor(self.head(self.norm(self.second(F.gelu(self.first(x))))))


HEALTHY: dict[str, Callable[[nn.Module], Any]] = {
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=3e-3, weight_decay=0.5),
    "adamw by plan": lambda m: weightdecay.AdamW(weightdecay.plan(m, 0.5, trace=False), lr=3e-3),
    "adamw, small λ": lambda m: torch.optim.AdamW(m.parameters(), lr=3e-3, weight_decay=0.1),
    "independent": lambda m: weightdecay.AdamW(
        weightdecay.plan(m, 1e-3, trace=False), lr=3e-3, rule="independent", peak_lr=3e-3
    ),
    "cautious": lambda m: weightdecay.AdamW(weightdecay.plan(m, 0.5, trace=False), lr=3e-3, rule="cautious"),
    "lion": lambda m: weightdecay.Lion(weightdecay.plan(m, 2.0, trace=False), lr=3e-4),
    "muon": lambda m: weightdecay.Muon(weightdecay.plan(m, 0.5, trace=False), lr=3e-3),
    "adam with l2": lambda m: torch.optim.Adam(m.parameters(), lr=3e-3, weight_decay=1e-4),
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-3),
    "adafactor": lambda m: weightdecay.Adafactor(weightdecay.plan(m, 0.5, trace=False), lr=3e-3),
}


@pytest.mark.parametrize(("name", "schedule"), [(name, place % 2 == 0) for place, name in enumerate(HEALTHY)])
def test_a_run_in_which_nothing_is_wrong_raises_no_alarm(name: str, schedule: bool) -> None:
    torch.manual_seed(0)
    model, steps = Small(), 200
    optimizer = HEALTHY[name](model)
    peaks = [group["lr"] for group in optimizer.param_groups]
    course = Warmup(20, then=Cosine(1.0, 0.0, steps=steps - 20))
    with Monitor(model, optimizer, interval=10, steps=steps) as monitor:
        for step in range(steps):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * course(step) if schedule else peak
            pairs = torch.randint(32, (32, 2))
            torch.autograd.backward(F.cross_entropy(model(pairs), pairs.sum(1) % 32))
            optimizer.step()
            optimizer.zero_grad()
    assert of_tensors(monitor)
    assert [str(alarm) for alarm in monitor.alarms if alarm.code != "decay-too-small"] == []
