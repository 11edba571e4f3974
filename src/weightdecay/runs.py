"""The run directory: all that a training leaves, and all that reports, studies and advice read.

RUN/
  run.toml          the resolved configuration, every value
  environment.json  versions, processor, threads, corpus and tokenizer hashes, git commit
  plan.json         the decay plan
  tokenizer.json
  metrics.jsonl     a row a logged step
  checkpoints/step-00000200/…
  summary.json      written at the end
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import platform
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightdecay.data.storage import is_at, whole_file
from weightdecay.errors import ConfigError, DamagedError, RunBusyError, TrainingError
from weightdecay.recipes.settings import TrainConfig

Row = dict[str, Any]


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
            raise ConfigError(f"{run.path}: no such directory; a run directory is what `weightdecay train` made")
        if not (run.path / "run.toml").is_file():
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
            document = tomllib.loads(path.read_text(encoding="utf-8"))
            sections = {key: value for key, value in document.items() if isinstance(value, dict)}
            values = {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}
            return TrainConfig.from_values(_as_of_now(values), recipe=document["recipe"], scaling=document["scaling"])
        except (OSError, KeyError, UnicodeDecodeError, tomllib.TOMLDecodeError, ConfigError) as error:
            raise DamagedError(f"{path}: cannot be read: {error}") from error

    def write_config(self, config: TrainConfig) -> None:
        """run.toml, every value."""
        heading = f"recipe = {_toml(config.recipe)}\nscaling = {_toml(config.scaling)}\n\n"
        self.write_text("run.toml", heading + settings_toml(config))

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

    def rows(self, kind: str | None = None) -> Iterator[Row]:
        """The metric rows in order; a last line torn by a kill is left out."""
        if not self.metrics_path.is_file():
            return
        with self.metrics_path.open(encoding="utf-8") as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    return
                if kind is None or row["kind"] == kind:
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
            lock = path.open("a+")
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot write there ({error.strerror}): give another --out") from error
        with lock as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise RunBusyError(
                    f"{self.path}: process {holder} is training here: wait for it, or give another --out"
                ) from error
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


class MetricsWriter:
    """Appends rows to metrics.jsonl, each on the disk's way before the next step begins.

    Raises:
        TrainingError: the row cannot be written (a full disk), with the path.
    """

    def __init__(self, run: Run) -> None:
        self._path = run.metrics_path
        self._file = self._path.open("ab", buffering=0)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, row: Row) -> None:
        with self._told():
            self._file.write((dump_json(row) + "\n").encode())

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
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path}: cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise DamagedError(f"{path}: cannot be read: not a JSON object")
    return document


def _as_of_now(values: dict[str, Any]) -> dict[str, Any]:
    """What an older version wrote, with settings that it did not have at what it did without them."""
    routed = values.get("model.n_experts") and values.get("model.n_dense_layers", 0) < values.get("model.n_layers", 0)
    if values.get("optimizer.name") == "muon" and routed:
        # Muon took each matrix that is no table or head, routers too.
        return {"optimizer.role_overrides": ("router=linear weight",), **values}
    return values


def settings_toml(config: TrainConfig) -> str:
    """Every setting, a table a section."""
    lines: list[str] = []
    section = ""
    for key, value in config.values().items():
        head, _, name = key.partition(".")
        if head != section:
            lines += ["", f"[{head}]"] if lines else [f"[{head}]"]
            section = head
        lines.append(f"{name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


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


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
