"""Carrying out a study: its runs side by side in processes of one thread each, and going on where it was.

Two processes of one thread make more tokens a second than one process of two threads, since small matrices keep no
two cores busy (`benchmarks/sweep.py`). Nothing is kept in memory that the directory does not say: a study that was
killed is begun again by the same command, takes finished runs as they are, and goes on with the others from their
checkpoints.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from weightdecay.errors import ConfigError, StoppedError
from weightdecay.runs import dump_json
from weightdecay.studies.analysis import analyse
from weightdecay.studies.design import Arm, Plan, SizeName, Study
from weightdecay.studies.directory import RESULTS, STUDY, Json, StudyDirectory, differences, now
from weightdecay.studies.statistics import check_statistics
from weightdecay.studies.worker import Outcome, Task

Report = Callable[[str], None]

_ATTEMPTS = 2  # of a run that is killed, or whose disk refuses; one that diverges would do so again
_POLL_S = 0.2
_BUSY_S = 2.0  # until a run that another process holds is looked at again
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass
class _Worker:
    """A run in motion."""

    task: Task
    process: subprocess.Popen[str]
    log: IO[str]
    started: float


def carry_out(
    study: Study,
    path: Path,
    *,
    size: SizeName = "full",
    n_seeds: int = 5,
    jobs: int = 2,
    sources: Sequence[str] = (),
    report: Report = lambda _: None,
    stop_requested: Callable[[], int] = lambda: 0,
) -> StudyDirectory:
    """All runs of a study, each trained to its end and measured, and the analysis.

    Args:
        path: the study's directory, new or one to go on with.
        n_seeds: seeds 0 … n − 1, each of which every arm takes.
        jobs: runs at a time.
        sources: of the text; none is the standard library.
        report: told what happens, a line each.
        stop_requested: the number of a signal that came, 0 for none.

    Raises:
        ConfigError: the directory holds a study with other settings (each difference said), or other things.
        RunBusyError: another process carries it out.
        StoppedError: a signal came; the runs have saved.
    """
    check_statistics()  # before hours of training
    directory = StudyDirectory(path)
    with directory.lock():
        report("preparing the text")
        begin(study, directory, size=size, n_seeds=n_seeds, sources=sources)
        _Queue(study, directory, tasks_of(directory), jobs, report, stop_requested).work_off()
    return directory


def begin(study: Study, directory: StudyDirectory, *, size: SizeName, n_seeds: int, sources: Sequence[str]) -> None:
    """Make the texts and write study.json, or find that a study that was begun is the one that is asked for.

    Raises:
        ConfigError: it is not, with every difference.
    """
    _agree(directory, _asked(study, study.plan(size), size, n_seeds, directory, sources))


def tasks_of(directory: StudyDirectory) -> list[Task]:
    """What each run of a begun study is to be, from study.json alone."""
    from weightdecay.recipes.schema import recipe

    study = directory.study()
    arms = {arm["name"]: arm for arm in study["arms"]}
    # From the recipe on: values that follow from others, such as the width of a head, follow from the arm's.
    values = {
        name: recipe(study["recipe"]).config({**study["given"], **arm["settings"]}).values()
        for name, arm in arms.items()
    }
    return [
        Task(
            str(directory.path),
            run["name"],
            {
                **values[run["arm"]],
                "data.sources": [str((directory.texts / arms[run["arm"]]["text"]).resolve())],
                "run.seed": run["seed"],
                "run.out": str(directory.run(run["name"]).path),
            },
            study["recipe"],
            study["measures"],
        )
        for run in study["runs"]
    ]


def _asked(
    study: Study, plan: Plan, size: SizeName, n_seeds: int, directory: StudyDirectory, sources: Sequence[str]
) -> Json:
    """study.json: everything that decides the runs, with the texts made."""
    from weightdecay import __version__
    from weightdecay.recipes.schema import recipe
    from weightdecay.studies.texts import identity, make_texts

    texts = make_texts(directory.texts, plan.texts, sources)
    vocabulary = next(iter(texts.values())).tokenizer.vocab_size
    given = {"model.vocab_size": vocabulary, **plan.settings}
    settings = recipe(plan.recipe).config(given).values()
    for key in ("data.sources", "run.out", "run.seed"):
        del settings[key]
    seeds = list(range(n_seeds))
    return {
        "study": study.name,
        "title": study.title,
        "size": size,
        "scale": size,
        "question": study.question,
        "belief": study.belief,
        "protocol": _protocol(plan, n_seeds),
        "command": " ".join(["weightdecay", *sys.argv[1:]]),
        "started": now(),
        "weightdecay": __version__,
        "recipe": plan.recipe,
        "seeds": seeds,
        "given": given,
        "settings": settings,
        "measures": list(plan.measures),
        "texts": {name: identity(prepared) for name, prepared in sorted(texts.items())},
        "arms": [_arm(arm, index) for index, arm in enumerate(plan.arms)],
        "canaries": _canaries(plan),
        "contrasts": [asdict(contrast) for contrast in plan.contrasts],
        "runs": [
            {"name": run_name(arm, seed), "arm": arm.name, "seed": seed}
            for stage in sorted({arm.stage for arm in plan.arms})
            for seed in seeds
            for arm in plan.arms
            if arm.stage == stage
        ],
    }


def _arm(arm: Arm, index: int) -> Json:
    role = "arm" if index else "baseline"
    return {
        "name": arm.name, "labels": dict(arm.labels), "settings": dict(arm.settings), "text": arm.text, "role": role,
    }  # fmt: skip


def run_name(arm: Arm, seed: int) -> str:
    """Of a run directory: letters, digits, and what no shell and no file system minds."""
    spelt = arm.name.replace("λ", "wd").replace("η", "lr")
    plain = "".join(sign if (sign.isascii() and sign.isalnum()) or sign in ".-" else "-" for sign in spelt)
    return f"{'-'.join(part for part in plain.split('-') if part)}-seed{seed}"


def _canaries(plan: Plan) -> Json | None:
    """What is planted in the study's texts; one plan for all that have any."""
    return next((asdict(text.canaries) for text in plan.texts.values() if text.canaries), None)


