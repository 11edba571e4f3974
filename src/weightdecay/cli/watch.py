"""`weightdecay watch`: the audit of a program that nobody edits."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

from tyro.conf import Fixed, Suppress, UseAppendAction, arg

from weightdecay.cli.flags import A_PATH, Choice, Count, NameOrFile, Number, Switch, raise_together, whole_number
from weightdecay.errors import ConfigError, UsageError, did_you_mean

if TYPE_CHECKING:
    from weightdecay.watching.settings import Settings

_AT_STEP = 2
_FAIL_ON = ("error", "warning")
_WRITES = (".json", ".md", ".html")

Several = UseAppendAction[Annotated[tuple[str, ...], arg(metavar="WORD"), A_PATH]]


@dataclass(frozen=True)
class Watch:
    """Run any training program unchanged and report what its optimizers really do to which tensors.

    weightdecay watch -- train.py --its-own flags, or -- -m package.train …: what stands before `--` is for this
    command, what stands after it is run as Python itself would, with this environment's packages. Its exit code is the
    program's own.
    """

    at_step: Count = ""
    """Audit each model just before this step of its optimizer; 2 by default."""
    stop_after: Count = ""
    """End the program after this step, with exit 0."""
    policy: NameOrFile = ""
    """Which tensors were meant to decay: a policy's name or a TOML file; by default `default`, as an opinion."""
    weight_decay: Number = ""
    """λ that was meant; by default what stands in the groups."""
    ignore: Several = ()
    """CODE=PATTERN of names, or a file that --out wrote: findings to live with. May be given several times."""
    fail_on: Choice = ""
    """error or warning: exit 3 where there is one, or nothing was audited, if the program itself ended with 0."""
    lock: NameOrFile = ""
    """Write the model's plan to this file, as `weightdecay plan` does."""
    check: NameOrFile = ""
    """Compare the plan with that file; exit 3 if a tensor, role or multiplier changed."""
    out: Several = ()
    """Write the findings to this file: .json, .md or .html. May be given several times."""
    json: Switch = False
    """One JSON document on stdout, at the end; what the program prints goes to stderr."""
    program: Suppress[Fixed[tuple[str, ...]]] = ()
    """What stands after `--`."""

    def run(self) -> Watched:
        """What is to be run once this command's streams are the program's again."""
        from weightdecay.watching.launching import prepared
        from weightdecay.watching.program import Program
        from weightdecay.watching.settings import Settings

        faults: list[str] = []
        stop_after = whole_number("--stop-after", self.stop_after, faults, least=1) if self.stop_after else 0
        at_step = whole_number("--at-step", self.at_step, faults, least=1) if self.at_step else 0
        if stop_after and at_step > stop_after:
            faults.append(f"--stop-after {stop_after} ends the program before --at-step {at_step}: nothing is audited")
        words: tuple[str, ...] = ()
        try:
            words = Program.of(self.program).words
        except UsageError as error:
            faults += error.faults
        ignore = self._ignored(faults)
        self._check_words(faults)
        weight_decay = self._weight_decay(faults)
        faults += _policy_faults(self.policy) if self.policy and not faults else []
        raise_together(faults)
        settings = prepared(
            Settings(
                program=words,
                folder="",
                root=os.getpid(),
                at_step=at_step or min(_AT_STEP, stop_after or _AT_STEP),
                stop_after=stop_after,
                policy=str(Path(self.policy).absolute()) if self.policy.endswith(".toml") else self.policy,
                weight_decay=weight_decay,
                ignore=ignore,
                fail_on=self.fail_on,  # type: ignore[arg-type]  # it has been checked
                lock=_absolute(self.lock),
                check=_absolute(self.check),
                out=tuple(_absolute(name) for name in self.out),
            )
        )
        return Watched(settings, as_json=self.json)

    def _check_words(self, faults: list[str]) -> None:
        if self.fail_on and self.fail_on not in _FAIL_ON:
            faults.append(f"--fail-on {self.fail_on}: {did_you_mean(self.fail_on, _FAIL_ON)}")
        for name in self.out:
            if Path(name).suffix.lower() not in _WRITES:
                faults.append(f"--out {name}: its name says what is written: {', '.join(_WRITES)}")
            if Path(name).is_dir():
                faults.append(f"--out {name}: is a folder")
        if self.check and not Path(self.check).is_file():
            what = "is a directory" if Path(self.check).is_dir() else "there is no such file"
            faults.append(f"--check {self.check}: {what}; write one with --lock {self.check}")

    def _weight_decay(self, faults: list[str]) -> float | None:
        if not self.weight_decay:
            return None
        try:
            number = float(self.weight_decay)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number >= 0):
            faults.append(f"--weight-decay {self.weight_decay}: must be a number of at least 0, like 0.1")
        return number

    def _ignored(self, faults: list[str]) -> str | dict[str, tuple[str, ...]] | None:
        """A file, or patterns by code."""
        from weightdecay.auditing.ignoring import ignored_of

        patterns: dict[str, tuple[str, ...]] = {}
        files = []
        for word in self.ignore:
            code, equals, pattern = word.partition("=")
            if equals and not Path(word).exists():
                patterns[code] = (*patterns.get(code, ()), pattern)
            else:
                files.append(word)
        if len(files) > 1 or (files and patterns):
            faults.append(
                f"--ignore {' --ignore '.join(self.ignore)}: give one file, or CODE=PATTERN any number of times"
            )
            return None
        given = str(Path(files[0]).absolute()) if files else patterns or None
        try:
            ignored_of(given)
        except ConfigError as error:
            faults += [f"--{fault}" for fault in error.faults]
        return given


