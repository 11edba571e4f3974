"""One run of a study, in a process of its own: `python -m weightdecay.studies.worker` with its task on stdin.

The first line of stdin is the task, and the stream then stays open as long as the study lives: when it ends, however
the study ended, the worker asks itself to save and leave, as SIGTERM would. The last line of stdout is the outcome.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from weightdecay.errors import RunBusyError, StoppedError, TrainingError, WeightDecayError, fault_of_the_world


@dataclass(frozen=True)
class Task:
    """What a worker is to do.

    Attributes:
        study: the study's directory.
        name: of the run in it.
        values: all of the run's settings, `section.key`.
        recipe: where they come from, for people.
        measures: to take of the finished run.
    """

    study: str
    name: str
    values: dict[str, Any]
    recipe: str
    measures: list[str]

    def as_line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


@dataclass(frozen=True)
class Outcome:
    """How it ended: `finished`, `diverged`, `failed`, `busy` or `stopped`, and why."""

    outcome: str
    why: str
    exit_code: int


def main() -> None:
    task = Task(**json.loads(sys.stdin.readline()))
    told, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no outcome
    threading.Thread(target=_leave_with_the_study, args=(sys.stdin,), daemon=True).start()
    outcome = carried_out(task)
    told.write(json.dumps(asdict(outcome)) + "\n")
    told.flush()
    # At once: the thread above sits in a read, and an interpreter that is torn down under it may abort.
    os._exit(outcome.exit_code)


def carried_out(task: Task) -> Outcome:
    """Train, or go on, then measure; a run that is finished and measured is left as it is."""
    import torch

    from weightdecay.recipes.settings import TrainConfig
    from weightdecay.studies.directory import StudyDirectory
    from weightdecay.studies.measuring import measure
    from weightdecay.training.progress import SilentReporter
    from weightdecay.training.trainer import train

    torch.set_num_threads(1)
    directory = StudyDirectory(Path(task.study))
    config = TrainConfig.from_values(task.values, recipe=task.recipe)
    try:
        run = train(config, reporter=SilentReporter())
        if directory.measured(task.name) is None:
            measure(directory, task.name, run, task.measures)
    except StoppedError as error:
        return Outcome("stopped", str(error), error.exit_code)
    except RunBusyError as error:
        return Outcome("busy", str(error), error.exit_code)
    except TrainingError as error:  # the gradient is not finite: as it would be once more
        return Outcome("diverged", str(error), error.exit_code)
    except Exception as error:
        fault = error if isinstance(error, WeightDecayError) else fault_of_the_world(error)
        if fault is None:
            import traceback

            traceback.print_exc()
            return Outcome("failed", f"{type(error).__name__}: {error}", 1)
        return Outcome("failed", str(fault), fault.exit_code)
    return Outcome("finished", "", 0)


def _leave_with_the_study(stdin: TextIO) -> None:
    while stdin.read(1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
