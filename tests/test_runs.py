from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from weightdecay.errors import ConfigError, DamagedError, RunBusyError, StorageWarning, TrainingError
from weightdecay.recipes.schema import recipe
from weightdecay.runs import MetricsWriter, Run, dump_json, environment

text = st.text(st.characters(codec="utf-8"), max_size=30)


@settings(max_examples=50, deadline=None)
@example(sources=["\x7f\x1b\"'\\"], out="\n\x00", lr=0.0, seed=0)
@given(sources=st.lists(text, max_size=3), out=text, lr=st.floats(0, 1e3), seed=st.integers(0, 2**40))
def test_a_configuration_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, sources: list[str], out: str, lr: float, seed: int
) -> None:
    config = recipe("gpt2:nano").config(
        {"data.sources": tuple(sources), "run.out": out, "optimizer.lr": lr, "run.seed": seed}
    )
    run = Run(tmp_path_factory.mktemp("run"))
    run.write_config(config)
    assert Run.open(run.path).config() == config


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    run = Run(tmp_path)
    (tmp_path / "run.toml").write_text("recipe = 'x'\n[model]\nn_layers = ")
    with pytest.raises(DamagedError, match=r"run\.toml: cannot be read"):
        run.config()
    with pytest.raises(ConfigError, match="not a run directory"):
        Run.open(tmp_path.parent)


def test_rows_are_read_up_to_one_that_a_kill_tore_and_forgotten_after_a_step(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with MetricsWriter(run) as writer:
        for step in range(1, 6):
            writer.write(
                {"kind": "train" if step % 2 else "eval", "step": step, "loss": math.nan if step == 2 else 1.0}
            )
    with run.metrics_path.open("a") as file:
        file.write('{"kind": "train", "ste')
    assert [row["step"] for row in run.rows()] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in run.rows("eval")] == [2, 4]
    run.forget_rows_after(3)
    assert [row["step"] for row in run.rows()] == [1, 2, 3]
    assert list(run.rows())[1]["loss"] is None  # strict JSON has no NaN


def test_a_damaged_row_is_no_end_of_the_rows(tmp_path: Path) -> None:
    """What comes after it would be left out without a word, and dropped by the next resume."""
    run = Run(tmp_path)
    row = '{"kind": "train", "step": 1}\n'
    for damage in ('{"kind": "tr\n', "[]\n", '{"step": 2}\n', "\0\0\n"):
        run.metrics_path.write_text(row + damage + row)
        with pytest.raises(DamagedError, match=r"metrics\.jsonl: line 2 is damaged"):
            run.forget_rows_after(9)
        assert run.metrics_path.read_text() == row + damage + row


def test_a_place_where_nothing_can_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match=r"Not a directory.*give another --out"),
        Run(tmp_path / "file" / "run").lock(),
    ):
        pass


def test_a_directory_that_is_locked_for_nothing_is_not_left_behind(tmp_path: Path) -> None:
    fresh, old = Run(tmp_path / "fresh"), Run(tmp_path / "old")
    old.path.mkdir()
    with fresh.lock(), old.lock():
        assert fresh.path.is_dir()
    assert not fresh.path.exists()
    assert old.path.is_dir()
    with fresh.lock():
        (fresh.path / "run.toml").touch()
    assert {path.name for path in fresh.path.iterdir()} == {"run.toml", ".lock"}


def test_a_lock_whose_directory_was_removed_and_made_again_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run")

    def replaced_meanwhile(descriptor: int, operation: int) -> None:
        shutil.rmtree(run.path)
        run.path.mkdir()
        (run.path / ".lock").touch()
        real(descriptor, operation)

    real = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", replaced_meanwhile)
    with pytest.raises(RunBusyError, match="try again"), run.lock():
        pass


def test_json_is_strict() -> None:
    document = {"a": [math.inf, 1.5, (math.nan,)], "b": "</script>"}
    assert json.loads(dump_json(document)) == {"a": [None, 1.5, [None]], "b": "</script>"}


def test_a_full_disk_while_logging_is_told_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with (
        MetricsWriter(Run(tmp_path)) as writer,
        pytest.raises(TrainingError, match=r"metrics\.jsonl: cannot write: No space left"),
    ):
        writer.write({"kind": "train", "step": 1})


def test_the_environment_tells_versions_and_nothing_of_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "hunter2")
    told = environment()
    assert {"weightdecay", "python", "torch", "processor", "threads"} <= told.keys()
    assert "hunter2" not in json.dumps(told)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_a_file_system_has_no_locks_a_run_goes_on_and_says_what_that_risks(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def has_none(*_: object) -> None:  # as the kernel answers on NFS without its lock daemon
        raise OSError(number, os.strerror(number))

    run = Run(tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", has_none)
        with pytest.warns(StorageWarning, match="no locks here .*: start one at a time"), run.lock():
            run.write_text("run.toml", "")
    assert (run.path / "run.toml").is_file()
