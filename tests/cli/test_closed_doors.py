"""Files that another user does not let us read or write, memory that is not there: words, and nothing is damaged."""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands import SMALL, Command
from tests.forking import ForkServer
from weightdecay.cli import main
from weightdecay.training.needs import _left_by_ulimit

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="rights and limits as Linux has them")

Answer = tuple[int, str, str]
Deprived = Callable[..., list[Answer]]


def lay_rights_down() -> None:
    """Root becomes what any user is: capset(2) with no capability."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capset(header, nothing):
        raise OSError(ctypes.get_errno(), "capset")


def one_by_one(commands: list[list[str]], told: str) -> None:
    lay_rights_down()
    answers = []
    for arguments in commands:
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main(arguments)
        except SystemExit as left:
            answers.append((int(left.code or 0), out.getvalue(), err.getvalue()))
    Path(told).write_text(json.dumps(answers), encoding="utf-8")


@pytest.fixture
def deprived(forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Deprived:
    """Commands in one process that has no right but its user's."""

    def run(*commands: list[Any]) -> list[Answer]:
        told = tmp_path_factory.mktemp("told") / "answers.json"
        process = forks.call(one_by_one, [[str(word) for word in command] for command in commands], str(told))
        said, _ = process.communicate()
        assert process.returncode == 0, said
        return [(code, out, err) for code, out, err in json.loads(told.read_text(encoding="utf-8"))]

    return run


@pytest.fixture
def finished(command: Callable[..., Answer], small_text: Path, tmp_path: Path) -> Path:
    out = tmp_path / "run"
    steps = ["--steps", "4", "--checkpoint-every", "2"]
    code, _, said = command("train", "gpt3:nano", "--data", small_text, *steps, "--out", out, *SMALL)
    assert code == 0, said
    return out


@pytest.fixture
def closing() -> Iterator[Callable[[Path], None]]:
    closed: list[tuple[Path, int]] = []

    def close(path: Path) -> None:
        closed.append((path, path.stat().st_mode))
        path.chmod(0)

    yield close
    for path, mode in reversed(closed):
        path.chmod(mode)


def test_a_run_whose_owner_keeps_it_closed_is_not_called_damaged(
    finished: Path, closing: Callable[[Path], None], deprived: Deprived, tmp_path: Path
) -> None:
    for checkpoint in (finished / "checkpoints").iterdir():
        for file in checkpoint.iterdir():
            closing(file)
    readers = [
        ["sample", finished, "--max-tokens", "3"],
        ["sample", finished, "--checkpoint", "best", "--max-tokens", "3"],
        ["eval", finished],
        ["export", finished, tmp_path / "exported"],
        ["verify", finished],
        ["sample", finished / "checkpoints" / "step-00000002", "--max-tokens", "3"],
    ]
    for code, _, said in deprived(*readers):
        assert (code, said.count("\n")) == (1, 1), said
        assert "Permission denied: its owner has to let you" in said

    closing(finished / "run.toml")
    told = deprived(["plan", finished], ["train", "--config", finished / "run.toml", "--dry-run"], ["runs", tmp_path])
    assert [code for code, _, _ in told] == [1, 1, 1]
    assert all("Permission denied" in said for _, _, said in told)
    assert "closed" in told[2][1]
    assert "damaged" not in "".join(out + said for _, out, said in told)

    closing(finished)
    ((code, said, told_too),) = deprived(["runs", tmp_path])
    assert code == 1
    assert "closed" in said
    assert str(finished) in told_too
    assert "Permission denied" in told_too


def test_a_place_that_may_not_be_written_to_is_named(
    finished: Path, small_text: Path, deprived: Deprived, tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    writers = [
        ["plan", "gpt3:nano", "--lock", closed / "lock.json"],
        ["export", finished, closed / "exported"],
        ["data", "prepare", small_text, "--tokenizer", "byte", "--out", closed / "prepared"],
        ["train", "gpt3:nano", "--data", small_text, *SMALL, "--steps", "2", "--out", closed / "run"],
    ]
    for code, _, said in deprived(*writers):
        assert code in (1, 2)
        assert str(closed) in said.splitlines()[-1]
        assert "ermission denied" in said.splitlines()[-1]


def test_a_folder_that_cannot_be_read_is_not_left_out(
    closing: Callable[[Path], None], deprived: Deprived, tmp_path: Path
) -> None:
    (tmp_path / "text" / "locked").mkdir(parents=True)
    (tmp_path / "text" / "open.txt").write_text("some text. " * 500)
    closing(tmp_path / "text" / "locked")
    prepare = ["data", "prepare", tmp_path / "text", "--tokenizer", "byte", "--out", tmp_path / "prepared"]
    ((code, _, said),) = deprived(prepare)
    assert code == 2
    assert "locked: cannot be read: Permission denied" in said


LIMIT = 8 << 30


def with_few_addresses(arguments: list[str]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    main(arguments)


def what_is_left(limited: bool) -> None:
    if limited:
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    print(*_left_by_ulimit())


def test_memory_that_a_limit_leaves_is_what_can_be_had(forks: ForkServer, small_text: Path, tmp_path: Path) -> None:
    command = ["train", "gpt3:2.7b", "--tokenizer", "byte", "--data", str(small_text), "--steps", "20000"]
    process = forks.call(with_few_addresses, command, directory=tmp_path)
    said, _ = process.communicate()
    assert process.returncode == 1, said
    assert "Traceback" not in said
    assert "GB can be had" in said.splitlines()[-1]


def test_what_a_limit_of_addresses_leaves_is_less_than_the_limit(forks: ForkServer) -> None:
    told = [forks.call(what_is_left, limited).communicate()[0].split() for limited in (True, False)]
    assert 0 < int(told[0][0]) < LIMIT - (100 << 20)  # torch alone takes more of them
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        assert told[1] == []


def test_memory_that_runs_out_is_one_line(
    weightdecay: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "hungry.py").write_text("import torch\n\ndef make():\n    torch.empty(1 << 50, device='cpu')\n")
    monkeypatch.chdir(tmp_path)
    done = weightdecay("plan", "python:hungry:make")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_what_a_module_prints_does_not_get_into_the_document(
    weightdecay: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = "import torch\n\nprint('noise')\n\ndef make():\n    print('more')\n    return torch.nn.Linear(3, 3)\n"
    (tmp_path / "chatty.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    done = weightdecay("plan", "python:chatty:make", "--json")
    assert len(json.loads(done.stdout)["tensors"]) == 2
    assert done.stderr.split() == ["noise", "more"]
