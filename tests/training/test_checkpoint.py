from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.forking import ForkServer
from weightdecay import checkpoint
from weightdecay.checkpoint import Checkpoint
from weightdecay.errors import DamagedError, TrainingError


def written(folder: Path, step: int, val_loss: float | None = None) -> Checkpoint:
    tensors = {"a.weight": torch.full((4, 3), float(step)), "a.bias": torch.zeros(3, dtype=torch.bfloat16)}
    return checkpoint.save(
        folder, step, model=tensors, optimizer={"a.weight/exp_avg": torch.ones(4, 3)}, state={"val_loss": val_loss}
    )


def silent(_: str) -> None: ...


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    made = written(tmp_path, 7, val_loss=1.5)
    found = checkpoint.newest_good(tmp_path, silent)
    assert found == made
    assert torch.equal(found.model()["a.weight"], torch.full((4, 3), 7.0))
    assert found.model()["a.bias"].dtype == torch.bfloat16
    assert torch.equal(found.optimizer()["a.weight/exp_avg"], torch.ones(4, 3))
    assert found.state() == {"step": 7, "val_loss": 1.5}
    assert found.faults() == []


def test_a_step_is_written_once(tmp_path: Path) -> None:
    written(tmp_path, 7)
    with pytest.raises(TrainingError, match="written once"):
        written(tmp_path, 7)


def test_order_is_by_step_and_not_by_time(tmp_path: Path) -> None:
    for step in (300, 20, 1000):
        made = written(tmp_path, step)
        os.utime(made.path, (10_000 - step, 10_000 - step))
    assert [one.step for one in checkpoint.checkpoints(tmp_path)] == [20, 300, 1000]


def test_what_is_named_otherwise_is_no_checkpoint(tmp_path: Path) -> None:
    made = written(tmp_path, 20)
    for name in ("00000030", "step-", "step-last", "damaged-step-00000040", ".partial-step-00000050-1"):
        (tmp_path / name).mkdir()
    assert checkpoint.checkpoints(tmp_path) == [made]


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step, loss in ((10, 3.0), (20, 1.0), (30, 2.0), (40, None), (50, 2.0)):
        written(tmp_path, step, loss)
    checkpoint.prune(tmp_path, keep=2)
    assert [one.step for one in checkpoint.checkpoints(tmp_path)] == [20, 40, 50]
    best = checkpoint.best(tmp_path)
    assert best is not None
    assert best.step == 20


@pytest.mark.parametrize("name", [checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.STATE, checkpoint.MANIFEST])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_damaged_file_is_named_and_the_older_checkpoint_is_used(tmp_path: Path, name: str, damage: str) -> None:
    older, newer = written(tmp_path, 10), written(tmp_path, 20)
    path = newer.path / name
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content if damage == "flipped" else content[:-5])
    said: list[str] = []
    assert checkpoint.newest_good(tmp_path, said.append) == older
    assert len(said) == 1
    assert "step 20" in said[0]
    assert name in said[0] or name == checkpoint.MANIFEST


def test_when_every_checkpoint_is_damaged_nothing_is_resumed(tmp_path: Path) -> None:
    for step in (10, 20):
        (written(tmp_path, step).path / checkpoint.MODEL).write_bytes(b"")
    with pytest.raises(DamagedError, match="no checkpoint is good") as caught:
        checkpoint.newest_good(tmp_path, silent)
    assert caught.value.exit_code == 4


def test_a_manifest_that_leaves_a_file_out_is_a_fault(tmp_path: Path) -> None:
    made = written(tmp_path, 1)
    path = made.path / checkpoint.MANIFEST
    manifest = json.loads(path.read_text())
    del manifest["files"][checkpoint.STATE]
    path.write_text(json.dumps(manifest))
    assert made.faults() == [f"{made.path / checkpoint.STATE}: not in the manifest"]


def test_all_of_a_checkpoint_is_on_the_disk_before_it_takes_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def sync(descriptor: int) -> None:
        done.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real_sync(descriptor)

    def rename(path: Path, target: Path) -> Path:
        done.append(f"renamed to {target.name}")
        return real_rename(path, target)

    real_sync, real_rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", rename)
    made = written(tmp_path, 20)
    hidden = tmp_path / f".partial-step-00000020-{os.getpid()}"
    parts = [checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.STATE, checkpoint.MANIFEST]
    assert done == [*(str(hidden / name) for name in parts), str(hidden), f"renamed to {made.path.name}", str(tmp_path)]


