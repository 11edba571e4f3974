"""Findings on runs: finished, stopped, going on, damaged, diverged, and of optimizers that no theory is known of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import weightdecay
from tests.commands import Command
from weightdecay import ConfigError, Run, TrainConfig
from weightdecay.diagnosing.rendering import text as rendered
from weightdecay.training.progress import SilentReporter

Edit = Callable[[dict[str, Any]], dict[str, Any] | None]


def config(text: Path, out: Path, **values: Any) -> TrainConfig:
    small = {
        "data.sources": (str(text),), "data.tokenizer": "byte", "model.context": 32, "model.n_layers": 2,
        "model.d_model": 32, "model.n_heads": 2, "run.batch_tokens": 128, "run.steps": 60, "run.out": str(out),
        "run.monitor_every": 4, "run.eval_tokens": 64, "run.dtype": "float32", "optimizer.lr": 0.01,
        "optimizer.weight_decay": 2.0, "schedule.shape": "constant", "schedule.warmup_fraction": 0,
    }  # fmt: skip
    return weightdecay.recipe("gpt3:nano").config({**small, **values})


def trained(text: Path, out: Path, **values: Any) -> Run:
    return weightdecay.train(config(text, out, **values), reporter=SilentReporter())


@pytest.fixture(scope="module")
def finished(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(small_text, tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def copy(finished: Run, tmp_path: Path) -> Run:
    shutil.copytree(finished.path, tmp_path / "run")
    return Run(tmp_path / "run")


def edit(run: Run, change: Edit) -> Run:
    """The run with each of its rows changed, or left out."""
    changed = [change(row) for row in run.rows()]
    run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in changed if row is not None))
    return run


def codes(found: weightdecay.Diagnosis) -> list[str]:
    return [finding.code for finding in found.findings]


def test_a_healthy_run_is_where_its_rows_say_and_nothing_is_wrong(finished: Run) -> None:
    found = weightdecay.diagnose(finished)
    assert found.ok
    assert (found.status, found.step, found.steps) == ("finished", 60, 60)
    assert found.decay_total == pytest.approx(60 * 0.02)
    linear = next(row for row in found.roles if row["role"] == "linear weight")
    assert linear["decay_realised"] == pytest.approx(0.02, rel=1e-4)
    assert linear["memory_tokens"] == pytest.approx(0.6931 / 0.02 * 128, rel=1e-3)
    assert "linear weight" in str(found)


def test_the_command_says_it_in_one_document_and_fails_only_if_asked(finished: Run, weightdecay: Command) -> None:
    done = weightdecay("diagnose", finished.path, "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 0
    assert document["ok"] is True
    assert {row["role"] for row in document["roles"]} >= {"linear weight", "embedding", "norm gain"}
    wrong = weightdecay("diagnose", finished.path, "--fail-on", "eror")
    assert wrong.returncode == 2
    assert "did you mean 'error'" in wrong.stderr


def test_findings_so_grave_end_with_3(copy: Run, weightdecay: Command) -> None:
    edit(copy, lambda row: {**row, "decay_realised": 0.0} if row["kind"] == "decay" else row)
    assert weightdecay("diagnose", copy.path).returncode == 0
    assert weightdecay("diagnose", copy.path, "--fail-on", "error").returncode == 3


def test_it_fits_a_terminal_of_any_width(copy: Run) -> None:
    edit(copy, lambda row: {**row, "decay_realised": 0.0} if row["kind"] == "decay" else row)
    for width in (60, 80, 120, 200):
        lines = rendered(weightdecay.diagnose(copy), width).splitlines()
        assert max(len(line) for line in lines[1:]) <= width
        assert any("not-decaying" in line for line in lines)


def test_a_last_row_that_a_kill_cut_off_is_left_out_and_said(copy: Run) -> None:
    whole = copy.metrics_path.read_bytes()
    copy.metrics_path.write_bytes(whole[:-40])
    found = weightdecay.diagnose(copy)
    assert any("cut off" in remark for remark in found.remarks)
    assert found.ok


@pytest.mark.parametrize("what", ["nothing", "a file", "an empty folder"])
def test_what_is_no_run_is_refused(what: str, tmp_path: Path, weightdecay: Command) -> None:
    path = tmp_path / "run"
    if what == "a file":
        path.write_text("x")
    elif what == "an empty folder":
        path.mkdir()
    done = weightdecay("diagnose", path, "--json")
    assert done.returncode == 2
    assert str(path) in json.loads(done.stdout)["faults"][0]


def test_a_run_that_another_process_writes_is_read_as_far_as_it_has_come(copy: Run) -> None:
    (copy.path / "summary.json").unlink()
    edit(copy, lambda row: row if row["step"] <= 30 else None)
    with copy.lock(), copy.metrics_path.open("a") as file:
        file.write('{"kind": "decay", "step": 32, "na')
        file.flush()
        found = weightdecay.diagnose(copy)
    assert found.status == "running"
    assert found.step == 30
    assert any("going on" in remark for remark in found.remarks)


def test_a_run_that_diverged_is_said_to_have(copy: Run) -> None:
    def spoil(row: dict[str, Any]) -> dict[str, Any]:
        lost = row["kind"] == "train" and row["step"] == 50
        return {**row, "loss": None} if lost else row

    assert codes(weightdecay.diagnose(edit(copy, spoil))) == ["diverged"]


def test_a_loss_that_rises_is_said_to(copy: Run) -> None:
    edit(copy, lambda row: {**row, "loss": 2 + row["step"] / 20} if row["kind"] == "train" else row)
    found = weightdecay.diagnose(copy)
    assert codes(found)[0] == "diverged"
    assert found.findings[0].severity == "warning"


def test_a_run_that_really_diverges_is_found_out(small_text: Path, tmp_path: Path) -> None:
    wild = {"optimizer.lr": 1e30, "optimizer.weight_decay": 0.0, "run.steps": 12, "run.on_nonfinite": "skip"}
    found = weightdecay.diagnose(trained(small_text, tmp_path / "run", **wild))
    assert not found.ok
    assert codes(found)[0] == "diverged"
    assert any("left out" in remark for remark in found.remarks)


def test_an_optimizer_without_theory_is_said_to_have_none(small_text: Path, tmp_path: Path) -> None:
    run = trained(small_text, tmp_path / "run", **{"optimizer.name": "adafactor", "run.steps": 24})
    found = weightdecay.diagnose(run)
    assert any("no theory here" in remark for remark in found.remarks)
    assert found.within is None
    assert all(row["equilibrium_rms"] is None for row in found.roles)


def test_tensors_that_have_come_and_gone_do_not_confuse_it(copy: Run) -> None:
    def change(row: dict[str, Any]) -> dict[str, Any] | None:
        if row.get("name") == "blocks.0.attention.output.weight" or row.get("name", "").startswith("blocks.0"):
            return row if row["step"] < 20 else None
        return row

    found = weightdecay.diagnose(edit(copy, change))
    assert any("not seen any more" in remark for remark in found.remarks)
    assert found.ok


def test_without_a_monitor_what_is_left_is_judged(small_text: Path, tmp_path: Path) -> None:
    run = trained(small_text, tmp_path / "run", **{"run.monitor": False, "run.steps": 8})
    found = weightdecay.diagnose(run)
    assert {row["kind"] for row in run.rows()} == {"train", "eval"}
    assert codes(found) == ["decay-too-small"]
    assert any("--no-monitor" in remark for remark in found.remarks)


def test_a_decay_that_comes_to_nothing_is_told_from_the_schedule(small_text: Path, tmp_path: Path) -> None:
    run = trained(small_text, tmp_path / "run", **{"optimizer.weight_decay": 0.1, "run.steps": 24})
    found = weightdecay.diagnose(run)
    assert [(one.code, one.severity) for one in found.findings] == [("decay-too-small", "warning")]
    assert [row["code"] for row in run.rows("alarm")] == ["decay-too-small"], "the monitor has told it as well"


def test_decay_that_the_plan_does_not_have_is_found(copy: Run) -> None:
    def change(row: dict[str, Any]) -> dict[str, Any]:
        if row["kind"] == "decay" and row["role"] == "norm gain":
            return {**row, "weight_decay": 2.0, "decay_requested": 0.02, "decay_realised": 0.02}
        if row["kind"] == "decay" and row["role"] == "position embedding":
            return {**row, "weight_decay": 0.0, "decay_requested": 0.0, "decay_realised": 0.0}
        return row

    assert set(codes(weightdecay.diagnose(edit(copy, change)))) == {"decays-exempt", "exempt-matrix"}


def test_a_plan_that_is_gone_is_said_to_be(copy: Run) -> None:
    (copy.path / "plan.json").unlink()
    assert any("plan.json" in remark for remark in weightdecay.diagnose(copy).remarks)


def test_a_path_that_is_no_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="no such directory"):
        weightdecay.diagnose("/nowhere/at/all")
