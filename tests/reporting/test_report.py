"""A report tells what a directory says, of runs in any state, and says what it cannot tell."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.reporting.conftest import copied, picture
from weightdecay import cli
from weightdecay.errors import ConfigError, DamagedError, MissingExtraError
from weightdecay.monitoring.alarms import Alarm
from weightdecay.reporting.page import Finding, Page
from weightdecay.reporting.report import page_of, report
from weightdecay.runs import Run


def titles(page: Page) -> list[str]:
    return [finding.title for finding in page.findings]


def rewritten(run: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Path:
    """A run with other metric rows."""
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in change(rows_of(run))))
    return run


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# --- a run


def test_a_run_is_told_with_what_was_asked_and_what_came(run: Path) -> None:
    page = page_of([run])
    last = [row for row in rows_of(run) if row["kind"] == "eval"][-1]
    assert "λ = 30" in page.asked
    assert "seed 0" in page.asked
    assert f"{last['val_bits_per_byte']:.3f} bits per byte" in page.answer
    assert "one seed" in page.answer
    assert [section.id for section in page.sections] == ["plots", "theory", "plan", "recipe", "environment", "repeat"]
    assert {"loss", "decay-per-step", "left-of-the-start", "gradient-norm"} <= {f.picture.id for f in page.figures()}
    assert not [finding for finding in page.findings if finding.severity in ("error", "warning") and not finding.text]


def test_what_the_decay_leaves_is_its_product_over_the_steps(run: Path) -> None:
    left = 1.0
    for row in rows_of(run):
        left *= 1 - row.get("decay_per_step", 0.0) if row["kind"] == "train" else 1
    assert f"without gradients {100 * left:.3g} % of a weight would be left" in page_of([run]).answer


def test_a_run_that_trains_at_this_moment_has_a_page_and_is_left_alone(run: Path) -> None:
    metrics = (run / "metrics.jsonl").read_bytes()
    (run / "summary.json").unlink()
    (run / "metrics.jsonl").write_bytes(metrics[: len(metrics) // 2])  # it is just writing a row
    hold = "import sys, pathlib; from weightdecay.runs import Run\n"
    hold += "with Run(pathlib.Path(sys.argv[1])).lock(): print(flush=True); input()"
    command = [sys.executable, "-c", hold, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout
        assert trainer.stdin
        trainer.stdout.readline()
        page = page_of([run])
        trainer.stdin.write("\n")
    assert "is going on: step" in page.answer
    assert "Last row cut off" not in titles(page)
    assert (run / "metrics.jsonl").read_bytes() == metrics[: len(metrics) // 2]


def test_a_last_row_that_a_kill_cut_off_is_left_out_and_said(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"kind": "train", "step": 13, "loss": 1.')
    page = page_of([run])
    assert "Last row cut off" in titles(page)
    assert "step 12 of 12" in page.answer


def test_damaged_rows_are_counted_and_the_others_shown(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_bytes().splitlines()
    lines[3:3] = [b"\xff\x00garbage", b"[1, 2]"]
    (run / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    page = page_of([run])
    assert any("2 of" in finding.text for finding in page.findings if finding.title == "Damaged metric rows")
    assert "step 12 of 12" in page.answer


def test_a_run_without_a_row_yet_has_a_page(run: Path) -> None:
    for name in ("metrics.jsonl", "summary.json"):
        (run / name).unlink()
    page = page_of([run])
    assert "No step was logged yet" in titles(page)
    assert page.figures() == []


@pytest.mark.parametrize("name", ["run.toml", "plan.json", "environment.json", "summary.json"])
def test_a_file_that_cannot_be_read_is_an_error_on_the_page_and_the_rest_is_shown(run: Path, name: str) -> None:
    (run / name).write_text("no such thing {")
    page = page_of([run])
    assert any(name in finding.text for finding in page.findings if finding.severity == "error")
    assert "bits per byte" in page.answer


def diverged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"loss": None} if row["kind"] == "train" and row["step"] > 9 else row for row in rows]


def test_a_run_that_diverged_is_named_and_its_other_losses_are_drawn(run: Path) -> None:
    page = page_of([rewritten(run, diverged)])
    assert any("stopped being finite at step 10" in title for title in titles(page))
    losses = next(figure.picture for figure in page.figures() if figure.picture.id == "loss")
    assert max(record["step"] for record in losses.data if record["series"] == "training") == 9


def test_a_held_out_loss_that_rose_again_is_said(run: Path) -> None:
    def overfit(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row | {"val_loss": 2.0 + abs(row["step"] - 8)} if row["kind"] == "eval" else row for row in rows]

    assert "It was lowest at step 8 with 2.000 nats and has risen by 4.000" in page_of([rewritten(run, overfit)]).answer


def test_what_the_monitor_measured_is_shown_against_theory(run: Path) -> None:
    page = page_of([run])
    roles = {row["role"] for row in rows_of(run) if row["kind"] == "decay-role"}
    assert "linear weight" in roles
    drawn = {figure.picture.id: figure.picture for figure in page.figures()}
    assert {record["role"] for record in drawn["weight-rms"].data} <= roles
    assert {record["series"] for record in drawn["rotation"].data} == {"measured", "expected"}
    table = next(block for s in page.sections if s.id == "theory" for block in s.blocks if block.kind == "table")
    assert {row[0] for row in table.rows} == roles  # type: ignore[union-attr]


def test_an_alarm_of_the_monitor_is_the_first_finding(run: Path) -> None:
    alarm = Alarm(8, "lost-to-rounding", "error", ("a.b",), 12, "Half the decay is lost", "It rounds away.", 1e-3, 5e-4)
    page = page_of([rewritten(run, lambda rows: [*rows, alarm.row()])])
    assert page.findings[0] == Finding("error", "Half the decay is lost", "It rounds away. (a.b)")


def test_rows_that_no_monitor_has_written_are_said_and_the_rest_is_shown(run: Path) -> None:
    page = page_of([rewritten(run, lambda rows: [*rows, {"kind": "alarm", "step": 8, "tensors": 5}])])
    assert "Its decay was not diagnosed" in titles(page)
    assert "step 12 of 12" in page.answer


# --- several runs


def test_runs_that_differ_in_seeds_alone_have_one_mean_with_its_interval(trained: Path) -> None:
    page = page_of([trained / "λ0-seed0", trained / "λ0-seed1"])
    assert re.search(r"The held-out loss is .* \(95 % interval \d\.\d{3} to \d\.\d{3}, 2 seeds\)", page.answer)


def test_settings_are_compared_in_pairs_of_one_seed_and_two_seeds_make_no_claim(trained: Path) -> None:
    page = page_of([trained / name for name in ("λ0-seed0", "λ0-seed1", "λ30-seed0", "λ30-seed1")])
    assert "differ in optimizer.weight_decay" in page.asked
    assert "interval of the paired difference" in page.answer
    assert "a hint, not a claim" in page.answer


def test_losses_of_different_texts_are_never_on_one_axis_and_that_is_said(trained: Path) -> None:
    page = page_of([trained])
    assert "The runs are of different texts" in titles(page)
    assert "not compared across these" in page.answer
    for figure in page.figures():
        runs = {str(record.get("run")) for record in figure.picture.data if record.get("run")}
        assert not ("other" in runs and len(runs) > 1)


def test_a_run_that_is_not_finished_or_diverged_is_in_no_mean(trained: Path, tmp_path: Path) -> None:
    names = ("λ0-seed0", "λ0-seed1", "λ30-seed0", "λ30-seed1")
    runs = [copied(trained / name, tmp_path / name) for name in names]
    rewritten(runs[2], diverged)
    (runs[3] / "summary.json").unlink()
    page = page_of(runs)
    (told,) = [
        finding.text for finding in page.findings if finding.title == "Runs that are in no mean and no difference"
    ]
    assert told == "λ30-seed0: diverged; λ30-seed1: stopped."
    assert "paired difference" not in page.answer


def test_a_run_that_is_given_twice_counts_once(trained: Path) -> None:
    one = trained / "λ0-seed0"
    assert page_of([one, one / ".." / one.name]).title == "λ0-seed0"


# --- folders that are none


def test_every_folder_that_holds_no_run_is_named_at_once(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError) as raised:
        page_of([run, tmp_path / "empty", tmp_path / "nowhere"])
    assert len(raised.value.faults) == 2
    assert "not a run directory" in raised.value.faults[0]
    assert "no such directory" in raised.value.faults[1]


# --- a study


def test_a_study_is_told_with_its_question_its_answer_and_its_intervals(study: Callable[..., Path]) -> None:
    page = page_of([study()])
    assert page.title == "Which λ is best?"
    assert page.answer.startswith("λ = 3 is best")
    table = next(block for s in page.sections if s.id == "comparisons" for block in s.blocks if block.kind == "table")
    assert "-0.38 to -0.32" in table.rows[0]  # type: ignore[union-attr]
    assert any("b-seed0: not finite" in finding.text for finding in page.findings)


def test_a_study_that_goes_on_says_so(study: Callable[..., Path]) -> None:
    folder = study(complete=False)
    assert page_of([folder]).answer.startswith("So far")
    (folder / "results.json").unlink()
    assert "No run has ended yet" in page_of([folder]).answer


def test_a_study_of_a_newer_version_is_refused_and_a_damaged_one_named(study: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="update it"):
        page_of([study(schema_version=2)])
    with pytest.raises(DamagedError, match=r"results.json: pictures\[0\].*kind"):
        page_of([study(pictures=[picture(kind="pie")])])
    with pytest.raises(DamagedError, match=r"complete"):
        page_of([study(complete="perhaps")])


def test_a_study_and_a_run_on_one_page_are_refused(study: Callable[..., Path], run: Path) -> None:
    with pytest.raises(ConfigError, match="give it alone"):
        page_of([run, study()])


# --- what is written


def test_markdown_has_its_pictures_beside_it(run: Path, tmp_path: Path) -> None:
    written = report([run], tmp_path / "deep" / "my report.md", format="md")
    links = re.findall(r"^!\[.*\]\((.*)\)$", written.out.read_text(), re.MULTILINE)
    assert len(links) == len(written.page.figures()) == len(written.pictures)
    for link in links:
        assert (written.out.parent / link.replace("%20", " ")).read_text().startswith("<svg ")


def answered(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """The command's exit code, and what it printed."""
    with pytest.raises(SystemExit) as leaving:
        cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return int(leaving.value.code or 0), printed.out, printed.err