@dataclass(frozen=True)
class Watched:
    """A program that is ready to be run.

    Args:
        as_json: stdout is kept for one document.
    """

    settings: Settings
    as_json: bool

    def run(self) -> NoReturn:
        from dataclasses import replace

        from weightdecay.watching.launching import launch

        settings = self.settings
        if self.as_json:
            if sys.stdout is not None:  # the caller may have closed it
                sys.stdout.flush()
            settings = replace(settings, stdout=os.dup(1))
            os.dup2(2, 1)
        launch(settings)


def divided(arguments: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """The words of this command, and those of the program.

    Without a `--` the program begins where the words of this command end.

    Raises:
        UsageError: it cannot be told whose a word is.
    """
    words = list(arguments)
    if "--" in words:
        at = words.index("--")
        own, program = words[:at], words[at + 1 :]
        if "-m" in own:  # `-m package.train -- its arguments`
            at = own.index("-m")
            own, program = own[:at], [*own[at:], *program]
        return own, tuple(program)

    takes_word = {_flag(item.name): item.type for item in fields(Watch)}
    place = 0
    while place < len(words) and words[place].startswith("-") and words[place] not in ("-m", "-c"):
        flag = words[place].partition("=")[0]
        is_switch = flag in ("--json", "-h", "--help") or flag not in takes_word or "=" in words[place]
        place += 1 if is_switch else 2
    own, program = words[:place], words[place:]
    shared = [word for word in program[1:] if word.partition("=")[0] in takes_word]
    if shared:
        raise UsageError(
            f"whose is {shared[0]}, this command's or {program[0]}'s? Put -- before the program: "
            f"weightdecay watch {' '.join([*own, '--', *program])} gives it to the program"
        )
    return own, tuple(program)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _absolute(name: str) -> str:
    """The program may go to another folder."""
    return str(Path(name).absolute()) if name else ""


def _policy_faults(policy: str) -> list[str]:
    """What is wrong with a policy, asked of another process: this one must not import torch before the program does."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom weightdecay.errors import WeightDecayError\n"
        "from weightdecay.planning.policies.policy_file import find_policy\n"
        "name = sys.argv[1]\n"
        "try:\n    find_policy(Path(name) if name.endswith('.toml') else name)\n"
        "except WeightDecayError as error:\n    sys.exit('\\n'.join(error.faults))"
    )
    done = subprocess.run([sys.executable, "-c", code, policy], capture_output=True, text=True, check=False)
    return [f"--policy: {line}" for line in done.stderr.strip().splitlines()] if done.returncode else []
