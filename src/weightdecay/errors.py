"""What can go wrong, and with which exit code a command ends.

Every message says what is wrong, where, and what to do. Faults in a configuration are gathered and raised together:
a user who mistyped three keys should not have to run three times.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar


class WeightDecayError(Exception):
    """Anything this package raises on purpose; the message is for the user."""

    exit_code: ClassVar[int] = 1
    faults: list[str]

    def __init__(self, faults: str | Sequence[str]) -> None:
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        super().__init__("\n".join(self.faults))


class ConfigError(WeightDecayError, ValueError):
    """Wrong usage or configuration; carries every fault found, not just the first."""

    exit_code = 2


class UsageError(ConfigError):
    """Arguments that no command takes."""


class ScheduleError(ConfigError):
    """A schedule that no step could follow."""


class PlanError(ConfigError):
    """A decay plan that cannot be made or used as asked."""


class OptimizerError(ConfigError):
    """An optimizer, rule or state that cannot do what was asked of it."""


class RecipeError(ConfigError):
    """A recipe that is not there or does not hold together."""


class DataError(ConfigError):
    """Input text, a tokenizer or shards that cannot be used."""


class MissingExtraError(ConfigError, ImportError):
    """An optional dependency is not installed; the message names the extra."""

    def __init__(self, purpose: str, extra: str) -> None:
        super().__init__(f"{purpose} needs an extra that is not installed: pip install 'weightdecay[{extra}]'")


class StorageError(WeightDecayError):
    """The disk refused: full, read-only, or over a limit. What was there before is untouched."""


class StorageWarning(UserWarning):
    """Something of the disk is not as it should be, and was gone round."""


class OutputError(WeightDecayError):
    """What a command says cannot be written: a full disk, a closed stream."""


class OutOfMemoryError(WeightDecayError):
    """There is not enough memory, of the machine's or of a GPU's."""


class TrainingError(WeightDecayError):
    """A run that had to stop: the weights before the fault are kept."""


class RunBusyError(WeightDecayError):
    """Another process works in this run directory."""


class ProcessGroupError(WeightDecayError):
    """One of several training processes ended badly, having said why; `exit_code` is its own."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # an instance's own, decided by the process


class CheckFailedError(WeightDecayError):
    """A check was asked for and did not hold."""

    exit_code = 3


class DamagedError(WeightDecayError):
    """A file is not what was written: truncated, flipped, or of another run."""

    exit_code = 4


class StoppedError(WeightDecayError):
    """A signal ended the run after its state was saved; `exit_code` is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number  # type: ignore[misc]  # an instance's own, decided by the signal


@contextmanager
def gathered(faults: list[str], *, before: str = "", after: str = "") -> Iterator[None]:
    """Put the faults of what is raised within into a list, to be raised with others; words may go before and after."""
    try:
        yield
    except ConfigError as error:
        faults += [f"{before}{fault}{after}" for fault in error.faults]


def fault_of_the_world(error: BaseException) -> WeightDecayError | None:
    """What is nobody's bug (a disk, a permission, too little memory) as an error of ours; None for anything else."""
    if isinstance(error, OSError):
        reason = (error.strerror or str(error) or type(error).__name__).rstrip(".")
        place = f"{error.filename}: " if error.filename is not None else ""
        advice = _ADVICE.get(error.errno or 0, "")
        # A path that no disk can hold is wrong usage.
        kind = UsageError if error.errno in (errno.ENAMETOOLONG, errno.ELOOP) else StorageError
        return kind(f"{place}{reason}{': ' if advice else ''}{advice}")
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        return OutOfMemoryError(
            "there is not enough memory: free some, or ask for less; `weightdecay train … --dry-run` says how much a "
            "training needs, and --set run.micro_batch_tokens=N holds fewer tokens at once"
        )
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether torch says so; for a processor's memory it has no exception of its own."""
    if type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS_OF_NO_MEMORY)


_WORDS_OF_NO_MEMORY = ("can't allocate memory", "not enough memory", "Cannot allocate memory", "std::bad_alloc")
_ADVICE = {
    errno.EACCES: "its owner has to let you, or give another path",
    errno.EPERM: "its owner has to let you, or give another path",
    errno.EROFS: "give a path on a file system that can be written",
    errno.ENOSPC: "make room, or give a path on another disk",
    errno.EDQUOT: "make room within your quota, or give a path on another disk",
    errno.EMFILE: "too many files are open in this process: raise `ulimit -n`",
    errno.ENOENT: "correct the path",
    errno.EEXIST: "something else lies there: give another path",
    errno.EISDIR: "give the path of a file",
    errno.ENOTDIR: "a file lies where a directory should: correct the path",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "its links lead in a circle: correct the path",
}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known names, or those that there are if none is near."""
    choices = sorted(known)
    near = [choice for choice in choices if choice.endswith(f".{name}")][:_NEAR]  # `optimizer.lr` for `lr`
    near = near or difflib.get_close_matches(name, choices, n=_NEAR, cutoff=0.6)
    if not near:  # `optimizer.lr` for `lrr`, which is too short to look like it
        last = {choice.rpartition(".")[2]: choice for choice in choices if "." in choice}
        near = [last[found] for found in difflib.get_close_matches(name.rpartition(".")[2], last, n=_NEAR, cutoff=0.6)]
    if near:
        return "did you mean " + " or ".join(f"'{choice}'" for choice in near) + "?"
    more = f" and {len(choices) - _LISTED} more" if len(choices) > _LISTED else ""
    return "known are: " + ", ".join(choices[:_LISTED]) + more


def group_title(group: Mapping[str, Any], index: int) -> str:
    """How a message calls an optimizer's group."""
    return f"group {index}" + (f" ('{group['name']}')" if "name" in group else "")


def misspelt(given: Iterable[object], known: Iterable[str]) -> list[str]:
    """For each name that is not known and looks like one that is, what is wrong with it.

    Names that look like none are left alone: a group of an optimizer may hold what others read.
    """
    settings = set(known)
    unknown = sorted(str(name) for name in set(given) - settings)
    near = [(name, _looks_like(name, settings)) for name in unknown]
    return [f"'{name}', which nothing reads: did you mean '{found}'?" for name, found in near if found]


def _looks_like(name: str, known: Iterable[str]) -> str:
    """The known name that another program, or another hand, spells so; empty if there is none."""
    letters = {_letters(one): one for one in known}
    spelt = letters.get(_letters(_OF_OTHERS.get(name.lower(), name)))
    return spelt or next(iter(difflib.get_close_matches(name, letters.values(), n=1, cutoff=_LOOKS_LIKE)), "")


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


# What other programs call them.
_OF_OTHERS = {"wd": "weight_decay", "weight_decay_rate": "weight_decay", "learning_rate": "lr"}
_LOOKS_LIKE = 0.85  # of difflib's ratio: `weigth_decay` is 0.92, `rul` 0.86; `lr_scale` is no misspelt setting
_NEAR = 3  # names that are told as near
_LISTED = 40  # names; a page of them helps nobody


def printable(text: str) -> str:
    """The text as a terminal can show it without obeying it: control characters and the like as escapes.

    printable("\x1b[2J")  ->  "\\x1b[2J"
    """
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
