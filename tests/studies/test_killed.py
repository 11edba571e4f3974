"""A study that is killed, stopped, or whose run is killed: real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weightdecay.runs import Run
from weightdecay.studies.directory import StudyDirectory

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.long, pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")]


def started(study: Path, source: Path, jobs: int = 2) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.studies.tiny", str(study), str(source), str(jobs)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(what: Callable[[], Any], seconds: float = 120.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "never happened"
        time.sleep(0.02)
    return found


def finished(study: Path) -> set[str]:
    return {path.parent.name for path in study.glob("runs/*/measured.json")}


def losses(study: Path) -> dict[str, float]:
    return {run["name"]: run["values"]["val_loss"] for run in StudyDirectory.open(study).results()["runs"]}


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(number) for number in path.read_text("utf-8").split()] if path.is_file() else []


def test_a_killed_study_goes_on_and_ends_with_the_same_numbers_to_the_last_bit(
    tmp_path: Path, source: Path, carried_out_study: Path
) -> None:
    study = tmp_path / "study"
    process = started(study, source)
    wait_for(lambda: finished(study))
    workers = workers_of(process)
    process.kill()
    process.communicate(timeout=60)
    done = finished(study)
    wait_for(lambda: not any(Path(f"/proc/{worker}/cmdline").is_file() for worker in workers))  # none outlives it
    before = {name: (study / "runs" / name / "measured.json").stat().st_mtime_ns for name in done}

    again = started(study, source)
    said, _ = again.communicate(timeout=240)

    assert again.returncode == 0, said
    assert "of 4 runs are there already" in said
    assert {name: (study / "runs" / name / "measured.json").stat().st_mtime_ns for name in done} == before
    assert losses(study) == losses(carried_out_study)


def test_a_run_that_is_killed_is_tried_once_more_and_kept_in_the_list_of_failures(tmp_path: Path, source: Path) -> None:
    study = tmp_path / "study"
    process = started(study, source, jobs=1)
    (worker,) = wait_for(lambda: workers_of(process))
    os.kill(worker, signal.SIGKILL)
    said, _ = process.communicate(timeout=240)

    assert process.returncode == 0, said
    (failure,) = StudyDirectory.open(study).failures()
    assert failure["why"].startswith("killed by signal 9")
    assert {run["status"] for run in StudyDirectory.open(study).results()["runs"]} == {"finished"}


def test_a_study_that_is_asked_to_stop_saves_says_how_to_go_on_and_leaves_no_worker(
    tmp_path: Path, source: Path
) -> None:
    code = "import sys; from tests.studies import slow; slow.main(sys.argv[1], sys.argv[2])"
    study = tmp_path / "study"
    command = [sys.executable, "-c", code, str(study), str(source)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    path = wait_for(lambda: next(iter(study.glob("runs/*/metrics.jsonl")), None))
    wait_for(lambda: len(path.read_text("utf-8").splitlines()) > 2)
    workers = workers_of(process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)

    assert process.returncode == 143
    assert "the same command goes on" in said
    assert not any(Path(f"/proc/{worker}/cmdline").is_file() for worker in workers)
    run = Run.open(path.parent)
    assert list(run.checkpoints.glob("step-*")), "it has saved"
    assert not json.loads((study / "results.json").read_text("utf-8"))["complete"]
