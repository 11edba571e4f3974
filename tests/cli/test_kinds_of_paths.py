"""A file where a directory is wanted, and the reverse: the message says what lies there and what is wanted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Answer

MODEL = "give a run (run.toml), one of its checkpoints (manifest.json), or an exported or Hugging Face directory"
RUN = "a run directory is what `weightdecay train` made"
# Command lines by what they want there instead of PATH.
WANT_A_DIRECTORY = {
    "sample PATH": MODEL,
    "eval PATH": MODEL,
    "export PATH new": MODEL,
    "verify PATH": RUN,
    "diagnose PATH": RUN,
    "runs PATH": "name the one that holds the runs",
    "report PATH": "name the one that holds the runs",
    "data inspect PATH": "weightdecay data prepare SRC… --out DIR makes one",
    "train --dry-run --init-from PATH": "give a run, a checkpoint or a Hugging Face directory",
}
WANT_A_FILE = (
    "train --config PATH",
    "train --dry-run --policy PATH.toml",
    "train --dry-run --tokenizer PATH",
    "sample . --prompt-file PATH",
    "plan gpt3:nano --trace off --lock PATH",
    "plan gpt3:nano --trace off --check PATH",
    "plan PATH",
    "watch --check PATH -- program.py",
    "recipes show PATH.toml",
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("program.py").touch()


@pytest.mark.parametrize("line", WANT_A_DIRECTORY)
def test_a_file_in_the_place_of_a_directory_is_called_one(line: str, command: Callable[..., Answer]) -> None:
    words = [word.replace("PATH", "ckpt.pt") for word in line.split()]
    code, _, told = command(*words)
    assert (code, "no such directory" in told) == (2, True), told

    Path("ckpt.pt").write_bytes(b"PK\x03\x04")
    code, _, told = command(*words)
    last = told.splitlines()[-1]
    assert code == 2
    assert "ckpt.pt: a file, not a directory" in last
    assert WANT_A_DIRECTORY[line] in last


@pytest.mark.parametrize("line", WANT_A_FILE)
def test_a_directory_in_the_place_of_a_file_is_called_one(line: str, command: Callable[..., Answer]) -> None:
    Path("folder").mkdir()
    Path("folder.toml").mkdir()
    code, _, told = command(*line.replace("PATH", "folder").split())
    assert code in (1, 2)
    assert "Traceback" not in told
    last = told.splitlines()[-1]
    assert "folder" in last
    assert "directory" in last.lower()
    assert "no such" not in last.lower()


def test_a_checkpoint_of_torch_is_no_model_to_plan_and_no_recipe(command: Callable[..., Answer]) -> None:
    Path("ckpt.pt").write_bytes(b"PK\x03\x04")
    code, _, told = command("plan", "ckpt.pt")
    assert (code, told.count("\n")) == (2, 1)
    assert "ckpt.pt: a file, and none that is known here: give a run directory" in told
    assert "no recipe 'gtp2'" in command("plan", "gtp2")[2]


@pytest.mark.parametrize("line", [*WANT_A_DIRECTORY, *WANT_A_FILE, "train --out PATH --steps 1", "train --data PATH"])
def test_a_path_that_no_disk_can_hold_is_wrong_usage(line: str, command: Callable[..., Answer]) -> None:
    code, _, told = command(*line.replace("PATH", "n" * 300).split())
    assert code == 2, told
    assert "Traceback" not in told
