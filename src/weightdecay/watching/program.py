"""What is run, and running it as Python itself would."""

from __future__ import annotations

import builtins
import importlib.machinery
import io
import os
import pkgutil
import re
import runpy
import shutil
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from weightdecay.errors import UsageError
from weightdecay.watching.tracebacks import without_own_frames

_PYTHON = re.compile(r"python(\d+(\.\d+)?)?t?(\.exe)?$", re.IGNORECASE)
# Options of Python's own that take a word; all others are letters, which may stand together.
_WITH_WORD = ("W", "X")
_HARMLESS = frozenset("uEsBb")


@dataclass(frozen=True)
class Program:
    """A program for Python.

    Attributes:
        kind: a script (a folder or an archive with `__main__.py`, too), a module (`-m`), or code (`-c`).
        target: its path as it was given, its name, or the code.
        arguments: what it finds in `sys.argv[1:]`.
    """

    kind: Literal["script", "module", "code"]
    target: str
    arguments: tuple[str, ...] = ()

    @classmethod
    def of(cls, words: Sequence[str]) -> Program:
        """The program of a command line, with or without `python` before it.

        Raises:
            UsageError: there is none, or not where it should be.
        """
        given = list(words)
        if given and _PYTHON.match(Path(given[0]).name) and not given[0].endswith(".py"):
            options, given = python_options(given[1:])
            if set("".join(options)) - _HARMLESS - {"-"}:
                asked = " ".join(options)
                raise UsageError(
                    f"python {asked}: options of Python's own come first: python {asked} -m weightdecay watch -- "
                    f"{' '.join(given)}"
                )
        if not given:
            raise UsageError("there is no program to watch: weightdecay watch -- train.py …, or -- -m package.train …")
        first, *rest = given
        for option, kind in (("-m", "module"), ("-c", "code")):
            if first.startswith(option):
                found = [first[2:], *rest] if len(first) > 2 else rest
                if not found:
                    what = "a module's name" if kind == "module" else "code"
                    raise UsageError(f"{option} takes {what}: weightdecay watch -- {option} …")
                return cls(kind, found[0], tuple(found[1:]))  # type: ignore[arg-type]
        return cls("script", _script(first), tuple(rest))

    @property
    def words(self) -> tuple[str, ...]:
        option = {"script": (), "module": ("-m",), "code": ("-c",)}[self.kind]
        return (*option, self.target, *self.arguments)

    def run(self, leaving: Callable[[BaseException | None], None]) -> NoReturn:
        """Run it as `__main__`, and end as it ends; a traceback that is printed begins with its own frames.

        Args:
            leaving: is told what it ends by, before that goes its way.
        """
        main = types.ModuleType("__main__")
        # The module that was __main__ has to stay alive: its functions are on the stack.
        before, sys.modules["__main__"] = sys.modules.get("__main__"), main
        main.__dict__.update(__annotations__={}, __builtins__=builtins)
        sys.argv = ["-m" if self.kind == "module" else "-c" if self.kind == "code" else self.target, *self.arguments]
        sys.orig_argv = [sys.orig_argv[0], *_own_options(), *self.words]
        _set_first_path(self._first_path())
        try:
            self._start(main)()
        except BaseException as error:
            leaving(error)
            if not isinstance(error, SystemExit):
                _show_own_frames_alone(error)
            raise
        finally:
            del before
        leaving(None)
        raise SystemExit(0)

    def _first_path(self) -> str:
        """What Python puts first into `sys.path`."""
        if self.kind == "code":
            return ""
        if self.kind == "module":
            return str(Path.cwd())
        path = os.path.realpath(self.target)
        return os.path.abspath(self.target) if _has_main(self.target) else os.path.dirname(path)  # noqa: PTH100, PTH120

    def _start(self, main: types.ModuleType) -> Callable[[], Any]:
        if self.kind == "code":
            code = compile(self.target, "<string>", "exec", dont_inherit=True)
            main.__dict__.update(__loader__=importlib.machinery.BuiltinImporter)
            return lambda: exec(code, main.__dict__)
        # What Python itself calls for -m, folders and archives; it has no public name.
        as_main: Any = runpy._run_module_as_main  # type: ignore[attr-defined]
        if self.kind == "module":
            return lambda: as_main(self.target)
        if _has_main(self.target):
            return lambda: as_main("__main__", False)
        path = _whole(self.target)
        loader = importlib.machinery.SourceFileLoader("__main__", path)
        main.__dict__.update(__file__=path, __cached__=None, __loader__=loader)
        code = _code(path)
        return lambda: exec(code, main.__dict__)


