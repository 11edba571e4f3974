"""Audits at some steps, told to a log and to trackers, with no framework but torch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import weightdecay
from weightdecay.integrations.step_audits import StepAudits, rows_of
from weightdecay.integrations.step_hooks import audited_steps
from weightdecay.integrations.tracker_rows import alarm_text, scalars


@pytest.fixture
def warned() -> Iterator[list[logging.LogRecord]]:
    """The warnings that our log is told."""
    handler = BufferingHandler(1000)
    handler.setLevel(logging.WARNING)
    logging.getLogger("weightdecay").addHandler(handler)
    yield handler.buffer
    logging.getLogger("weightdecay").removeHandler(handler)


class Listed:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.ends: list[Any] = []

    def start(self, run: Any, step: int) -> None:
        self.ends.append((run.path, step))

    def row(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def close(self) -> None:
        self.ends.append("close")


def training(decay_norms: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    groups = model.parameters() if decay_norms else weightdecay.plan(model, weight_decay=0.1).param_groups(lr=1e-3)
    return model, torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        model(torch.randn(4, 8, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_due_steps_are_audited_and_told_as_rows(tmp_path: Path, warned: list[logging.LogRecord]) -> None:
    model, optimizer = training(decay_norms=True)
    tracker = Listed()
    audits_of = StepAudits((1,), every=3, trackers=tracker)
    with audited_steps(audits_of, model, [optimizer], folder=tmp_path / "new") as audits:
        train(model, optimizer, 7)
    assert list(audits.audits) == [1, 3, 6]
    assert tracker.ends == [(tmp_path / "new", 0), "close"]
    assert [row["step"] for row in tracker.rows if row["kind"] == "audit"] == [1, 3, 6]
    alarms = [row for row in tracker.rows if row["kind"] == "alarm"]
    assert [(row["step"], row["code"]) for row in alarms] == [(step, "decays-exempt") for step in (1, 3, 6)]
    assert alarms[0]["tensors"] == ["0.bias", "1.weight", "1.bias"]
    assert [record.levelname for record in warned] == ["WARNING"] * 3
    first, *others = [record.getMessage() for record in warned]
    assert [said.split(":")[1] for said in others] == [" as at step 1", " as at step 3"]
    assert "decays-exempt" in first
    assert "weightdecay.regroup(optimizer, plan)" in alarms[0]["fix"]


def test_a_healthy_training_is_told_nothing_and_goes_on_as_its_twin(warned: list[logging.LogRecord]) -> None:
    twins = [training(decay_norms=False) for _ in range(2)]
    with audited_steps(StepAudits((1, 4)), twins[0][0], [twins[0][1]], folder=".") as audits:
        train(*twins[0], 5)
    train(*twins[1], 5)
    assert list(audits.audits) == [1, 4]
    assert all(audit.ok for audit in audits.audits.values())
    assert not warned
    for here, there in zip(twins[0][0].parameters(), twins[1][0].parameters(), strict=True):
        assert torch.equal(here, there)


def test_optimizers_of_one_model_are_audited_together_once() -> None:
    model, _ = training(decay_norms=False)
    first, second = torch.optim.AdamW([model[0].weight]), torch.optim.AdamW([model[1].weight])  # type: ignore[index]
    with audited_steps(StepAudits((1,)), model, [first, second], folder=".") as audits:
        model(torch.ones(4, 8)).sum().backward()
        second.step()
        first.step()
    (audit,) = audits.audits.values()
    assert audit.probe is not None
    assert {tensor.optimizer for tensor in audit.probe} == {0, 1}


def test_steps_of_a_training_that_goes_on_are_counted_from_its_beginning() -> None:
    model, optimizer = training(decay_norms=False)
    with audited_steps(StepAudits((1, 102)), model, [optimizer], folder=".", steps_done=lambda: 100) as audits:
        train(model, optimizer, 3)
    assert list(audits.audits) == [102]


def test_what_comes_to_a_hook_that_was_taken_off_is_not_audited() -> None:
    model, optimizer = training(decay_norms=True)
    with (
        pytest.raises(weightdecay.CheckFailedError),
        audited_steps(StepAudits((1, 2), fail_on="warning"), model, [optimizer], folder=".") as audits,
    ):
        train(model, optimizer, 1)
    train(model, optimizer, 2)
    assert list(audits.audits) == [1]


def test_errors_alone_end_a_training_that_is_to_fail_on_errors() -> None:
    model, optimizer = training(decay_norms=True)
    assert not StepAudits(fail_on="error").look(model, [optimizer], 1).ok
    with pytest.raises(weightdecay.CheckFailedError):
        StepAudits(fail_on="error", policy="default").look(model, [optimizer], 1)


def test_all_faults_are_told_at_once() -> None:
    given: Any = {"at_steps": (0, 2), "every": True, "fail_on": "note", "weight_decai": 0.1}
    with pytest.raises(weightdecay.ConfigError) as told:
        StepAudits(**given)
    assert len(told.value.faults) == 4
    assert "did you mean 'weight_decay'?" in str(told.value)
    with pytest.raises(weightdecay.ConfigError, match="did you mean 'wandb'"):
        StepAudits(trackers="wandbb")
    with pytest.raises(weightdecay.ConfigError, match="row"):
        StepAudits(trackers=[3])  # type: ignore[list-item]


def test_an_optimizer_that_is_none_of_torchs_is_refused() -> None:
    model, _ = training(decay_norms=False)
    with (
        pytest.raises(weightdecay.ConfigError, match=r"weightdecay\.audit"),
        audited_steps(StepAudits(), model, [object()], folder="."),
    ):
        pass


def test_an_audits_rows_have_its_counts_its_decay_and_no_chart_for_an_alarm() -> None:
    model, optimizer = training(decay_norms=True)
    first, *alarms = rows_of(weightdecay.audit(model, optimizer), 5)
    numbers = scalars(first)
    assert numbers["audit/warnings"] == len(alarms) == 1
    assert numbers["audit/decay_requested"] == pytest.approx(1e-4, rel=1e-2)
    assert numbers["audit/decay_realised"] == pytest.approx(1e-4, rel=1e-2)
    assert scalars(alarms[0]) == {}
    assert "```python\n" in alarm_text(alarms[0])


def test_a_tensors_rows_are_not_drawn_and_those_of_its_role_are() -> None:
    row = {"kind": "decay", "step": 1, "name": "a", "angle": 0.1}
    assert scalars(row) == {}
    assert scalars(
        {"kind": "decay-role", "step": 1, "role": "norm gain", "angle": 0.1, "hidden": False, "tensors": 3}
    ) == {"decay norm gain/angle": 0.1}


def test_what_is_not_installed_is_told_with_its_extra() -> None:
    for module, extra in (("lightning", "lightning"), ("torchtitan", "torchtitan")):
        try:
            __import__(module)
        except ImportError:
            with pytest.raises(weightdecay.MissingExtraError, match=rf"weightdecay\[{extra}\]"):
                __import__(f"weightdecay.integrations.{module}")
