"""Streams that are full, closed, or that nobody reads any longer: a line of words at most, and no traceback."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Answer
from tests.commands import COMMANDS, SMALL, Command
from tests.forking import Forked, ForkServer
from weightdecay.data.prepare import prepare_text
from weightdecay.recipes.schema import recipe
from weightdecay.runs import Run
from weightdecay.training.progress import SilentReporter
from weightdecay.training.trainer import train

Arguments = list[str]
WEIGHTDECAY = [sys.executable, "-m", "weightdecay"]
NO_SPACE, BAD_DESCRIPTOR = "No space left on device", "Bad file descriptor"
TINY = [
    "--set",
    "model.n_layers=1",
    "--set",
    "model.d_model=16",
    "--set",
    "model.n_heads=2",
    "--set",
    "model.context=16",
]


@pytest.fixture(scope="module")
def run(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    chosen = dict(word.split("=") for word in TINY if "=" in word)
    out = tmp_path_factory.mktemp("runs") / "one"
    values = {"data.sources": (str(small_text),), "data.tokenizer": "byte", "run.steps": 2, "run.batch_tokens": 64}
    return train(recipe("gpt3:nano").config({**values, **chosen, "run.out": str(out)}), reporter=SilentReporter())


@pytest.fixture(scope="module")
def arguments(run: Run, small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Arguments]:
    """Of each command that says something on stdout, a line that it can follow."""
    folder = tmp_path_factory.mktemp("made")
    prepare_text([str(small_text)], folder / "prepared", "byte")
    path = str(run.path)
    known: dict[str, Arguments] = {
        "sample": [path, "--max-tokens", "5"],
        "eval": [path],
        "export": [path],
        "plan": [path],
        "diagnose": [path],
        "forensics": [path],
        "convert": ["0.1", "--from", "torch", "--to", "composer", "--lr", "6e-4"],
        "advise": ["--params", "10M", "--tokens", "200M", "--batch-tokens", "65536", "--lr", "1e-3"],
        "data": ["inspect", str(folder / "prepared")],
        "verify": [path],
        "bench": ["gpt3:nano", "--steps", "1", *TINY, "--set", "model.vocab_size=300", "--set", "run.batch_tokens=64"],
        "runs": [str(run.path.parent)],
        "report": [path, "--format", "md", "--out", str(folder / "report.md")],
        "study": [],
        "recipes": [],
    }

    def of(name: str) -> Arguments:
        new = [str(folder / f"exported-{len(list(folder.iterdir()))}")] if name == "export" else []
        return [name, *known[name], *new]

    return of


@contextmanager
def full() -> Iterator[int]:
    with Path("/dev/full").open("wb") as file:
        yield file.fileno()


@contextmanager
def unread() -> Iterator[int]:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


def ended(process: Forked) -> tuple[int, str]:
    _, said = process.communicate()
    assert "Traceback" not in said
    return process.wait(0), said


# Those whose work is what they print; in the default suite two of them, a model's and a reckoning's.
NAMES = [
    name if name in ("sample", "convert") else pytest.param(name, marks=pytest.mark.long)
    for name in COMMANDS
    if name not in ("train", "watch")
]


@pytest.mark.parametrize("more", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("name", NAMES)
def test_a_result_that_cannot_be_written_is_told_in_a_line(
    name: str, more: Arguments, forks: ForkServer, arguments: Callable[[str], Arguments]
) -> None:
    with full() as stdout:
        code, said = ended(forks.start(*arguments(name), *more, merged=False, stdout=stdout))
    assert (code, said.splitlines()[-1]) == (1, f"error: stdout cannot be written: {NO_SPACE}")

    code, said = ended(forks.start(*arguments(name), *more, merged=False, closed=["stdout"]))
    assert (code, said.splitlines()[-1]) == (1, f"error: stdout cannot be written: {BAD_DESCRIPTOR}")

    with unread() as stdout:
        code, said = ended(forks.start(*arguments(name), *more, merged=False, stdout=stdout))
    assert code == 0
    assert "error" not in said


@pytest.mark.parametrize("reason", [NO_SPACE, BAD_DESCRIPTOR])
def test_a_training_goes_on_when_its_log_cannot_be_written(
    reason: str, forks: ForkServer, small_text: Path, tmp_path: Path
) -> None:
    command = ["train", "gpt3:nano", "--data", str(small_text), "--steps", "2", "--out", str(tmp_path / "run"), *SMALL]
    with full() as stdout:
        how: dict[str, Any] = {"stdout": stdout} if reason == NO_SPACE else {"closed": ["stdout"]}
        code, said = ended(forks.start(*command, merged=False, **how))
    assert (code, said) == (0, f"stdout cannot be written: {reason}: the run goes on and says nothing more there\n")
    assert Run.open(tmp_path / "run").status() == "finished"


def test_a_training_whose_document_cannot_be_written_has_been_made_all_the_same(
    forks: ForkServer, small_text: Path, tmp_path: Path
) -> None:
    command = ["train", "gpt3:nano", "--data", str(small_text), "--steps", "2", "--out", str(tmp_path / "run"), *SMALL]
    code, said = ended(forks.start(*command, "--json", merged=False, closed=["stdout"]))
    assert (code, said.splitlines()[-1]) == (1, f"error: stdout cannot be written: {BAD_DESCRIPTOR}")
    assert Run.open(tmp_path / "run").status() == "finished"


@pytest.mark.long
def test_a_training_that_cannot_say_how_far_it_is_still_gives_its_document(small_text: Path, tmp_path: Path) -> None:
    command = ["train", "gpt3:nano", "--data", str(small_text), "--steps", "2", "--out", str(tmp_path / "run"), *SMALL]
    with Path("/dev/full").open("w") as stderr:
        done = subprocess.run([*WEIGHTDECAY, *command, "--json"], stdout=subprocess.PIPE, stderr=stderr, check=False)
    assert done.returncode == 0
    assert json.loads(done.stdout)["summary"]["status"] == "finished"


# From Python's own beginning to its end, which a fork has not.
@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("recipes >/dev/full", 1, "error: stdout cannot be written: No space left on device"),
        ("recipes --json >/dev/full", 1, "error: stdout cannot be written: No space left on device"),
        ("recipes --json >&-", 1, "error: stdout cannot be written: Bad file descriptor"),
        ("recipes | head -1", 0, ""),
        ("recipes --json 2>&- | head -1", 0, ""),
        ("recipes show gpt5 2>&-", 2, ""),
        ("recipes show gpt5 --json <&- >&- 2>&-", 1, ""),
    ],
)
def test_a_shell_may_close_what_it_likes(line: str, code: int, words: str) -> None:
    script = f"set -o pipefail; {shlex.join(WEIGHTDECAY)} {line}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (code, words)


def test_a_watched_program_is_left_alone_where_its_document_has_nowhere_to_go(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import sys; print('its own', file=sys.stderr); sys.exit(7)")
    script = f"{shlex.join(WEIGHTDECAY)} watch --json -- program.py >&-"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 7
    assert done.stderr.startswith("its own\n")
    assert "Traceback" not in done.stderr
    assert f"the findings cannot be told: OSError: [Errno 9] {BAD_DESCRIPTOR}" in done.stderr


def test_a_talk_whose_input_is_closed_or_is_no_text_ends_in_words(
    run: Run, forks: ForkServer, command: Callable[..., Answer]
) -> None:
    code, said = ended(forks.start("sample", str(run.path), "--interactive", merged=False, closed=["stdin"]))
    assert (code, said.count("\n")) == (0, 1)
    code, _, said = command("sample", run.path, "--interactive", stdin=b"ab\xff\n")
    assert (code, said.splitlines()[-1]) == (2, "error: stdin: not UTF-8 at byte 2: convert it")


@pytest.mark.long
def test_several_processes_speak_where_one_does_and_as_wide(
    weightdecay: Command, small_text: Path, tmp_path: Path
) -> None:
    command = ["train", "gpt3:nano", "--data", small_text, "--steps", "2", "--nproc", "2", *SMALL]
    done = weightdecay(*command, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "step 2/2" in done.stdout
    assert "step 2/2" not in done.stderr
    heading = next(line for line in done.stdout.splitlines() if line.startswith(" tensor"))
    assert heading.split()[-1] == "why"