def _protocol(plan: Plan, n_seeds: int) -> list[str]:
    return [
        (
            f"{len(plan.arms)} arms of {n_seeds} seeds each; a seed decides the first weights, the order of the "
            "batches and dropout alike in all arms, so that arms are compared in pairs"
        ),
        "differences: paired t intervals at 95 %, Holm's correction over all comparisons of the study",
        (
            "a claim needs at least 5 seeds, the same sign in all of them, and an interval that leaves out 0 with all "
            "comparisons counted"
        ),
    ]


def _agree(directory: StudyDirectory, asked: Mapping[str, Any]) -> None:
    """Write what is asked for, or find that it is what the directory has.

    Raises:
        ConfigError: it is not, with every difference.
    """
    if not directory.begun:
        directory.write(STUDY, asked)
        return
    # Through JSON, as the one on the disk went: 1.0 and 1, tuples and lists are then alike.
    before = directory.study()
    wanted = json.loads(dump_json(asked))
    # A setting that has come since the study was begun is at its default, which is how it was before.
    wanted["settings"] = {key: value for key, value in wanted["settings"].items() if key in before["settings"]}
    if changed := differences(before, wanted):
        raise ConfigError([*changed[:20], (f"{directory.path}: was begun with other settings (above): go on with "
                           "those, or give another --out")])  # fmt: skip


