"""The `weightdecay` command: parse, call, print. No torch and no numpy is imported for `--help`."""

from __future__ import annotations

import contextlib
import io
import sys
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, TextIO

import tyro

from weightdecay.cli import streams
from weightdecay.cli.advise import Advise
from weightdecay.cli.bench import Bench
from weightdecay.cli.convert import Convert
from weightdecay.cli.data import Data
from weightdecay.cli.diagnose import Diagnose
from weightdecay.cli.eval import Eval
from weightdecay.cli.export import Export
from weightdecay.cli.flags import with_homes
from weightdecay.cli.forensics import Forensics
from weightdecay.cli.other_names import names_here
from weightdecay.cli.output import note, print_error_document, print_json, report_error
from weightdecay.cli.plan import Plan
from weightdecay.cli.recipes import Recipes
from weightdecay.cli.report import Report
from weightdecay.cli.runs import Runs
from weightdecay.cli.sample import Sample
from weightdecay.cli.study import Study
from weightdecay.cli.train import Train
from weightdecay.cli.verify import Verify
from weightdecay.cli.watch import Watch, Watched, divided
from weightdecay.errors import UsageError, WeightDecayError, did_you_mean, fault_of_the_world

DESCRIPTION = (
    "Train GPTs with the right weights decaying by the right amount, and prove that they did. "
    "Every command takes --json. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 a check did not hold, "
    "4 damaged data, 130 and 143 stopped by a signal after saving. `--version` tells the version; `--completion SHELL` "
    "prints what makes bash, zsh, tcsh or fish complete this command."
)
_SHELLS = ("bash", "zsh", "tcsh", "fish")
_MAY_BE_EMPTY = {"--prompt"}  # a new document begins

Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Eval, tyro.conf.subcommand("eval")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Plan, tyro.conf.subcommand("plan")]
    | Annotated[Watch, tyro.conf.subcommand("watch")]
    | Annotated[Diagnose, tyro.conf.subcommand("diagnose")]
    | Annotated[Forensics, tyro.conf.subcommand("forensics")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Advise, tyro.conf.subcommand("advise")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Runs, tyro.conf.subcommand("runs")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Study, tyro.conf.subcommand("study")]
    | Annotated[Recipes, tyro.conf.subcommand("recipes")]
)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script; leaves by SystemExit with the command's exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    own = given[: given.index("--")] if "--" in given else given
    with streams.checked(), _told_warnings():
        answer = _answered_with_a_document(given) if "--json" in own else _answered(given)
    if isinstance(answer, Watched):
        answer.run()  # with streams, warnings and all else as Python has them
    raise SystemExit(answer)


@contextlib.contextmanager
def _told_warnings() -> Iterator[None]:
    before, warnings.showwarning = warnings.showwarning, _tell_warning
    try:
        yield
    finally:
        warnings.showwarning = before


def _answered(arguments: list[str]) -> int | Watched:
    """The exit code, faults told in words; or a program that is to be run."""
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader (`head`, say) has seen enough
        streams.give_up(sys.stdout)
        return 0
    except Exception as error:
        fault = error if isinstance(error, WeightDecayError) else fault_of_the_world(error)
        if fault is None:
            raise
        return report_error(fault)


def _answered_with_a_document(arguments: list[str]) -> int | Watched:
    """The same, and one document on stdout in every case."""
    try:
        with streams.one_document() as document:
            try:
                code = _answered(arguments)
            except Exception as error:  # a bug: its traceback is for us, the document for the caller
                traceback.print_exc()
                code = 1
                print_error_document(type(error).__name__, [str(error)], code)
            if isinstance(code, Watched):  # which prints its document at its end
                return code
            if code and not document.text:
                print_error_document("Interrupted", ["interrupted before there was anything to save"], code)
            document.write()
            return code
    except BrokenPipeError:
        return 0
    except WeightDecayError as error:  # the document itself cannot be written
        return report_error(error)


def _run(arguments: list[str]) -> int | Watched:
    if {"--version", "-V"} & set(arguments[:2]) and set(arguments) <= {"--version", "-V", "--json"}:
        return _tell_version()
    if arguments[:1] == ["--completion"]:
        arguments = _as_the_parser_has_it(arguments)

    program: tuple[str, ...] = ()
    if arguments[:1] == ["watch"]:
        own, program = divided(arguments[1:])
        arguments = ["watch", *own]
    _refuse_empty(arguments)

    as_json = streams.kept_document() is not None
    said, shown = io.StringIO(), io.StringIO()
    try:
        with _redirected(shown, said) if as_json else contextlib.nullcontext():
            command: Any = tyro.cli(
                Command,
                prog="weightdecay",
                description=DESCRIPTION,
                args=arguments,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
            )
    except SystemExit as leaving:  # help was asked for, or something is wrong and the parser has said so
        named = list(names_here(arguments)) if leaving.code else []
        if as_json and leaving.code:
            raise UsageError([_without_box(said.getvalue()), *named]) from None
        for words in named:
            note(f"error: {words}")
        if as_json:
            print_json({"help": shown.getvalue()})
        return leaving.code if isinstance(leaving.code, int) else 0

    command = with_homes(command)
    answer: int | Watched = (replace(command, program=program) if program else command).run()
    return answer


@contextlib.contextmanager
def _redirected(stdout: TextIO, stderr: TextIO) -> Iterator[None]:
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        yield


def _tell_version() -> int:
    from weightdecay import __version__

    if streams.kept_document() is None:
        print(f"weightdecay {__version__}")
    else:
        print_json({"version": __version__})
    return 0


def _refuse_empty(arguments: list[str]) -> None:
    """An empty argument is a shell's variable that nobody has set; taken for none at all, a default would go ahead.

    Raises:
        UsageError: there are any.
    """
    before = ["", *arguments]
    empty = [flag for flag, value in zip(before, arguments, strict=False) if not value and flag not in _MAY_BE_EMPTY]
    empty += [given.rstrip("=") for given in arguments if given.startswith("--") and given.find("=") == len(given) - 1]
    if empty:
        raise UsageError([f"{flag} '': an empty value; leave it out for the default".lstrip() for flag in empty])


def _as_the_parser_has_it(arguments: list[str]) -> list[str]:
    """`--completion SHELL` as tyro spells it.

    Raises:
        UsageError: it makes none for this shell.
    """
    shell = arguments[1] if len(arguments) == 2 else ""
    if shell not in _SHELLS:
        raise UsageError(f"--completion {' '.join(arguments[1:])}: give one shell, {did_you_mean(shell, _SHELLS)}")
    return ["--tyro-print-completion", shell]


def _without_box(said: str) -> str:
    """What the parser said, in a line: without the frame it draws around, and the headline that it repeats."""
    lines = [line.strip("│|╭╮╰╯─+ ") for line in said.splitlines()]
    headline, *rest = [line for line in lines if line.strip("-")] or ["the arguments cannot be read"]
    text = " ".join(rest)
    return text if not headline or text.startswith(headline) else f"{headline}: {text}"


def _tell_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001  # Python hands it in
    line: str | None = None,
) -> None:
    """Our own warnings are for people, who have no use for the line of code; others' stay as Python shows them."""
    if category.__module__.partition(".")[0] == "weightdecay":
        note(f"warning: {message}")
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))
