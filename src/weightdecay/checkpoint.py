"""Checkpoints: safetensors and JSON, each directory written once, whole or not at all.

    checkpoints/step-00000200/
      model.safetensors      weights by name
      optimizer.safetensors  optimizer state by parameter name
      state.json             the step, and what a resume must compare
      manifest.json          SHA-256 and size of each file, written last

A save fills a hidden directory, syncs it, and renames it. What a killed process leaves is hidden and without a
manifest: it is swept at the next start and never resumed from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from weightdecay.errors import DamagedError, TrainingError
from weightdecay.runs import dump_json
from weightdecay.storage import save_tensors, sync

MODEL, OPTIMIZER, STATE, MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
_PREFIX, _HIDDEN = "step-", ".partial-"


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint directory."""

    path: Path

    @property
    def step(self) -> int:
        return int(self.path.name.removeprefix(_PREFIX))

    def state(self) -> dict[str, Any]:
        """state.json."""
        document: dict[str, Any] = json.loads((self.path / STATE).read_text(encoding="utf-8"))
        return document

    def model(self) -> dict[str, Tensor]:
        """Weights by name, a tied tensor once."""
        return load_file(self.path / MODEL)

    @contextmanager
    def stored_model(self) -> Iterator[Mapping[str, Tensor]]:
        """The same as they lie on the disk: each is read when it is asked for."""
        with safe_open(self.path / MODEL, "pt") as file:
            yield _Stored(file)

    def optimizer(self) -> dict[str, Tensor]:
        """Optimizer state by `parameter/entry`."""
        return load_file(self.path / OPTIMIZER)

    def faults(self) -> list[str]:
        """What differs from the manifest; empty for a checkpoint that is as it was written.

        Raises:
            PermissionError: it is another user's, who does not let us read it.
        """
        try:
            manifest = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
            files: dict[str, dict[str, Any]] = manifest["files"]
            wanted = [(self._inside(name), entry["bytes"], entry["sha256"]) for name, entry in files.items()]
        except PermissionError:
            raise  # not damaged: its owner has to let us
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return [f"{self.path / MANIFEST}: cannot be read: {error}"]
        faults = [f"{self.path / name}: not in the manifest" for name in (MODEL, OPTIMIZER, STATE) if name not in files]
        for path, size, digest in wanted:
            if not path.is_file():
                faults.append(f"{path}: missing")
            elif path.stat().st_size != size:
                faults.append(f"{path}: {path.stat().st_size} bytes, the manifest says {size}")
            elif _sha256(path) != digest:
                faults.append(f"{path}: its SHA-256 is not the manifest's")
        return faults

    def _inside(self, name: str) -> Path:
        path = self.path / name
        if path.is_symlink() or path.resolve().parent != self.path.resolve():
            raise ValueError(f"'{name}' leads out of the checkpoint")
        return path


class _Stored(Mapping[str, Tensor]):
    """The tensors of an open file."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._names = list(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def save(
    folder: Path, step: int, *, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: Mapping[str, Any]
) -> Checkpoint:
    """Write the checkpoint of one step.

    Raises:
        TrainingError: the step is already there, or the disk refuses; other checkpoints are untouched.
    """
    final = of_step(folder, step).path
    if final.exists():
        raise TrainingError(f"{final}: already written; a checkpoint is written once")
    partial = folder / f"{_HIDDEN}{final.name}-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        save_tensors(model, partial / MODEL)
        save_tensors(optimizer, partial / OPTIMIZER)
        (partial / STATE).write_text(dump_json({"step": step, **state}, indent=2) + "\n", encoding="utf-8")
        files = {
            name: {"sha256": _sha256(partial / name), "bytes": (partial / name).stat().st_size}
            for name in (MODEL, OPTIMIZER, STATE)
        }
        manifest = {"format": 1, "step": step, "files": files}
        (partial / MANIFEST).write_text(dump_json(manifest, indent=2) + "\n", encoding="utf-8")
        for path in (*(partial / name for name in files), partial / MANIFEST, partial):
            sync(path)
        partial.rename(final)
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        older = newest(folder)
        kept = f"the checkpoint of step {older.step} is untouched" if older else "there is no older checkpoint"
        raise TrainingError(f"{final}: cannot write: {error}; {kept}; make room and resume") from error
    return Checkpoint(final)


def of_step(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of a step, whether it is there or not."""
    return Checkpoint(folder / f"{_PREFIX}{step:08d}")


def checkpoints(folder: Path) -> list[Checkpoint]:
    """All checkpoints, oldest step first: ordered by step, never by time."""
    if not folder.is_dir():
        return []
    found = (Checkpoint(path) for path in folder.iterdir() if re.fullmatch(f"{_PREFIX}[0-9]+", path.name))
    return sorted(found, key=lambda one: one.step)


def newest(folder: Path) -> Checkpoint | None:
    """The checkpoint of the highest step, verified or not."""
    return next(reversed(checkpoints(folder)), None)


def newest_good(folder: Path, report: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is as it was written; None if there never was one.

    Args:
        report: told of each damaged one that was passed over.

    Raises:
        DamagedError: there are checkpoints and all are damaged.
    """
    everything: list[str] = []
    for candidate in reversed(checkpoints(folder)):
        faults = candidate.faults()
        if not faults:
            return candidate
        everything += faults
        report(f"checkpoint of step {candidate.step} is damaged and is passed over: {'; '.join(faults)}")
    if everything:
        raise DamagedError(
            "no checkpoint is good, so nothing can be resumed:\n"
            + "\n".join(everything)
            + "\nrestore one from a copy, or start anew in another --out"
        )
    return None


def best(folder: Path) -> Checkpoint | None:
    """The checkpoint with the lowest held-out loss; the older of two equal ones."""
    scored = []
    for candidate in checkpoints(folder):
        try:
            loss = candidate.state().get("val_loss")
        except PermissionError:
            raise
        except (OSError, ValueError):
            continue  # damaged: `newest_good` says so when it matters
        if loss is not None:
            scored.append((loss, candidate.step, candidate))
    return min(scored, key=lambda item: item[:2])[2] if scored else None


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` and the best."""
    kept = {one.step for one in checkpoints(folder)[-keep:]}
    if (champion := best(folder)) is not None:
        kept.add(champion.step)
    for candidate in checkpoints(folder):
        if candidate.step not in kept:
            # Hidden first, so that a kill in the middle leaves rubbish to sweep and not a damaged checkpoint.
            doomed = candidate.path.with_name(f"{_HIDDEN}{candidate.path.name}-removed")
            candidate.path.rename(doomed)
            shutil.rmtree(doomed)


def set_aside(folder: Path, after: int) -> None:
    """Rename the checkpoints of steps after `after`, which a resumed run will write again; none is deleted."""
    for candidate in checkpoints(folder):
        if candidate.step > after:
            names = (f"damaged-{candidate.path.name}{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 1_000))))
            candidate.path.rename(next(path for name in names if not (path := folder / name).exists()))


def sweep(folder: Path, report: Callable[[str], None]) -> None:
    """Remove what an interrupted save or removal left."""
    for path in sorted(folder.glob(f"{_HIDDEN}*")) if folder.is_dir() else ():
        report(f"{path}: left by an interrupted save, removed")
        shutil.rmtree(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