def test_a_page_that_cannot_be_written_is_one_line_and_leaves_the_old_one(
    capsys: pytest.CaptureFixture[str], run: Path
) -> None:
    (run / "report.html").write_text("old")
    code, _, said = answered(capsys, "report", run, "--out", run / "report.html" / "below")
    assert code == 1
    assert len(said.splitlines()) == 1
    assert (run / "report.html").read_text() == "old"


def test_the_command_says_the_answer_and_where_the_page_is(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path
) -> None:
    out, pictures = tmp_path / "page.html", tmp_path / "pictures"
    code, printed, _ = answered(capsys, "report", trained / "λ0-seed0", "--out", out, "--pictures", pictures, "--json")
    said = json.loads(printed)
    assert code == 0
    assert Path(said["out"]) == out
    assert out.stat().st_size == said["bytes"] < 1.3e6
    assert sorted(path.stem for path in pictures.iterdir()) == sorted(said["plots"])


def test_a_command_that_cannot_be_followed_is_refused_with_the_nearest(
    capsys: pytest.CaptureFixture[str], run: Path
) -> None:
    code, _, said = answered(capsys, "report", run, "--format", "htlm")
    assert code == 2
    assert "did you mean 'html'" in said


@pytest.mark.parametrize("package", ["altair", "vl_convert", "jinja2"])
def test_what_is_not_installed_is_an_error_that_names_the_extra(
    run: Path, tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"weightdecay\[report\]"):
        report([run], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_intervals_without_scipy_name_the_extra(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(MissingExtraError, match=r"weightdecay\[report\]"):
        page_of([trained / "λ0-seed0", trained / "λ0-seed1"])


def test_a_report_changes_no_file_of_the_run_but_its_own(run: Path) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    report([run])
    after = {path.name: path.read_bytes() for path in run.iterdir()}
    assert after.keys() - before.keys() == {"report.html"}
    assert all(after[name] == content for name, content in before.items())
    assert Run.open(run).status() == "finished"
