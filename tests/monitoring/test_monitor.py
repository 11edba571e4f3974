"""What the monitor measures, beside what plain arithmetic says; and that a training does not notice it."""

from __future__ import annotations

import copy
import json
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightdecay
from tests.monitoring.noise import Matrices, of_tensors, train, watched
from weightdecay import ConfigError, Monitor, OptimizerError
from weightdecay.monitoring.rows import Row, role_row
from weightdecay.rules import RULES
from weightdecay.schedules import Cosine

SHAPES = ((40, 60), (30, 20))


def adamw(p: Any, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(p, **{"lr": 1e-2, "weight_decay": 0.5, **options})


def test_a_training_does_not_notice_it() -> None:
    """Bit for bit the same weights and state, and not one random number drawn."""
    weights = []
    for is_watched in (False, True):
        torch.manual_seed(5)
        model = Matrices(*SHAPES)
        optimizer = adamw(model.parameters())
        if is_watched:
            Monitor(model, optimizer, interval=2, sigma_max=True)
        for _ in range(12):
            for p in model.parameters():
                p.grad = torch.randn_like(p)
            optimizer.step()
        weights.append([*model.weights(), *(s["exp_avg_sq"] for s in optimizer.state.values()), torch.rand(3)])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def by_hand(before: Tensor, after: Tensor) -> dict[str, float]:
    w, v = before.double().flatten(), after.double().flatten()
    return {
        "weight_rms": float(w.square().mean().sqrt()),
        "weight_norm": float(w.norm()),
        "angle": float(2 * torch.atan2((w / w.norm() - v / v.norm()).norm(), (w / w.norm() + v / v.norm()).norm())),
    }


DECOUPLED_RULES = [name for name, rule in RULES.items() if not rule.coupled]


@pytest.mark.parametrize("rule", DECOUPLED_RULES)
def test_update_and_cosine_leave_the_decay_out_and_what_was_taken_is_seen(rule: Any) -> None:
    """Beside a twin that does not decay: the same gradients, and from the same weights the same update."""
    λ = 1e-3 if rule in ("independent", "fixed") else 5.0 if rule == "lr_squared" else 0.5
    model = Matrices(*SHAPES, std=0.3)
    optimizer = weightdecay.AdamW(model.parameters(), lr=1e-2, weight_decay=λ, rule=rule, peak_lr=1e-2)
    monitor = Monitor(model, optimizer, interval=3)
    train(model, optimizer, 2)
    twin = copy.deepcopy(model)
    other = weightdecay.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.0)
    state = copy.deepcopy(optimizer.state_dict()["state"])
    other.load_state_dict({"state": state, "param_groups": other.state_dict()["param_groups"]})
    before = [w.detach().clone() for w in model.weights()]
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(8))
        q.grad = p.grad.clone()
    optimizer.step()
    other.step()
    asked = optimizer.param_groups[0]
    for row, w, p, q in zip(of_tensors(monitor), before, model.weights(), twin.weights(), strict=True):
        u = (w - q.detach()).double()
        assert row["update_rms"] == pytest.approx(float(u.square().mean().sqrt()), rel=1e-3)
        assert row["cosine"] == pytest.approx(float((u * w).sum() / (u.norm() * w.norm())), abs=2e-4)
        assert row["decay_seen"] == "step"
        assert row["decay_requested"] == pytest.approx(weightdecay.rules.group_decay_per_step(asked))
        assert row["decay_realised"] == pytest.approx(row["decay_requested"], rel=5e-3)
        assert row["decay_outside"] == 0.0
        for key, value in by_hand(w, p.detach()).items():
            assert row[key] == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("kind", ["AdamW", "Lion", "SGDW", "Muon", "Adafactor"])
