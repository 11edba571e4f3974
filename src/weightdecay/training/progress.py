"""What a person sees while a run goes on: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO, cast

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from weightdecay.errors import OutputError, printable

_BAR_WIDTH = 20
_WIDTH_OFF_TERMINAL = 140


class Reporter(Protocol):
    """Told what happens, in order."""

    def show(self, content: RenderableType) -> None:
        """Something to read: the briefing, a sample."""

    def note(self, message: str) -> None:
        """One thing worth knowing."""

    def step(self, row: Mapping[str, Any], steps: int) -> None:
        """A training row of metrics.jsonl, `steps` being the length of the run."""

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """An evaluation row of metrics.jsonl."""

    def close(self) -> None:
        """The run is over, however it ended."""


class SilentReporter:
    """Says nothing: for the ranks after the first, and for callers that read the run directory instead."""

    def show(self, content: RenderableType) -> None: ...
    def note(self, message: str) -> None: ...
    def step(self, row: Mapping[str, Any], steps: int) -> None: ...
    def evaluation(self, row: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...


class LastingConsole(Console):
    """A console that falls silent when nobody reads it any longer, where rich's ends the process."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


class LastingStream(io.TextIOBase):
    """A stream that falls silent when it cannot be written: a run is worth more than what it says of itself.

    A disk may be full under a log, a terminal closed, a pipe without a reader. The reason is told once, elsewhere.
    """

    def __init__(self, stream: TextIO, tell: Callable[[str], object]) -> None:
        self._stream = stream
        self._tell = tell
        self._silent = False

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, action: Callable[[], object]) -> None:
        if self._silent:
            return
        try:
            action()
        except BrokenPipeError:  # a reader that has seen enough, like `head`
            self._fall_silent()
        except (OSError, OutputError) as error:
            self._fall_silent()
            with contextlib.suppress(OSError, OutputError):
                self._tell(f"{error}: the run goes on and says nothing more there\n")

    def _fall_silent(self) -> None:
        self._silent = True
        with contextlib.suppress(OSError, ValueError):  # what is still held would be a fault again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding


class ConsoleReporter:
    """Writes to a console: a live line where it is a terminal, about twenty plain lines a run where it is not."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Progress | None = None
        self._task = TaskID(0)

    @property
    def on_stdout(self) -> bool:
        """Whether it writes to stdout, where several processes should do so too."""
        return not self._console.stderr

    def show(self, content: RenderableType) -> None:
        self._console.print(content)

    def note(self, message: str) -> None:
        self._console.print(Text(printable(message)), soft_wrap=True)

    def step(self, row: Mapping[str, Any], steps: int) -> None:
        step, text = row["step"], step_line(row, steps)
        if not self._console.is_terminal:
            if step == 1 or step == steps or step % max(1, steps // 20) == 0:
                self._console.print(Text(text), soft_wrap=True)
            return
        text = narrowed(text, self._console.width)
        if self._live is None:
            words = TextColumn("{task.fields[words]}", markup=False)
            room = len(text) + _BAR_WIDTH < self._console.width
            self._live = Progress(*([BarColumn(_BAR_WIDTH)] if room else []), words, console=self._console)
            self._task = self._live.add_task("", total=steps, words=text)
            self._live.start()
        self._live.update(self._task, completed=step, words=text)

    def evaluation(self, row: Mapping[str, Any]) -> None:
        self.note(evaluation_line(row))

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def lasting_console(*, stderr: bool) -> LastingConsole:
    """Where a run says what it does, for as long as somebody can hear it."""
    stream, other = (sys.stderr, sys.stdout) if stderr else (sys.stdout, sys.stderr)
    file = cast(TextIO, LastingStream(stream, other.write))
    return LastingConsole(file=file, stderr=stderr, highlight=False, **terminal_settings(stream))


def terminal_settings(stream: TextIO) -> dict[str, Any]:
    """What rich is told of a stream beyond what it finds out: width off a terminal, and how plain NO_COLOR is meant.

    In a file or pipe a line is as wide as COLUMNS says, or wide enough for a plan. https://no-color.org asks for text
    without colour; a terminal that is asked for it gets none of bold and dim either.
    """
    told: dict[str, Any] = {}
    if not stream.isatty():
        columns = os.environ.get("COLUMNS", "")
        told["width"] = int(columns) if columns.isdecimal() and int(columns) else _WIDTH_OFF_TERMINAL
    if os.environ.get("NO_COLOR"):
        told["color_system"] = None
    return told


def told_now_and_then(report: Callable[[str], None], every_s: float = 10.0) -> Callable[[str, int, int | None], None]:
    """For `progress` of `data.prepare`: says what is done, how far it is and how long it takes yet."""
    stage, began, last = "", 0.0, time.monotonic()

    def progress(what: str, done: int, total: int | None) -> None:
        nonlocal stage, began, last
        now = time.monotonic()
        if what != stage:
            stage, began = what, now
        if now - last >= every_s:
            last = now
            report(data_line(what, done, total, now - began))

    return progress


def data_line(what: str, done: int, total: int | None, elapsed_s: float) -> str:
    """`reading: 12 of 50 MB of text, 0:31 left`."""
    if total is None or not done:
        return f"{what}: {done / 1e6:,.0f} MB of text"
    left_s = elapsed_s * max(0, total - done) / done
    return f"{what}: {min(done, total) / 1e6:,.0f} of {total / 1e6:,.0f} MB of text, {duration(left_s)} left"


def step_line(row: Mapping[str, Any], steps: int) -> str:
    """step, %, loss, lr, λ, gradient norm, tokens/s, time left."""
    step = row["step"]
    left_s = (steps - step) * row["batch_tokens"] / max(row["tokens_per_s"], 1e-9)
    return (
        f"step {step:>{len(str(steps))}}/{steps} {100 * step / steps:3.0f} %  loss {row['loss']:.3f}"
        f"  lr {row['lr']:.1e}  λ {row['weight_decay']:g}  |g| {row['grad_norm']:.2f}"
        f"  {row['tokens_per_s']:,.0f} tokens/s  {duration(left_s)} left"
    )


def narrowed(line: str, width: int) -> str:
    """The same closer together where the terminal is too narrow for it."""
    if len(line) <= width:
        return line
    return line.replace("  ", " ").replace("tokens/s", "tok/s").removeprefix("step ").removesuffix(" left")


def evaluation_line(row: Mapping[str, Any]) -> str:
    """Held-out loss in the three units that people compare by."""
    bits = row["val_bits_per_byte"]
    of_text = "no bits per byte (its tokenizer loses text)" if bits is None else f"{bits:.3f} bits per byte"
    return (
        f"held-out at step {row['step']}: loss {row['val_loss']:.3f}, perplexity {row['val_perplexity']:.1f}, {of_text}"
    )


def duration(seconds: float) -> str:
    """`1:02:03`, `2:03`."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
