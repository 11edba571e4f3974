"""Faults of the world are one line and no traceback; signals save; output goes where it is asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Answer
from tests.commands import COMMANDS, SMALL, Command
from weightdecay import __version__

WEIGHTDECAY = [sys.executable, "-m", "weightdecay"]


def _needs_a_word(name: str) -> bool:
    """Whether a command says nothing to a line without any."""
    return any(
        item.default is item.default_factory is dataclasses.MISSING for item in dataclasses.fields(COMMANDS[name])
    )


def test_the_version_is_told_and_as_a_document(weightdecay: Command) -> None:
    assert weightdecay("--version").stdout.split()[-1] == __version__
    assert __version__ in json.loads(weightdecay("--version", "--json").stdout).values()


def test_help_says_what_each_command_does(weightdecay: Command) -> None:
    told = " ".join(weightdecay("--help").stdout.replace("│", " ").split())
    for name, kind in COMMANDS.items():
        first_words = " ".join((kind.__doc__ or "").split()[:6])
        assert f"• {name} {first_words}" in told


def test_a_shell_is_given_its_completion(weightdecay: Command) -> None:
    done = weightdecay("--completion", "bash")
    assert done.returncode == 0, done.stderr
    assert "complete" in done.stdout


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_saves_what_the_umask_lets_others_read(
    number: signal.Signals, small_text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = ["train", "gpt3:nano", "--data", str(small_text), "--steps", "100000", "--out", str(out), *SMALL]
    process = subprocess.Popen(
        [*WEIGHTDECAY, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )  # fmt: skip
    metrics = out / "metrics.jsonl"
    for _ in range(600):
        if metrics.is_file() and metrics.read_text().count("\n") > 3:
            break
        time.sleep(0.1)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said
    saved = [path for path in (out / "checkpoints").iterdir() if path.name.startswith("step-")]
    assert saved
    modes = {stat.S_IMODE(file.stat().st_mode) for path in saved for file in path.iterdir()}
    mask = os.umask(0)
    os.umask(mask)
    assert modes == {0o666 & ~mask}


@pytest.mark.long
def test_a_cache_that_cannot_be_written_and_a_home_that_is_missing_are_gone_round(
    weightdecay: Command, small_text: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    command = ("train", "gpt3:nano", "--data", small_text, "--steps", "2", *SMALL)
    for number, where in enumerate((tmp_path / "file" / "cache", "/proc/nothing")):
        done = weightdecay(*command, "--out", tmp_path / f"run{number}", XDG_CACHE_HOME=str(where), HOME=str(where))
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr


def test_colours_are_asked_for_and_refused(weightdecay: Command) -> None:
    assert "\x1b[" not in weightdecay("plan", "gpt3:nano", NO_COLOR="1", FORCE_COLOR="").stdout
    assert "\x1b[" in weightdecay("plan", "gpt3:nano", FORCE_COLOR="1").stdout
    assert max(map(len, weightdecay("plan", "gpt3:nano", COLUMNS="60").stdout.splitlines())) <= 60


@pytest.mark.parametrize(
    "line",
    [
        "", "--bogus", "traim", "--completion tchs", "--version extra", "data", "data prepair",
        "watch", "watch --bogus -- x.py",
        *(f"{name} --bogus" for name in COMMANDS), *(name for name in COMMANDS if _needs_a_word(name)),
    ],
)  # fmt: skip
def test_a_line_that_no_command_takes_is_answered_by_one_document(line: str, command: Callable[..., Answer]) -> None:
    words = line.split()
    code, said, told = command(*(["--json", *words[1:]] if not words else [*words[:1], "--json", *words[1:]]))
    document = json.loads(said)
    assert code == document["exit_code"] == 2
    assert document["faults"]
    assert told == "".join(f"error: {fault}\n" for fault in document["faults"])


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["train", "--steps", ""], "--steps"), (["train", "--out="], "--out"), (["train", ""], "train"),
        (["train", "--data", "a.txt", ""], "a.txt"), (["sample", "run", "--seed", ""], "--seed"),
        (["plan", "gpt2:124m", "--policy", ""], "--policy"), (["advise", "--params", ""], "--params"),
    ],
)  # fmt: skip
def test_an_empty_value_is_no_default(arguments: list[str], flag: str, command: Callable[..., Answer]) -> None:
    """It is what a shell makes of a variable that nobody has set."""
    code, said, _ = command(*arguments, "--json")
    assert code == 2
    assert json.loads(said)["faults"] == [f"{flag} '': an empty value; leave it out for the default"]


def test_an_empty_prompt_and_an_empty_setting_are_values(command: Callable[..., Answer]) -> None:
    _, _, told = command("sample", "absent", "--prompt", "")
    assert "absent: no such directory" in told
    _, _, told = command("train", "--set=data.separator=", "--steps", "-1")
    assert "an empty value" not in told


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize("value", ["1", ""])
def test_a_terminal_asked_for_no_colour_gets_neither_colour_nor_bold(value: str) -> None:
    """On a real terminal of 60 columns; an empty NO_COLOR asks for nothing, as no-color.org says."""
    import pty
    import termios

    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 60))
    said = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"}
    environment = {key: kept for key, kept in os.environ.items() if key not in said}
    environment |= {"TERM": "xterm-256color", "NO_COLOR": value}
    process = subprocess.Popen([*WEIGHTDECAY, "recipes"], stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal whose other side has gone ends on Linux
        while piece := os.read(ours, 65536):
            shown += piece
    os.close(ours)
    assert process.wait() == 0
    assert (b"\x1b[" in shown) == (value == "")
    if value:
        assert max(len(line) for line in shown.decode().splitlines()) <= 60