def test_each_of_our_optimizers_has_its_decay_seen_or_told(kind: str) -> None:
    make: Any = getattr(weightdecay, kind)
    rows = of_tensors(watched(Matrices(*SHAPES), lambda p: make(p, lr=1e-2, weight_decay=0.1), 10))
    for row in rows:
        assert row["decay_requested"] == pytest.approx(1e-3)
        assert row["decay_realised"] == pytest.approx(1e-3, rel=1e-3)
    told = {"AdamW": {"step"}, "Lion": {"step"}, "SGDW": {"step"}}.get(kind, {"rule"})
    assert {row["decay_seen"] for row in rows} == told


@pytest.mark.parametrize(
    ("make", "theory"),
    [
        (lambda p: torch.optim.NAdam(p, lr=1e-2, weight_decay=0.1, decoupled_weight_decay=True), ""),
        (lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, amsgrad=True), "adamw"),
        (lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, foreach=False), "adamw"),
        (lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, fused=True), "adamw"),
    ],
)
def test_of_others_the_step_or_the_probe_tells(make: Callable[[Any], Any], theory: str) -> None:
    rows = of_tensors(watched(Matrices(*SHAPES), make, 10))
    assert {row["theory"] for row in rows} == {theory}
    for row in rows:
        assert row["decay_seen"] == ("step" if theory else "probe")
        assert row["decay_realised"] == pytest.approx(1e-3, rel=1e-3)


def test_under_control_what_is_asked_is_what_the_rule_asks() -> None:
    for monitor_first in (True, False):
        model = Matrices(*SHAPES)
        optimizer = adamw(model.parameters(), weight_decay=0.1)
        monitor = Monitor(model, optimizer, interval=2) if monitor_first else None
        schedule = Cosine(1e-2, 0.0, steps=20)
        weightdecay.control(optimizer, rule="independent", peak_lr=1e-2, schedule=schedule)
        monitor = monitor or Monitor(model, optimizer, interval=2)
        train(model, optimizer, 10)
        rows = of_tensors(monitor)
        for row in rows:
            assert row["decay_requested"] == pytest.approx(schedule(row["step"] - 1))
            assert row["decay_realised"] == pytest.approx(row["decay_requested"], rel=1e-3)


@pytest.mark.parametrize("rounding", ["master", "kahan", "stochastic"])
def test_of_low_precision_masters_are_measured_where_they_are(rounding: Any) -> None:
    model = Matrices(*SHAPES, dtype=torch.bfloat16)
    monitor = watched(
        model, lambda p: weightdecay.AdamW(p, lr=1e-3, weight_decay=0.1, rounding=rounding), 20
    )  # fmt: skip
    is_master = rounding == "master"
    for row in of_tensors(monitor):
        assert row["master"] is is_master
        assert row["dtype"] == ("float32" if is_master else "bfloat16")
        assert row["decay_realised"] == pytest.approx(1e-4, rel=1e-2)
        assert row["decay_seen"] == ("step" if is_master else "rule")
    assert not monitor.alarms


def test_tensors_take_turns_within_the_budget_and_each_row_has_its_own_step() -> None:
    model = Matrices(*[(32, 32)] * 7)
    monitor = watched(model, adamw, 40, budget_bytes=3 * 32 * 32 * 4)
    rows = of_tensors(monitor)
    by_step = {step: [row["name"] for row in rows if row["step"] == step] for step in range(5, 41, 5)}
    assert [len(names) for names in by_step.values()] == [3, 1, 3, 3, 1, 3, 3, 1]
    assert len({row["name"] for row in rows}) == 7
    assert by_step[5] == by_step[20] == by_step[35], "whose turn it is follows from the step"
    roles = [row for row in monitor.rows if row["kind"] == "decay-role"]
    assert [row["tensors"] for row in roles] == [3, 4, 7, 7, 7, 7, 7, 7]
    assert roles[-1]["oldest_step"] == 30