def killed_at_every_event(folder: Path, work: Callable[[], object]) -> Iterator[int]:
    """A fork a turn does `work` and is killed before its n-th touch of the file system, until one gets through."""
    for n in range(1, 200):
        copy = folder.with_name(f"{folder.name}-before")
        shutil.copytree(folder, copy)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's threads, which the child does not need
            child = os.fork()
        if child == 0:
            touched = 0

            def count(event: str, arguments: tuple[object, ...]) -> None:
                nonlocal touched
                if event in _TOUCHES and any(str(folder) in str(one) for one in arguments):
                    touched += 1
                    if touched == n:  # noqa: B023  # this turn's
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(count)
            work()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        yield n
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return
        shutil.rmtree(folder)
        copy.rename(folder)
    pytest.fail("the work never ended")


_TOUCHES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def test_a_save_that_is_killed_in_any_phase_leaves_the_older_checkpoint_and_something_to_sweep(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    older = written(folder, 10)
    turns = 0
    for turns in killed_at_every_event(folder, lambda: written(folder, 20)):  # noqa: B007  # counted
        complete = checkpoint.of_step(folder, 20)
        assert all(one.faults() == [] for one in checkpoint.checkpoints(folder))
        assert checkpoint.newest_good(folder, silent) in (older, complete)
        said: list[str] = []
        checkpoint.sweep(folder, said.append)
        assert [path.name for path in sorted(folder.iterdir())] in (
            [older.path.name],
            [older.path.name, complete.path.name],
        )
        if not complete.path.exists():
            assert len(said) <= 1
            assert written(folder, 20).faults() == []
    assert turns > 10


def test_a_removal_that_is_killed_in_any_phase_leaves_no_damaged_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (10, 20):
        written(folder, step)
    turns = 0
    for turns in killed_at_every_event(folder, lambda: checkpoint.prune(folder, keep=1)):  # noqa: B007  # counted
        assert all(one.faults() == [] for one in checkpoint.checkpoints(folder))
        checkpoint.sweep(folder, silent)
        assert {path.name for path in folder.iterdir()} <= {"step-00000010", "step-00000020"}
        assert checkpoint.of_step(folder, 20).path.exists()
    assert turns > 3


def test_a_manifest_cannot_lead_out_of_its_directory(tmp_path: Path) -> None:
    made = written(tmp_path / "checkpoints", 1)
    (tmp_path / "secret").write_text("secret")
    path = made.path / checkpoint.MANIFEST
    manifest = json.loads(path.read_text())
    manifest["files"]["../../secret"] = {"sha256": "0", "bytes": 6}
    path.write_text(json.dumps(manifest))
    assert "leads out" in made.faults()[0]


def test_what_an_interrupted_save_left_is_named_and_swept_and_never_resumed(tmp_path: Path) -> None:
    written(tmp_path, 10)
    partial = tmp_path / ".partial-step-00000020-123"
    partial.mkdir()
    (partial / checkpoint.MODEL).write_bytes(b"half")
    found = checkpoint.newest_good(tmp_path, silent)
    assert found is not None
    assert found.step == 10
    said: list[str] = []
    checkpoint.sweep(tmp_path, said.append)
    assert not partial.exists()
    assert str(partial) in said[0]


def written_to_little_room(folder: str, limit: int) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        written(Path(folder), 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)  # there is room for what is said


@pytest.mark.parametrize("limit", [0, 100, 450])
def test_a_full_disk_leaves_the_older_checkpoint_intact(forks: ForkServer, tmp_path: Path, limit: int) -> None:
    """The kernel refuses every write beyond the limit, as it does on a full disk."""
    older = written(tmp_path, 10)
    _, said = forks.call(written_to_little_room, str(tmp_path), limit, merged=False).communicate()
    assert "TrainingError" in said
    last = said.strip().splitlines()[-1]
    assert "step-00000020: cannot write" in last
    assert "the checkpoint of step 10 is untouched" in last
    assert [path.name for path in tmp_path.iterdir()] == [older.path.name]
    assert older.faults() == []
