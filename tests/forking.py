"""Real processes that need no seconds to begin: each is forked from one that has imported everything already.

A command's own work in a test takes tenths of a second; importing torch before it takes seconds, and so does what torch
and pydantic make when they are first used. `python -m tests.forking SOCKET` imports and trains once, and forks at each
request: the child has the arguments, the environment, the directory and the output that the request names, and is
killed, signalled and waited for like any process.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from filelock import FileLock

ROOT = Path(__file__).parents[1]
STAY = b"stay"  # from a worker that will ask for processes, and back

# What Python, torch and the kernels read as they begin: a process that is to see another value must begin itself.
READ_AT_THE_BEGINNING = (
    "PYTHON",
    "OMP_",
    "MKL_",
    "KMP_",
    "GOMP_",
    "OPENBLAS_",
    "TORCH",
    "ONEDNN_",
    "LD_",
    "LC_",
    "LANG",
    "XDG_CACHE_HOME",
)


def can_fork(environment: Mapping[str, str]) -> bool:
    """Whether a fork is what a process with these variables would be."""
    others = (name for name, value in environment.items() if os.environ.get(name) != value)
    return sys.platform == "linux" and not any(name.startswith(READ_AT_THE_BEGINNING) for name in others)


class Forked:
    """A forked `python -m weightdecay ARGUMENTS`, stderr beside stdout if `merged`; a part of `subprocess.Popen`."""

    def __init__(self, server: ForkServer, request: dict[str, Any], merged: bool, stdout: int | None) -> None:
        self._out = tempfile.TemporaryFile()  # noqa: SIM115 (closed when they are read)
        self._err = tempfile.TemporaryFile()  # noqa: SIM115
        out = self._out.fileno() if stdout is None else stdout
        self._reports = server.ask(request, [out, (self._out if merged else self._err).fileno()])
        self.returncode: int | None = None
        self.pid = self._report(timeout=60)

    def poll(self) -> int | None:
        with contextlib.suppress(TimeoutError):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """The exit code, that of a signal below 0. Raises TimeoutError if it has not ended by then."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(self._report(timeout))
            self._reports.close()
        return self.returncode

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """What it wrote, when it has ended. Kills it, and raises TimeoutError, if it takes longer."""
        try:
            self.wait(timeout)
        except TimeoutError:
            self.kill()
            self.wait(60)
            raise
        finally:
            written = [self._written(each) for each in (self._out, self._err)]
        return written[0], written[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _report(self, timeout: float) -> int:
        if not select.select([self._reports], [], [], timeout)[0]:
            raise TimeoutError(f"nothing was heard of the process in {timeout} s")
        line = self._reports.recv(32)
        if not line:
            raise RuntimeError("the process that forks has gone")
        return int(line)

    @staticmethod
    def _written(file: Any) -> str:
        file.seek(0)
        with file:
            return str(file.read().decode())


class ForkServer:
    """The process that forks, for all workers of a run: begun at the first request and ended with the last of them.

    Args:
        folder: where the workers find it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._place = tempfile.TemporaryDirectory()  # a socket's path has to be short
        self._address: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._stay: socket.socket | None = None

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *exception: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._stay is not None:
            self._stay.close()
        if self._process is not None:
            self._process.communicate()  # its stdin ends, and so does it, once no other worker stays
        self._place.cleanup()

    def start(
        self,
        *arguments: str,
        merged: bool = True,
        environment: Mapping[str, str] | None = None,
        start_new_session: bool = False,
        stdout: int | None = None,
        closed: Sequence[str] = (),
    ) -> Forked:
        """Begin `weightdecay ARGUMENTS`, in this process's environment if no other is given.

        Args:
            stdout: a descriptor that it writes to, in the place of a file that is read afterwards.
            closed: `stdin`, `stdout` or `stderr` where it has none, as after `>&-`.
        """
        request = {
            "arguments": arguments,
            "environment": dict(os.environ if environment is None else environment),
            "directory": str(Path.cwd()),
            "new_session": start_new_session,
            "closed": closed,
        }
        return Forked(self, request, merged, stdout)

    def call(self, work: Callable[..., None], *arguments: Any, directory: Path = ROOT, merged: bool = True) -> Forked:
        """Begin `work(*arguments)`, a function of a module, whose arguments JSON can hold."""
        request = {
            "function": (work.__module__, work.__name__),
            "arguments": arguments,
            "environment": dict(os.environ),
            "directory": str(directory),
            "new_session": False,
            "closed": (),
        }
        return Forked(self, request, merged, stdout=None)

    def ranks(self, work: Callable[..., None], *arguments: Any, count: int = 2) -> None:
        """Run `work(rank, *arguments)`, a function of a module, in `count` processes at once; all have to end well.

        Where one does not, the others, which may be waiting for it, are killed.
        """
        if not can_fork({}):
            from torch.multiprocessing.spawn import spawn

            spawn(work, args=arguments, nprocs=count)  # type: ignore[no-untyped-call]
            return
        processes = [self.call(work, rank, *arguments) for rank in range(count)]
        deadline = time.monotonic() + 120
        while None in (codes := [process.poll() for process in processes]) and not any(codes):
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        for process in processes:
            process.kill()
        said = [process.communicate()[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * count, "\n".join(said)

    @property
    def address(self) -> str:
        """Where the process that forks is; it is begun at the first time."""
        if self._address is None:
            self._address = self._begun()
        return self._address

    def ask(self, request: dict[str, Any], files: list[int]) -> socket.socket:
        """Where the process that was asked for is heard of: its id, then its status."""
        reports = connected(self.address)
        socket.send_fds(reports, [json.dumps(request).encode("utf-8", "surrogatepass")], files)
        return reports

    def _begun(self) -> str:
        """The address of the process that forks, which another worker has begun or this one begins."""
        told = self._folder / "forks"
        with FileLock(self._folder / "forks.lock"):
            if told.is_file():
                with contextlib.suppress(OSError):
                    self._stay = connected(told.read_text())
                    self._stay.send(STAY)
                    if self._stay.recv(len(STAY)):
                        return told.read_text()
                # It has ended since: who began it, and all others, have left.
            address = str(Path(self._place.name) / "socket")
            command = [sys.executable, "-m", "tests.forking", address]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
            assert self._process.stdout is not None
            assert self._process.stdout.readline() == b"ready\n"
            told.write_text(address)
            return address


def forget(*packages: str) -> None:
    """Be a process that has not imported these: the next import of them reads their files."""
    for name in [*sys.modules]:
        if name.partition(".")[0] in packages:
            del sys.modules[name]


def connected(address: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(address)
    return connection


def serve(address: str) -> None:
    """Import everything and train a little; then fork at each request, until stdin ends and no worker stays."""
    import weightdecay

    for name in ("torch._dynamo", "torch.distributed.fsdp", "tokenizers", "rich.progress"):
        importlib.import_module(name)
    for module in pkgutil.walk_packages(weightdecay.__path__, "weightdecay."):
        if not module.name.startswith("weightdecay.integrations") and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    with tempfile.TemporaryDirectory() as folder:
        _train(Path(folder))

    gc.collect()
    gc.freeze()  # a collection in a child would touch, and so copy, all of this
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who keep the commands
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        stay: list[Any] = [sys.stdin]
        while stay:
            ready = select.select([listener, *stay], [], [])[0]
            stay = [each for each in stay if each not in ready]  # they say no more than that they leave
            if listener in ready:
                connection, _ = listener.accept()
                if connection.recv(len(STAY), socket.MSG_PEEK) == STAY:
                    connection.send(connection.recv(len(STAY)))  # taken, for what is heard after it is that they leave
                    stay.append(connection)
                    continue
                if os.fork() == 0:
                    listener.close()
                    _keep(connection)
                connection.close()


def _train(folder: Path) -> None:
    """Two steps, through the command, which says nothing unless it fails."""
    from tests.commands import SMALL
    from weightdecay import cli

    (folder / "text.txt").write_text("The weights that decay are not those that were given.\n" * 50)
    command = ["train", "gpt3:nano", "--data", str(folder), "--steps", "2", "--out", str(folder / "run"), *SMALL]
    said = io.StringIO()
    code: Any = 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            cli.main(command)
        except SystemExit as left:
            code = left.code
    assert not code, said.getvalue()


def _keep(reports: socket.socket) -> None:
    """Fork the command, tell its id, wait for it and tell how it ended."""
    content, files, _, _ = socket.recv_fds(reports, 1 << 20, 2)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        reports.close()
        _run(json.loads(content.decode("utf-8", "surrogatepass")), files)
    for file in files:
        os.close(file)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(BrokenPipeError):  # nobody wants to know
        reports.send(str(pid).encode())
        reports.send(str(os.waitpid(pid, 0)[1]).encode())
    os._exit(0)


def _run(request: dict[str, Any], files: list[int]) -> NoReturn:
    """Be `python -m weightdecay ARGUMENTS`."""
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    for number, file in enumerate(files, start=1):
        os.dup2(file, number)
        os.close(file)
    for name in request["closed"]:
        os.close(("stdin", "stdout", "stderr").index(name))
        setattr(sys, name, None)  # which is what Python begins with
    if request["new_session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    os.chdir(request["directory"])
    sys.path[0] = request["directory"]

    code: Any = 0
    try:
        if "function" in request:
            module, name = request["function"]
            sys.path.insert(0, str(ROOT))
            work = getattr(importlib.import_module(module), name)
            sys.path.pop(0)
            work(*request["arguments"])
        else:
            sys.argv = ["weightdecay", *request["arguments"]]
            runpy.run_module("weightdecay", run_name="__main__", alter_sys=True)
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
        code = 1
    # Ends as Python does, but for taking every module apart, which takes longer than most commands do.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            code = 120  # as Python has it
    os._exit(int(code or 0))


if __name__ == "__main__":
    serve(sys.argv[1])