def test_of_a_tensor_beyond_the_budget_blocks_tell_what_the_whole_would() -> None:
    found = []
    for budget in (1 << 30, 400 * 500 * 4 // 4):
        monitor = watched(Matrices((400, 500), std=0.1), adamw, 10, budget_bytes=budget)
        found.append(of_tensors(monitor)[-1])
    whole, part = found
    assert (whole["measured_elements"], whole["elements"]) == (200_000, 200_000)
    assert 40_000 < part["measured_elements"] <= 50_000
    for key in ("weight_rms", "weight_norm", "update_rms", "angle", "decay_realised", "expected_rms"):
        assert part[key] == pytest.approx(whole[key], rel=0.02), key


def test_the_largest_singular_value_is_that_of_the_matrix() -> None:
    model = Matrices(*SHAPES)
    optimizer = adamw(model.parameters())
    monitor = Monitor(model, optimizer, interval=1, sigma_max=True)
    train(model, optimizer, 10)
    seen = [row["sigma_max"] for row in of_tensors(monitor)[-2:]]
    # Of the weights after the step; the vectors come nearer with each call, from below.
    true = [float(torch.linalg.matrix_norm(w.detach(), 2)) for w in model.weights()]
    assert seen == pytest.approx(true, rel=0.01)
    assert all(s <= t * (1 + 1e-5) for s, t in zip(seen, true, strict=True))


def test_steps_are_counted_and_not_backward_passes() -> None:
    model = nn.Linear(8, 4, bias=False)
    optimizer = adamw(model.parameters())
    with Monitor(model, optimizer, interval=2, batch_tokens=100) as monitor:
        for step in range(12):
            model(torch.randn(3, 8)).sum().backward()
            if step % 3 == 2:
                optimizer.step()
                optimizer.zero_grad()
    assert monitor.done == 4
    assert [row["step"] for row in of_tensors(monitor)] == [2, 4]
    assert of_tensors(monitor)[-1]["memory_steps"] == pytest.approx(math.log(2) / 5e-3)
    assert of_tensors(monitor)[-1]["memory_tokens"] == pytest.approx(100 * math.log(2) / 5e-3)


class Inner(torch.optim.AdamW):
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Wrapper:
    """As frameworks wrap an optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        self.optimizer.step()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups


class WrapperWithHooks(torch.optim.Optimizer):
    """As timm's Lookahead: a place for hooks, and a step that torch never wrapped to run them."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer_step_pre_hooks: Any = OrderedDict()
        self._optimizer_step_post_hooks: Any = OrderedDict()
        self._base_optimizer, self.param_groups = optimizer, optimizer.param_groups

    def step(self, closure: Any = None) -> Any:
        return self._base_optimizer.step(closure)


class Foreign:
    """Steps weights, and is no torch optimizer at all."""

    def __init__(self, params: Any) -> None:
        self.param_groups: list[dict[str, Any]] = [
            {"params": list(params), "lr": 0.1, "weight_decay": 0.1, "momentum": 0.0}
        ]

    @torch.no_grad()
    def step(self) -> None:
        for p in self.param_groups[0]["params"]:
            p.mul_(1 - 0.01).add_(p.grad, alpha=-0.1)


def test_a_step_that_calls_another_is_one() -> None:
    adamw(Matrices((2, 2)).parameters()).step()  # with an instance of the base, torch runs its hooks too
    assert [row["step"] for row in of_tensors(watched(Matrices(SHAPES[0]), lambda p: Inner(p, lr=1e-2), 10))] == [5, 10]


def test_an_optimizer_within_a_wrapper_is_watched() -> None:
    plain = of_tensors(watched(Matrices(*SHAPES), adamw, 10))
    assert of_tensors(watched(Matrices(*SHAPES), lambda p: Wrapper(adamw(p)), 10)) == plain
    assert of_tensors(watched(Matrices(*SHAPES), lambda p: WrapperWithHooks(adamw(p)), 10)) == plain


def test_what_has_no_hooks_is_refused_or_watched_by_hand() -> None:
    model = Matrices(*SHAPES)
    optimizer = Foreign(model.parameters())
    with pytest.raises(OptimizerError, match=r"by_hand=True.*monitor\.step\(\)"):
        Monitor(model, optimizer)
    with pytest.raises(OptimizerError, match="no param_groups"):
        Monitor(model, object(), by_hand=True)

    monitor = Monitor(model, optimizer, interval=2, by_hand=True)
    for _ in range(4):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        with monitor.step():
            optimizer.step()
    rows = of_tensors(monitor)
    assert [row["step"] for row in rows] == [2, 2, 4, 4]
    assert {row["decay_seen"] for row in rows} == {"step"}
    assert all(row["decay_realised"] == pytest.approx(0.01, rel=1e-3) for row in rows)


def test_several_optimizers_are_watched_together() -> None:
    model = Matrices(*SHAPES)
    first, second = model.weights()
    muon: Any = torch.optim.Muon([first], lr=1e-2, weight_decay=0.1)
    other = adamw([second])
    with Monitor(model, [muon, other], interval=2) as monitor:
        train(model, muon, 4, between=lambda _: other.step())
    seen = [(row["step"], row["name"], row["theory"]) for row in of_tensors(monitor)]
    assert seen == [
        (2, "layers.0.weight", "muon"), (2, "layers.1.weight", "adamw"),
        (4, "layers.0.weight", "muon"), (4, "layers.1.weight", "adamw"),
    ]  # fmt: skip


def test_a_step_that_raised_or_was_left_out_is_none() -> None:
    model = Matrices(*SHAPES)
    optimizer: Any = adamw(model.parameters(), fused=True)
    monitor = Monitor(model, optimizer, interval=1)

    def broken() -> float:
        raise ValueError("in the closure")

    train(model, optimizer, 2)
    with pytest.raises(ValueError, match="closure"):
        optimizer.step(broken)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    del optimizer.found_inf
    optimizer.step()
    assert monitor.done == 3
    assert [row["step"] for row in of_tensors(monitor, "layers.0.weight")] == [1, 2, 3]


def test_tensors_that_come_and_go_are_taken_in_and_forgotten() -> None:
    model = Matrices(*SHAPES)
    first, second = model.weights()
    optimizer = adamw([first])
    monitor = Monitor(model, optimizer, interval=5)
    train(model, optimizer, 10)
    optimizer.add_param_group({"params": [second], "lr": 1e-3})
    train(model, optimizer, 10)
    new = nn.Parameter(torch.ones(40, 60))
    model.layers[0].weight = new
    optimizer.param_groups[0]["params"] = [new]
    train(model, optimizer, 10)
    rows = of_tensors(monitor)
    assert [(row["step"], row["name"]) for row in rows if row["name"] == "layers.1.weight"] == [
        (15, "layers.1.weight"), (20, "layers.1.weight"), (25, "layers.1.weight"), (30, "layers.1.weight"),
    ]  # fmt: skip
    assert rows[-1]["lr"] == 1e-3
    assert [row["tensors"] for row in monitor.rows if row["kind"] == "decay-role"] == [1, 1, 2, 2, 2, 2]


def test_a_monitor_that_goes_on_has_the_rows_of_one_that_was_never_stopped() -> None:
    def steps(model: nn.Module, optimizer: Any, first: int, last: int) -> None:
        for step in range(first, last):
            optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step / 10)
            for number, p in enumerate(model.parameters()):
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + number))
            optimizer.step()

    model = Matrices(*SHAPES)
    optimizer = weightdecay.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    monitor = Monitor(model, optimizer, interval=3)
    steps(model, optimizer, 0, 11)
    stopped, state = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
    known = monitor.state_dict()
    steps(model, optimizer, 11, 20)

    again = weightdecay.AdamW(stopped.parameters(), lr=1e-2, weight_decay=0.5)
    again.load_state_dict(state)
    resumed = Monitor(stopped, again, interval=3, done=11)
    resumed.load_state_dict(known)
    steps(stopped, again, 11, 20)
    assert resumed.rows == [row for row in monitor.rows if row["step"] > 11]
    assert len(resumed.rows) == 9


