"""What a watch was asked for, as values that processes hand on to those that they start."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

VARIABLE = "WEIGHTDECAY_WATCH"
"""The variable of the environment that holds the settings in processes that a watched program starts."""

FailOn = Literal["", "error", "warning"]


@dataclass(frozen=True)
class Settings:
    """What was asked for.

    Attributes:
        program: the words that say what to run.
        folder: where processes leave what they saw, for the first one to bring together.
        root: the number of that process.
        at_step: the outermost step of an optimizer just before which it is audited.
        stop_after: the step after which the program ends; 0 if it goes on.
        policy: a name, or a file; "" where nobody says.
        weight_decay: λ that was meant.
        ignore: patterns of names by code, or a file of findings to live with.
        fail_on: the findings that make an exit code of 0 a 3.
        lock, check: a plan's file to write, and one to compare with.
        out: files for the findings.
        stdout: the descriptor that is kept for the one document of `--json`; None without it.
    """

    program: tuple[str, ...]
    folder: str
    root: int
    at_step: int = 2
    stop_after: int = 0
    policy: str = ""
    weight_decay: float | None = None
    ignore: str | Mapping[str, tuple[str, ...]] | None = None
    fail_on: FailOn = ""
    lock: str = ""
    check: str = ""
    out: tuple[str, ...] = ()
    stdout: int | None = None

    @property
    def is_root(self) -> bool:
        """Whether this is the process that was asked, and not one that the program has started."""
        return os.getpid() == self.root

    def to_environment(self, environment: Any) -> None:
        """Let Python processes that are started with this environment watch themselves."""
        environment[VARIABLE] = json.dumps(asdict(self))
        before = environment.get("PYTHONPATH", "")
        own = str(_WORKER)
        if own not in before.split(os.pathsep):
            environment["PYTHONPATH"] = os.pathsep.join([own, before] if before else [own])

    @classmethod
    def of_environment(cls) -> Settings | None:
        """What the process that started this one was asked for; None where nobody watches."""
        try:
            given = json.loads(os.environ[VARIABLE])
            known = {field.name for field in fields(cls)}
            made = cls(**{key: value for key, value in given.items() if key in known})
        except (KeyError, ValueError, TypeError):
            return None
        return replace(made, program=tuple(made.program), out=tuple(made.out))


_WORKER = Path(__file__).with_name("worker")
