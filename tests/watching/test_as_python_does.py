"""A watched program is run as Python itself would run it. These programs import no torch, so that they are quick."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.watching.running import WATCH, alone, script, watched

# Everything that a program may look at of itself.
MIRROR = """
    import os, pickle, sys, warnings

    class Config:
        pass

    main = sys.modules["__main__"]
    assert main.__dict__ is globals()
    print(__name__, sys.argv, sys.path[0], os.getcwd(), sys.orig_argv[1:])
    print(globals().get("__file__"), __package__, getattr(__spec__, "name", None), type(__builtins__), __doc__)
    print({key: value for key, value in globals().items() if key in ("__annotations__", "__cached__")})
    print(type(__loader__) if isinstance(__loader__, object) else None, list(globals())[:9])
    print(type(pickle.loads(pickle.dumps(Config()))) is Config, warnings.showwarning.__module__)
    print(type(sys.stdout).__name__, sys.stdout.errors, sys.stdin.read(), sys.excepthook is sys.__excepthook__)
    print([path for path in sys.path[1:] if "worker" in path], "torch" in sys.modules, "numpy" in sys.modules)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    script(tmp_path, MIRROR, "mirror.py")
    script(tmp_path, MIRROR, "package/mirror.py")
    script(tmp_path, MIRROR, "application/__main__.py")
    (tmp_path / "link.py").symlink_to(tmp_path / "package" / "mirror.py")
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ["mirror.py", "--lr", "0.1", "--json", "--", "-m"],
        ["package/../link.py"],
        ["application", "x"],
        ["-m", "package.mirror", "--out", "x"],
        ["-c", "import sys; print(sys.argv, repr(sys.path[0]), __name__, sorted(globals()))", "a"],
    ],
    ids=lambda words: words[0],
)
def test_a_program_sees_what_it_sees_without_us(folder: Path, words: list[str]) -> None:
    plain, ours = alone(*words, cwd=folder), watched("--", *words, cwd=folder)
    assert plain.code == 0, plain.err
    assert ours.out == plain.out
    assert (ours.code, ours.err) == (plain.code, plain.err)
    assert "NO OPTIMIZER WAS SEEN" in ours.ours


ENDS = {
    "an error": "def f():\n    1 / 0\nf()",
    "an error after another": "try:\n    {}['x']\nexcept KeyError as e:\n    raise ValueError('why') from e",
    "a wrong line": "x = = 1",
    "a module that is not there": "import nothing_of_this_name",
    "words": "import sys; sys.exit('enough')",
    "a number": "import sys; sys.exit(7)",
    "a large number": "raise SystemExit(256 + 5)",
    "none": "import atexit; atexit.register(print, 'last'); raise SystemExit",
    "its own hook": "import sys, traceback\nsys.excepthook = lambda *e: traceback.print_exception(*e)\n1 / 0",
    "at once": "import os; print('said', flush=True); os._exit(5)",
    "a child that leaves": "import os\npid = os.fork()\nif not pid:\n    os._exit(3)\nprint(os.waitpid(pid, 0)[1])",
    "another Python": "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'import sys; sys.exit(6)'])",
    "another program": "import os; os.execlp('sh', 'sh', '-c', 'echo $0; exit 4')",
    "an interrupt": "import os, signal; os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(9)",
    "a program that is not there": "import os; os.execv('/nowhere', ['x'])",
    "a command that is not there": "import os; os.execvp('no-such-command', ['x'])",
    "an error in another program's environment": "import os, sys; os.execve(sys.executable, ['x', '-c', '1'], {1: 2})",
    "a thread": "import threading, time\nthreading.Thread(target=lambda: (time.sleep(.2), print('late'))).start()",
}


@pytest.mark.parametrize("source", ENDS.values(), ids=ENDS)
def test_a_program_ends_as_it_ends_without_us_and_it_is_said_that_nothing_was_audited(
    tmp_path: Path, source: str
) -> None:
    path = script(tmp_path, source)
    plain, ours = alone(path, cwd=tmp_path), watched("--out", "found.json", "--", path, cwd=tmp_path)
    assert (ours.code, ours.out, ours.err) == (plain.code, plain.out, plain.err)
    assert "nothing was audited" in ours.ours
    assert '"findings": []' in (tmp_path / "found.json").read_text()


def test_an_error_in_a_module_is_shown_as_python_shows_it(tmp_path: Path) -> None:
    script(tmp_path, "1 / 0", "package/broken.py")
    for words in (["-m", "package.broken"], ["-m", "package.missing"]):
        plain, ours = alone(*words, cwd=tmp_path), watched("--", *words, cwd=tmp_path)
        assert (ours.code, ours.err) == (plain.code, plain.err)