def test_rows_go_to_a_tracker_and_hooks_go_when_it_is_closed() -> None:
    class Kept:
        rows: list[Any] = []  # noqa: RUF012

        def row(self, row: Any) -> None:
            self.rows.append(row)

    model, tracker = Matrices(*SHAPES), Kept()
    optimizer = adamw(model.parameters())
    with Monitor(model, optimizer, interval=2, tracker=tracker, keep=4) as monitor:
        train(model, optimizer, 6)
    assert len(tracker.rows) == 9
    assert monitor.rows == tracker.rows[-4:]
    assert monitor.cost is not None
    train(model, optimizer, 6)
    assert monitor.done == 6
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_an_audit_and_a_probe_on_the_way_leave_no_trace_in_it() -> None:
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10))
    optimizer = adamw(model.parameters())
    monitor = Monitor(model, optimizer, interval=2)
    for step in range(6):
        model(torch.randn(4, 20)).square().mean().backward()
        optimizer.step()
        if step == 2:
            weightdecay.probe(model, optimizer)
            weightdecay.audit(model, optimizer)
        optimizer.zero_grad()
    assert monitor.done == 6
    assert sorted({row["step"] for row in of_tensors(monitor)}) == [2, 4, 6]
    assert not monitor.alarms


def test_a_plan_tells_roles_and_hidden_matrices() -> None:
    model = weightdecay.GPT(weightdecay.recipe("gpt3:nano").model)
    plan = weightdecay.plan(model, trace=False)
    optimizer = weightdecay.AdamW(plan, lr=1e-3)
    monitor = Monitor(model, optimizer, interval=1, plan=plan, budget_bytes=1 << 30)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    rows = {row["name"]: row for row in of_tensors(monitor)}
    assert {name: row["role"] for name, row in rows.items()} == {one.name: str(one.role) for one in plan}
    assert {row["role"] for row in rows.values() if row["hidden"]} == {"linear weight"}