def python_options(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options of Python's own, which come first, and the program's words."""
    rest = list(words)
    options: list[str] = []
    while rest and rest[0].startswith("-") and len(rest[0]) > 1 and rest[0][1] not in "mc":
        word = rest.pop(0)
        if word == "--":
            break
        options.append(word)
        takes_next = word[-1] in _WITH_WORD and not word.startswith("--") and not set(word[1:-1]) & set(_WITH_WORD)
        if (takes_next or word == "--check-hash-based-pycs") and rest:
            options.append(rest.pop(0))
    return options, rest


def is_python(path: str) -> bool:
    """Whether a file is a Python."""
    return bool(_PYTHON.match(Path(path).name)) or os.path.realpath(path) == os.path.realpath(sys.executable)


def _script(name: str) -> str:
    """The path of a script; a command that is one, as `torchrun`, is found where a shell would.

    Raises:
        UsageError: there is none.
    """
    path = Path(name)
    if path.is_file() or _has_main(name):
        return name
    if path.is_dir():
        raise UsageError(f"{name} is a folder without __main__.py: name the script in it, or use -m")
    command = shutil.which(name)
    if command is not None:
        with Path(command).open("rb") as stream:
            first = stream.readline(256)
        if first.startswith(b"#!") and b"python" in first:
            return command
        raise UsageError(f"{name} is no Python program: give the script that it runs")
    near = [found.name for found in sorted(path.parent.glob("*.py"))] if path.parent.is_dir() else []
    known = f"; there: {', '.join(near[:5])}{' …' if len(near) > 5 else ''}" if near else ""
    raise UsageError(f"{name}: there is no such script{known}")


def _has_main(name: str) -> bool:
    """Whether it is a folder or an archive that Python can run."""
    path = Path(name)
    if path.is_dir():
        return (path / "__main__.py").is_file()
    if not path.is_file():
        return False
    finder = pkgutil.get_importer(name)
    return finder is not None and not isinstance(finder, importlib.machinery.FileFinder)


def _whole(path: str) -> str:
    """A script's path as Python has it in `__file__`: with the folder before it, and else as it was given."""
    if os.name == "nt" or os.path.isabs(path):  # noqa: PTH117
        return os.path.abspath(path)  # noqa: PTH100
    return os.path.join(os.getcwd(), path)  # noqa: PTH109, PTH118  # pathlib would shorten it


def _code(path: str) -> types.CodeType:
    """A script's code, from source or compiled."""
    with io.open_code(path) as stream:
        code: types.CodeType | None = pkgutil.read_code(stream)  # None of source
    if code is None:
        with io.open_code(path) as stream:
            code = compile(stream.read(), path, "exec", dont_inherit=True)
    return code


def _own_options() -> list[str]:
    """Options that this Python was started with, where they can be told from a command's."""
    options, rest = python_options(sys.orig_argv[1:])
    return options if rest[:1] == ["-m"] else []


def _set_first_path(path: str) -> None:
    """Put the program's folder where that of this command is, unless Python was asked to put none."""
    if getattr(sys.flags, "safe_path", False):
        return
    sys.path[:1] = [path]
    sys.path_importer_cache.pop(path, None)


def _show_own_frames_alone(error: BaseException) -> None:
    """Have Python's last words on an error begin with the program's frames, whoever prints them."""
    own = without_own_frames(error.__traceback__)
    hook = sys.excepthook

    def shown(kind: type[BaseException], value: BaseException, traceback: types.TracebackType | None) -> None:
        is_it = value is error
        if is_it:
            sys.last_traceback = own
        hook(kind, value.with_traceback(own) if is_it else value, own if is_it else traceback)

    sys.excepthook = shown
