"""The run directory: all that a training leaves, and all that reports, studies and advice read.

RUN/
  run.toml          the resolved configuration, every value
  environment.json  versions, processor, threads, corpus and tokenizer hashes, git commit
  plan.json         the decay plan
  tokenizer.json
  metrics.jsonl     a row a logged step
  checkpoints/step-00000200/…
  summary.json      written at the end
  loss.svg          its losses as a picture
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from weightdecay.errors import ConfigError, DamagedError, RunBusyError, TrainingError
from weightdecay.recipes.files import read_settings, settings_toml
from weightdecay.recipes.settings import TrainConfig
from weightdecay.storage import Lock, is_at, lock, whole_file, why_no_directory

Row = dict[str, Any]


def runs_in(folder: Path) -> list[Run]:
    """The run directories in a folder and below it, by their paths; what lies within a run is not looked into.

    One that has lost its run.toml is among them, and so is a folder that may not be looked into, as it may be one: to
    read them tells what is wrong.

    Raises:
        ConfigError: there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: {why_no_directory(folder)}: name the one that holds the runs")
    found: list[Run] = []
    for path, subfolders, files in os.walk(folder, onerror=lambda error: found.append(Run(Path(error.filename)))):
        if "run.toml" in files or ("metrics.jsonl" in files and "checkpoints" in subfolders):
            found.append(Run(Path(path)))
            subfolders.clear()
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
    return sorted(found, key=lambda run: run.path)


