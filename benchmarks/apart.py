"""A contestant in a process of its own: another Python's, which has a peer that this one lacks, or one whose memory is
asked for.

The two speak in lines of JSON. Asked are, in this order:

    {"setting": …, "programs": […]}        which contestants there are
    {"make": NAME, "shape": …, "weights": FILE}
    {"batches": [[tokens, targets], …]}    losses and seconds of a step on each
    {"peak": true}                         most memory since the imports, over what they took

What a contestant prints itself goes to stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestants import Batch, Contestant, Runner, Setting, Shape, Taken, Weights
from benchmarks.peers import peers
from weightdecay.kernels.memory import keep_freed_memory, peak_bytes  # which needs nothing but ctypes

_ROOT = Path(__file__).parents[1]
_SERVE = "from benchmarks.apart import serve; serve()"


class ApartError(Exception):
    """The other process did not do what it was asked."""


class Apart:
    """Steps taken by a contestant in another process.

    Args:
        python: that runs it.
        asked: which contestants it is to know, see `contestants_in`.
    """

    def __init__(self, python: str, asked: dict[str, Any]) -> None:
        paths = [str(_ROOT), str(_ROOT / "src"), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # lies open as long as the process runs
        try:
            self._process = subprocess.Popen(
                [python, "-c", _SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
                env=environment,
            )  # fmt: skip
        except OSError as error:
            self._errors.close()
            raise ApartError(f"{python} does not start: {error.strerror}") from error
        self._python = python
        try:
            self.told = self._ask(asked)
        except ApartError:
            self.close()
            raise

    def make(self, name: str, shape: Shape, weights: Weights) -> None:
        """The contestant that takes the steps."""
        with tempfile.NamedTemporaryFile(suffix=".pt") as file:
            torch.save(dict(weights), file.name)
            self._ask({"make": name, "shape": asdict(shape), "weights": file.name})

    def __call__(self, batches: Sequence[Batch]) -> Taken:
        return Taken(**self._ask({"batches": [[part.tolist() for part in batch] for batch in batches]}))

    def peak_bytes(self) -> int:
        return int(self._ask({"peak": True})["bytes"])

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait()
        self._process.stdout.close()  # type: ignore[union-attr]
        self._errors.close()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        pipe, answers = self._process.stdin, self._process.stdout
        assert pipe is not None
        assert answers is not None
        with contextlib.suppress(BrokenPipeError):
            pipe.write(json.dumps(question) + "\n")
            pipe.flush()
        if not (line := answers.readline()):
            raise ApartError(f"{self._python}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ApartError(f"{self._python}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()
        return said.splitlines()[-1] if said else f"ended with {self._process.returncode}"


def contestants_in(
    python: str,
    programs: Sequence[str],
    nanogpt: Path | None,
    setting: Setting,
    say: Callable[[str], None],
    *,
    compiled: bool,
    keeps_memory: bool,
) -> Iterator[Contestant]:
    """Those of some programs that another Python can run, or that are to run alone; what keeps others away is said.

    Args:
        keeps_memory: whether the allocator keeps what is freed, as it does for all contestants that are timed.
    """
    asked = {
        "setting": [str(setting.device), setting.clock, setting.threads],
        "programs": list(programs),
        "nanogpt": str(nanogpt.resolve()) if nanogpt else None,
        "compiled": compiled,
        "keeps_memory": keeps_memory,
    }  # fmt: skip
    try:
        with contextlib.closing(Apart(python, asked)) as process:
            told = process.told
    except ApartError as error:
        say(f"{', '.join(programs)} is left out: {error}")
        return
    for words in told["said"]:
        say(words)

    for name, program in told["contestants"]:

        def make(shape: Shape, weights: Weights, name: str = name) -> Runner:
            process = Apart(python, asked)
            process.make(name, shape, weights)
            return process

        yield Contestant(name, program, make)


# --- the other side


def serve() -> None:
    """Answer until nobody asks any more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a program prints does not come between the answers
    server = _Server()
    for line in sys.stdin:
        try:
            answer = server.answer(json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class _Server:
    """The contestants of this process, and the one that takes steps."""

    def __init__(self) -> None:
        self._contestants: dict[str, Contestant] = {}
        self._setting = Setting(torch.device("cpu"))
        self._runner: Runner | None = None
        self._before = 0

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        if "setting" in question:
            return self._know(question)
        if "make" in question:
            weights = torch.load(question["weights"], weights_only=True, mmap=True)
            self._runner = self._contestants[question["make"]].make(Shape(**question["shape"]), weights)
            return {}
        assert self._runner is not None
        if "batches" in question:
            batches = [(torch.tensor(tokens), torch.tensor(targets)) for tokens, targets in question["batches"]]
            return asdict(self._runner(batches))
        return {"bytes": _peak_bytes(self._setting) - self._before}

    def _know(self, asked: dict[str, Any]) -> dict[str, Any]:
        device, clock, threads = asked["setting"]
        self._setting = Setting(torch.device(device), clock, threads)
        self._setting.prepare()
        if asked["keeps_memory"]:
            keep_freed_memory()
        said: list[str] = []
        programs = [program for program in asked["programs"] if program != "ours"]
        nanogpt = Path(asked["nanogpt"]) if asked["nanogpt"] else None
        found = [*peers(tuple(programs), nanogpt, self._setting, said.append, compiled=asked["compiled"])]
        if "ours" in asked["programs"]:
            from benchmarks.own import own_contestants  # a peer's Python may lack what ours imports

            found += own_contestants(self._setting, compiled=asked["compiled"], alone=not asked["keeps_memory"])
        self._contestants = {one.name: one for one in found}
        self._before = _peak_bytes(self._setting)
        return {"contestants": [[one.name, one.program] for one in found], "said": said}


def _peak_bytes(setting: Setting) -> int:
    if setting.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return peak_bytes()  # not getrusage's, which a process inherits from the one that began it