@pytest.mark.parametrize("fault", ["1 / 0", "import nothing_of_this_name", "raise SystemExit(4)"])
def test_what_torch_fails_by_when_it_is_imported_is_shown_as_python_shows_it(tmp_path: Path, fault: str) -> None:
    script(tmp_path, fault, "torch.py")
    path = script(tmp_path, "import torch")
    plain, ours = alone(path, cwd=tmp_path), watched("--", path, cwd=tmp_path)
    assert plain.code in (1, 4)
    assert (ours.code, ours.err) == (plain.code, plain.err)


def test_a_program_that_starts_itself_again_is_the_same_program(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        """
        import os, sys
        print(sys.argv, __name__, __file__, sys.path[0], flush=True)
        if "again" not in os.environ:
            os.environ["again"] = "1"
            os.execv(sys.executable, [sys.executable, "-u", *sys.argv])
        sys.exit(9)
        """,
    )
    plain, ours = alone(path, "a", cwd=tmp_path), watched("--", path, "a", cwd=tmp_path)
    assert (ours.code, ours.out, ours.err) == (plain.code, plain.out, plain.err)
    assert ours.ours.count("NO OPTIMIZER WAS SEEN") == 1


def test_what_hangs_can_be_stopped_and_its_file_says_how_far_it_came(tmp_path: Path) -> None:
    path = script(tmp_path, "import time; print('here', flush=True); time.sleep(60)")
    process = subprocess.Popen(
        [*WATCH, "--out", "found.json", "--", path], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert '"status": "running"' in (tmp_path / "found.json").read_text()


def test_a_command_of_this_environment_is_found_as_a_shell_finds_it(tmp_path: Path) -> None:
    path = script(tmp_path, f"#!{sys.executable}\nimport sys; print(sys.argv)", "bin/trainer")
    path.chmod(0o755)
    done = watched("--", "trainer", "a", cwd=tmp_path, PATH=f"{path.parent}{os.pathsep}{os.environ['PATH']}")
    assert done.out == f"[{str(path)!r}, 'a']\n"


# --- our own words


def test_a_missing_separator_is_forgiven_where_nothing_else_can_be_meant(folder: Path) -> None:
    for words in (
        ["mirror.py", "a", "-x"],
        ["--at-step", "3", "mirror.py", "a", "-x"],
        ["--fail-on=error", "mirror.py", "a", "-x"],
        ["python", "mirror.py", "a", "-x"],
        ["--", sys.executable, "-u", "mirror.py", "a", "-x"],
    ):
        done = watched(*words, cwd=folder)
        assert done.out.startswith("__main__ ['mirror.py', 'a', '-x']"), (words, done.err)


WRONG = {
    "whose is --out": (["train.py", "--out", "x.json"], "whose is --out, this command's or train.py's? Put --"),
    "no program": ([], "there is no program to watch"),
    "no such script": (["--", "trian.py"], "trian.py: there is no such script; there: train.py"),
    "a folder": (["--", "."], "is a folder without __main__.py"),
    "no Python": (["--", "ls"], "is no Python program"),
    "options of Python": (["--", "python", "-O", "train.py"], "python -O -m weightdecay watch -- train.py"),
    "several at once": (
        ["--at-step", "x", "--stop-after", "0", "--fail-on", "eror", "--out", "a.txt", "--weight-decay", "-1",
         "--check", "none", "--ignore", "cupled=x", "--", "train.py"],
        "--at-step x", "--stop-after 0", "did you mean 'error'", "a.txt", "-1", "--check none", "'coupled'",
    ),
    "too early": (["--at-step", "5", "--stop-after", "3", "--", "train.py"], "--stop-after 3 ends the program before"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_wrong_words_are_explained_before_anything_is_run(tmp_path: Path, case: tuple[list[str], *tuple[str]]) -> None:
    script(tmp_path, "print('ran')")
    words, *said = case
    done = watched(*words, cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert all(part in done.err for part in said), done.err


def test_a_file_that_cannot_be_written_is_said_before_the_program_is_run(tmp_path: Path) -> None:
    script(tmp_path, "print('ran')")
    done = watched("--out", "/proc/nothing/found.json", "--", "train.py", cwd=tmp_path)
    assert (done.code, done.out) == (1, "")
    assert "/proc/nothing/found.json: cannot be written" in done.err
    assert "Traceback" not in done.err


def test_with_json_stdout_has_one_document_and_the_program_speaks_on_stderr(tmp_path: Path) -> None:
    script(tmp_path, "import os; print('said'); os.system('echo child')")
    done = watched("--json", "--", "train.py", cwd=tmp_path)
    assert done.document["findings"] == []
    assert not done.document["ok"]
    assert "said" in done.err
    assert "child" in done.err


def test_asked_to_fail_and_unable_to_look_it_fails(tmp_path: Path) -> None:
    script(tmp_path, "print('ran')")
    assert watched("--fail-on", "error", "--", "train.py", cwd=tmp_path).code == 3
    script(tmp_path, "raise SystemExit(5)")
    assert watched("--fail-on", "error", "--", "train.py", cwd=tmp_path).code == 5