@dataclass(frozen=True)
class Run:
    """A run directory, to read from and to write to.

    Raises:
        ConfigError: on reading, if the directory is not a run's.
    """

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """A directory that a training has written."""
        run = cls(Path(path))
        if not run.path.is_dir():
            raise ConfigError(
                f"{run.path}: {why_no_directory(run.path)}; a run directory is what `weightdecay train` made"
            )
        if not (run.path / "run.toml").is_file():
            folder = run.path.absolute().parent
            if folder.name == run.checkpoints.name and (folder.parent / "run.toml").is_file():
                raise ConfigError(f"{run.path}: a checkpoint of a run: give the run, {folder.parent}")
            raise ConfigError(f"{run.path}: not a run directory: it has no run.toml; `weightdecay train` makes one")
        return run

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tokenizer_path(self) -> Path:
        return self.path / "tokenizer.json"

    def config(self) -> TrainConfig:
        """The configuration in run.toml.

        Raises:
            DamagedError: run.toml cannot be read.
        """
        path = self.path / "run.toml"
        try:
            return read_settings(path).config()
        except (KeyError, ConfigError) as error:
            raise DamagedError(f"{path}: cannot be read: {error}") from error

    def write_config(self, config: TrainConfig) -> None:
        """run.toml, every value."""
        self.write_text("run.toml", settings_toml(config))

    def write_json(self, name: str, document: Mapping[str, Any]) -> None:
        """`name` in the run directory, whole or not at all."""
        self.write_text(name, dump_json(document, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """The same for text: a reader sees the old file or the new one.

        Raises:
            StorageError: the disk refused; the old file is as it was.
        """
        with whole_file(self.path / name) as file:
            file.write(text.encode())

    def summary(self) -> Row | None:
        """summary.json, or None while the run has not ended.

        Raises:
            DamagedError: it cannot be read.
        """
        path = self.path / "summary.json"
        return read_json(path) if path.is_file() else None

    def status(self) -> str:
        """`finished`, `running` (a process holds the directory), or `stopped`; asking changes nothing.

        Raises:
            DamagedError: summary.json cannot be read.
        """
        path = self.path / ".lock"
        try:
            with path.open("r+", encoding="utf-8") as file:
                if lock(file) is Lock.BUSY:
                    return "running"
        except OSError:
            pass  # never begun here, or another user's: the files tell the rest
        summary = self.summary()
        return str(summary["status"]) if summary and "status" in summary else "stopped"

    def rows(self, kind: str | None = None) -> Iterator[Row]:
        """The metric rows in order; a last line torn by a kill is left out.

        Raises:
            DamagedError: another line is no row.
        """
        if not self.metrics_path.is_file():
            return
        with self.metrics_path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                    of_kind = row["kind"]
                except (ValueError, TypeError, KeyError) as error:
                    if not line.endswith(b"\n"):
                        return
                    raise DamagedError(
                        f"{self.metrics_path}: line {number} is damaged: take it out to go on without it"
                    ) from error
                if kind in (None, of_kind):
                    yield row

    def forget_rows_after(self, step: int) -> None:
        """Drop the rows of steps that a resumed run will take again."""
        kept = [dump_json(row) + "\n" for row in self.rows() if row["step"] <= step]
        self.write_text(self.metrics_path.name, "".join(kept))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory against other processes; the kernel lets go when the holder dies, however it dies.

        A directory that is made here, and in which nothing is made afterwards, is not left behind.

        Raises:
            RunBusyError: another process holds it.
            ConfigError: the directory cannot be made or written to.
        """
        path = self.path / ".lock"
        try:
            made = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot write there ({error.strerror}): give another --out") from error
        with file:
            if lock(file) is Lock.BUSY:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise RunBusyError(
                    f"{self.path}: process {holder} is training here: wait for it, or give another --out"
                )
            if not is_at(file.fileno(), path):
                raise RunBusyError(f"{self.path}: another process has just removed it: try again")
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            try:
                yield
            finally:
                if made and list(self.path.iterdir()) == [path]:
                    path.unlink()
                    self.path.rmdir()


class Tracker(Protocol):
    """Something else that a run's numbers are sent to; `integrations` has those that are known here.

    What a tracker raises ends the run: whoever wants it to go on without catches that in the tracker.
    """

    def start(self, run: Run, step: int) -> None:
        """A run begins, or goes on after `step`: rows of later steps that were sent before are void."""

    def row(self, row: Row) -> None:
        """A row as it is written to metrics.jsonl."""

    def close(self) -> None:
        """No more rows come, however the run ended."""


class MetricsWriter:
    """Appends rows to metrics.jsonl, each on the disk's way before the next step begins, and to a tracker.

    Args:
        tracker: is sent each row once it is written.
        step: after which the rows begin.

    Raises:
        TrainingError: the row cannot be written (a full disk), with the path.
    """

    def __init__(self, run: Run, tracker: Tracker | None = None, step: int = 0) -> None:
        self._path = run.metrics_path
        self._file = self._path.open("ab", buffering=0)
        self._tracker = tracker
        if tracker is not None:
            tracker.start(run, step)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._tracker is not None:
            self._tracker.close()

    def write(self, row: Row) -> None:
        with self._told():
            self._file.write((dump_json(row) + "\n").encode())
        if self._tracker is not None:
            self._tracker.row(row)

    def sync(self) -> None:
        """Wait until the rows are on the disk, so that no checkpoint outlives those of its steps."""
        with self._told():
            os.fsync(self._file.fileno())

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(f"{self._path}: cannot write: {error.strerror}; make room and resume") from error


def read_json(path: Path) -> Row:
    """A JSON object in a file.

    Raises:
        DamagedError: it cannot be read, or is none.
        PermissionError: it is another user's, who does not let us.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except PermissionError:
        raise  # not damaged: its owner has to let us
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path}: cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise DamagedError(f"{path}: cannot be read: not a JSON object")
    return document


def dump_json(document: Any, indent: int | None = None) -> str:
    """Strict JSON: a number that is not finite becomes null, since JSON has no word for it."""
    return json.dumps(_finite(document), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def environment() -> Row:
    """What a reader needs to judge a run's numbers; from an allow-list, so that no secret of the shell leaks."""
    import numpy
    import torch

    from weightdecay import __version__

    return {
        "weightdecay": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "git_commit": _git_commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _git_commit() -> str:
    """The commit of the directory that the run is started from, if it is a repository's."""
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip()
