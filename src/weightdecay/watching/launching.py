"""A watched process, from its first line to its last."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from weightdecay.errors import WeightDecayError
from weightdecay.watching import telling
from weightdecay.watching.arming import AfterImport
from weightdecay.watching.leaving import How, guard
from weightdecay.watching.program import Program
from weightdecay.watching.records import Outcome, Records
from weightdecay.watching.settings import Settings

if TYPE_CHECKING:
    from weightdecay.watching.steps import Steps

_joined: list[Process] = []


def prepared(settings: Settings) -> Settings:
    """A place for what will be seen, and files that say that nothing has been yet.

    Raises:
        StorageError: one cannot be written.
    """
    folder = tempfile.mkdtemp(prefix="weightdecay-watch-")
    settings = replace(settings, folder=folder, root=os.getpid())
    try:
        Records(settings).begin()
    except WeightDecayError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return settings


def launch(settings: Settings) -> NoReturn:
    """Run the program here, and end as it ends. All has been checked and prepared."""
    while _joined:  # Python has begun to watch this process before it was known that it watches itself
        _joined.pop().disarm()
    process = Process(settings)
    settings.to_environment(os.environ)
    guard(process.finish, process.hand_on)
    process.arm()
    Program.of(settings.program).run(process.program_ends)


def join() -> None:
    """Watch this process, if it was started by a program that is watched. Called by Python at its start."""
    settings = Settings.of_environment()
    if settings is None or not os.path.isdir(settings.folder):  # noqa: PTH112  # pathlib would cost every process 5 ms
        return
    process = Process(settings)
    process.arm()
    _joined.append(process)
    if settings.is_root:  # the program has become another one, which ends for both
        atexit.register(process.finish, "ended", None)


class Process:
    """One process of a watch."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.records = settings, Records(settings)
        self.steps: Steps | None = None
        self.exit_code: int | None = None
        self._waiting = AfterImport("torch", self._attach)
        self._is_finished = False

    def arm(self) -> None:
        self._waiting.arm()

    def disarm(self) -> None:
        self._is_finished = True
        if self.steps is not None:
            self.steps.detach()
        if self._waiting in sys.meta_path:
            sys.meta_path.remove(self._waiting)

    def _attach(self) -> None:
        from weightdecay.watching.examining import Examination
        from weightdecay.watching.steps import Steps

        examination = Examination(self.settings, self.records)
        self.steps = Steps(self.settings.at_step, self.settings.stop_after, examination.examine)
        self.steps.attach()

    def program_ends(self, error: BaseException | None) -> None:
        """Know with which code Python is going to end."""
        self.exit_code = _code_of(error)

    def hand_on(self, environment: Any, is_python: bool) -> None:
        """Let what takes this process's place go on."""
        settings = self.settings
        if is_python and settings.stdout is not None:
            os.set_inheritable(settings.stdout, True)
        settings.to_environment(environment)

    def finish(self, how: How, code: int | None) -> int | None:
        """Say and write what there is to be said; the exit code that must be another than the program's own."""
        if self._is_finished:
            return None
        self._is_finished = True
        code = self.exit_code if code is None and how == "ended" else code
        if self.steps is not None and how != "replaced":
            self.steps.examine_at_end()
        outcome = Outcome(how, code, self.steps)
        try:
            failed = self.records.end(outcome)
        except Exception as error:  # the program's own end must not change by a fault of ours
            telling.tell(f"the findings cannot be told: {type(error).__name__}: {error}")
            failed = bool(self.settings.fail_on)
        if how != "replaced":
            shutil.rmtree(self.settings.folder, ignore_errors=True)
        return 3 if failed and code == 0 else None


def _code_of(error: BaseException | None) -> int:
    """The exit code that Python makes of what a program ends by."""
    if error is None:
        return 0
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, SystemExit):
        if error.code is None:
            return 0
        return int(error.code) & 0xFF if isinstance(error.code, int) else 1
    return 1