class _Queue:
    """The runs that are left, and those in motion."""

    def __init__(
        self,
        study: Study,
        directory: StudyDirectory,
        tasks: Sequence[Task],
        jobs: int,
        report: Report,
        stop_requested: Callable[[], int],
    ) -> None:
        self._study, self._directory, self._jobs = study, directory, jobs
        self._report, self._stop_requested = report, stop_requested
        given_up = {failure["name"] for failure in directory.failures() if failure["outcome"] == "diverged"}
        self._left = deque(task for task in tasks if task.name not in given_up and not self._is_done(task))
        self._total, self._ended = len(tasks), len(tasks) - len(self._left)
        self._attempts: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        self._working: list[_Worker] = []

    def work_off(self) -> None:
        """Until no run is left; the analysis is written whenever one ends."""
        if self._ended:
            self._report(f"{self._ended} of {self._total} runs are there already")
        self._analyse()
        try:
            while self._left or self._working:
                self._begin_some()
                self._end_some()
                if number := self._stop_requested():
                    raise StoppedError(
                        f"stopped by signal {number} after {self._ended} of {self._total} runs; the same command goes "
                        "on", number,
                    )  # fmt: skip
                time.sleep(_POLL_S)
        finally:
            self._leave()

    def _is_done(self, task: Task) -> bool:
        summary = self._directory.run(task.name).summary()
        return bool(summary) and self._directory.measured(task.name) is not None

    def _begin_some(self) -> None:
        for _ in range(len(self._left)):
            if len(self._working) >= self._jobs:
                return
            task = self._left.popleft()
            if time.monotonic() < self._not_before.get(task.name, 0.0):
                self._left.append(task)
            else:
                self._begin(task)

    def _begin(self, task: Task) -> None:
        path = self._directory.log(task.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        log = path.open("a", encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, "-m", "weightdecay.studies.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **_ONE_THREAD},
        )
        assert process.stdin is not None
        try:
            process.stdin.write(task.as_line())
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it died at once; its exit code says how
        self._working.append(_Worker(task, process, log, time.monotonic()))

    def _end_some(self) -> None:
        for worker in [worker for worker in self._working if worker.process.poll() is not None]:
            self._working.remove(worker)
            self._judge(worker, _outcome(worker))

    def _judge(self, worker: _Worker, outcome: Outcome) -> None:
        """Count a run that has ended, or put it back."""
        task, name = worker.task, worker.task.name
        if outcome.outcome == "busy":
            if name not in self._not_before:
                self._report(f"{outcome.why}; waiting for it")
            self._not_before[name] = time.monotonic() + _BUSY_S
            self._left.append(task)
            return

        if outcome.outcome == "stopped" and not self._stop_requested():  # somebody stopped this one run; it has saved
            outcome = Outcome("failed", outcome.why, outcome.exit_code)
        if outcome.outcome in ("diverged", "failed"):
            self._directory.add_failure(name, outcome.exit_code, outcome.outcome, outcome.why)
            self._attempts[name] = self._attempts.get(name, 0) + 1
            if outcome.outcome == "failed" and self._attempts[name] < _ATTEMPTS:
                self._report(f"{name}: {outcome.why}; once more")
                self._left.append(task)
                return
        if outcome.outcome != "stopped":
            self._ended += 1
            took = f"{time.monotonic() - worker.started:.0f} s"
            ended = f"finished in {took}" if outcome.outcome == "finished" else f"{outcome.outcome}: {outcome.why}"
            self._report(f"[{self._ended}/{self._total}] {name}: {ended}")
            self._analyse()

    def _leave(self) -> None:
        """Let no worker outlive the study; each saves first."""
        for worker in self._working:
            if worker.process.stdin is not None:
                worker.process.stdin.close()
        for worker in self._working:
            worker.process.wait()
            worker.log.close()
        self._working.clear()

    def _analyse(self) -> None:
        self._directory.write(RESULTS, analyse(self._study, self._directory))


def _outcome(worker: _Worker) -> Outcome:
    """What a worker that has ended said last; of one that said nothing, what its exit code tells."""
    assert worker.process.stdout is not None
    said = worker.process.stdout.read().strip().splitlines()
    worker.process.stdout.close()
    if worker.process.stdin is not None:
        with contextlib.suppress(OSError):
            worker.process.stdin.close()
    worker.log.close()
    code = worker.process.returncode
    try:
        return Outcome(**json.loads(said[-1]))
    except (IndexError, ValueError, TypeError):
        how = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return Outcome("failed", f"{how}; see {worker.log.name}", code)