def test_a_role_is_what_its_tensors_come_to() -> None:
    rows = of_tensors(watched(Matrices((20, 30), (40, 60), (10, 10)), adamw, 10))[-3:]
    turned = [{**row, "angle": row["expected_angle"] * times} for row, times in zip(rows, (1.2, 1.3, 0.7), strict=True)]
    role = role_row(turned, 10)
    assert role["within"] == pytest.approx(1 / 3)
    assert role["tensors"] == 3
    assert role["elements"] == 600 + 2400 + 100
    assert role["angle_low"] == min(row["angle"] for row in turned)
    assert role["angle"] == sorted(row["angle"] for row in turned)[1]
    squares = sum(row["weight_rms"] ** 2 * row["elements"] for row in rows)
    assert role["weight_rms"] == pytest.approx(math.sqrt(squares / 3100))


@pytest.mark.parametrize("wrong", [{"interval": 0}, {"budget_bytes": -1}, {"interval": 2.5}, {"keep": True}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    model = Matrices((2, 2))
    with pytest.raises(ConfigError, match="at least 1"):
        Monitor(model, adamw(model.parameters()), **wrong)


def test_a_monitor_that_goes_on_from_its_state_has_the_rows_of_one_that_never_stopped() -> None:
    """A small budget, so that tensors take turns, and an alarm that needs two rows of one tensor."""

    def rows(stop: int | None) -> list[Row]:
        torch.manual_seed(0)
        model = Matrices((20, 30), (40, 60), (10, 10))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
        options: dict[str, Any] = {"interval": 2, "budget_bytes": 5000, "steps": 40}
        monitor, seen = Monitor(model, optimizer, **options), []
        for step in range(40):
            if step == stop:
                state = json.loads(json.dumps(monitor.state_dict()))
                seen += list(monitor.rows)
                monitor.close()
                monitor = Monitor(model, optimizer, **options, done=step)
                monitor.load_state_dict(state)
            optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / 40)
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
                if step % 3:
                    p.data.mul_(0.999)  # somebody else decays, too
            optimizer.step()
        seen += list(monitor.rows)
        monitor.close()
        return seen

    whole = rows(None)
    assert {row["kind"] for row in whole} == {"decay", "decay-role", "alarm"}
    for stop in (7, 20, 31):
        assert rows(stop) == whole
