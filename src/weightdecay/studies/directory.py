"""A study's directory: what was asked, its runs, what failed, and what came out.

STUDY/
  study.json      what was asked; written once, before the first run, and what a resume is compared with
  texts/NAME/     prepared text, beside the documents that it was made of
  runs/NAME/      run directories, with measured.json and worker.log
  finetuned/NAME/ run directories of fine-tuned models, where a study has such
  failures.json   runs that ended badly: kept, not counted
  results.json    the analysis, written anew whenever a run ends
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from weightdecay.errors import ConfigError, DamagedError, RunBusyError
from weightdecay.runs import Run, dump_json, read_json
from weightdecay.storage import Lock, lock, whole_file, why_no_directory

SCHEMA_VERSION = 1
STUDY, RESULTS, FAILURES, MEASURED = "study.json", "results.json", "failures.json", "measured.json"

# What a study may hold before study.json: a kill while its texts were made.
_BEFORE_A_STUDY = {"texts", ".lock"}
# What may differ between the start of a study and going on with it: nothing of it decides a result.
_FREE = {"started", "command", "weightdecay", "schema_version"}

Json = dict[str, Any]


@dataclass(frozen=True)
class StudyDirectory:
    """To read from and to write to.

    Raises:
        ConfigError: on reading, if the directory is no study's.
        DamagedError: on reading, if a file is not as it was written.
    """

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> StudyDirectory:
        """A directory that a study has written."""
        found = cls(Path(path))
        if not found.path.is_dir():
            raise ConfigError(f"{found.path}: {why_no_directory(found.path)}; `weightdecay study` makes one")
        if not found.begun:
            raise ConfigError(f"{found.path}: not a study: it has no {STUDY}; `weightdecay study` makes one")
        return found

    @property
    def begun(self) -> bool:
        return (self.path / STUDY).is_file()

    @property
    def texts(self) -> Path:
        return self.path / "texts"

    def run(self, name: str) -> Run:
        return Run(self.path / "runs" / name)

    def finetuned(self, name: str) -> Run:
        return Run(self.path / "finetuned" / name)

    def log(self, name: str) -> Path:
        """Where a run's worker says what it does."""
        return self.path / "logs" / f"{name}.log"

    def study(self) -> Json:
        """What was asked."""
        return self._read(STUDY)

    def results(self) -> Json:
        """The analysis, as far as it has come."""
        return self._read(RESULTS)

    def failures(self) -> list[Json]:
        """What ended badly, in order."""
        if not (self.path / FAILURES).is_file():
            return []
        found: list[Json] = self._read(FAILURES)["failures"]
        return found

    def measured(self, name: str) -> Json | None:
        """What was measured of a finished run; None while it was not."""
        path = self.run(name).path / MEASURED
        return read_json(path) if path.is_file() else None

    def write(self, name: str, document: Mapping[str, Any]) -> None:
        """A file of the study, whole or not at all."""
        with whole_file(self.path / name) as file:
            file.write((dump_json({"schema_version": SCHEMA_VERSION, **document}, indent=1) + "\n").encode())

    def add_failure(self, name: str, exit_code: int, outcome: str, why: str) -> None:
        """Keep that a run ended badly."""
        failure = {"name": name, "when": now(), "exit_code": exit_code, "outcome": outcome, "why": why}
        self.write(FAILURES, {"failures": [*self.failures(), failure]})

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the study against other processes; the kernel lets go when the holder dies.

        Raises:
            RunBusyError: another process carries it out.
            ConfigError: the directory cannot be written to, or holds other things.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            foreign = [] if self.begun else sorted({entry.name for entry in self.path.iterdir()} - _BEFORE_A_STUDY)
            if foreign := [name for name in foreign if not name.startswith(".partial-")]:
                raise ConfigError(
                    f"{self.path}: not empty, and not a study: it holds {', '.join(foreign[:5])}; give another --out"
                )
            file = (self.path / ".lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot write there ({error.strerror}): give another --out") from error
        with file:
            if lock(file) is Lock.BUSY:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise RunBusyError(
                    f"{self.path}: process {holder} carries out this study: wait for it, or give another --out"
                )
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def _read(self, name: str) -> Json:
        document = read_json(self.path / name)
        version = document.get("schema_version")
        if not isinstance(version, int) or version < 1:
            raise DamagedError(f"{self.path / name}: cannot be read: it says no schema_version")
        if version > SCHEMA_VERSION:
            raise ConfigError(
                f"{self.path / name}: of version {version}, newer than this weightdecay reads ({SCHEMA_VERSION}): "
                "update it"
            )
        return document


def now() -> str:
    """The time, for people."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def differences(before: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Each value that a study was begun with and that is asked for otherwise now, both in words."""
    old, new = _flat(before), _flat(asked)
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return [
        f"{key}: the study has {old.get(key, 'nothing')}, asked for {new.get(key, 'nothing')}"
        for key in keys
        if key.partition(".")[0] not in _FREE
    ]


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Keys of tables within tables joined by points; lists of tables by what names their rows."""
    found: dict[str, Any] = {}
    for key, value in document.items():
        place = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= _flat(value, f"{place}.")
        elif isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
            found |= _flat({str(item.get("name", index)): item for index, item in enumerate(value)}, f"{place}.")
        else:
            found[place] = list(value) if isinstance(value, tuple) else value
    return found
