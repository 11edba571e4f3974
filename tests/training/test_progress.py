from __future__ import annotations

import io
import math
import time

import pytest
from rich.console import Console

from weightdecay.training.progress import (
    ConsoleReporter,
    data_line,
    duration,
    evaluation_line,
    step_line,
    told_now_and_then,
)

ROW = {
    "step": 50, "loss": 3.25, "lr": 6e-3, "weight_decay": 0.1, "grad_norm": 0.75, "batch_tokens": 2048,
    "tokens_per_s": 10_240.0,
}  # fmt: skip


def test_a_step_is_told_on_one_line_with_the_time_that_is_left() -> None:
    assert step_line(ROW, steps=200) == (
        "step  50/200  25 %  loss 3.250  lr 6.0e-03  λ 0.1  |g| 0.75  10,240 tokens/s  0:30 left"
    )


def test_an_evaluation_is_told_in_the_units_that_people_compare_by() -> None:
    row = {"step": 8, "val_loss": 4.0, "val_perplexity": 54.6, "val_bits_per_byte": 1.7}
    assert evaluation_line(row) == "held-out at step 8: loss 4.000, perplexity 54.6, 1.700 bits per byte"


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0, "0:00"), (59.6, "1:00"), (125, "2:05"), (3_723, "1:02:03"), (math.inf, "?")]
)
def test_durations(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_off_a_terminal_about_twenty_plain_lines_tell_a_run() -> None:
    console = Console(file=io.StringIO(), width=200)
    reporter = ConsoleReporter(console)
    for step in range(1, 401):
        reporter.step({**ROW, "step": step}, steps=400)
    reporter.close()
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 21
    assert lines[0].startswith("step   1/400")
    assert lines[-1].startswith("step 400/400")
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize(("steps", "width"), [(200, 80), (60_000, 80), (60_000, 100), (60_000, 140)])
def test_on_a_narrow_terminal_the_line_is_shorter_and_whole(steps: int, width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    reporter = ConsoleReporter(console)
    reporter.step({**ROW, "step": steps - 1, "weight_decay": 0.123, "tokens_per_s": 105_240.0}, steps=steps)
    reporter.close()
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in written
    assert f"{steps - 1}/{steps}" in written
    assert "105,240 tok" in written
    assert "0:00" in written
    assert ("━" in written) == (width == 140)


def test_long_work_is_told_of_now_and_then() -> None:
    said: list[str] = []
    progress = told_now_and_then(said.append, every_s=0.05)
    progress("writing tokens", 1_000_000, 9_000_000)
    assert said == []
    time.sleep(0.06)
    progress("writing tokens", 2_000_000, 9_000_000)
    progress("writing tokens", 3_000_000, 9_000_000)
    assert said == ["writing tokens: 2 of 9 MB of text, 0:00 left"]


def test_the_time_left_goes_by_what_is_done_where_the_whole_is_known() -> None:
    assert data_line("reading", 2_000_000, 10_000_000, 30.0) == "reading: 2 of 10 MB of text, 2:00 left"
    assert data_line("reading", 2_000_000, None, 30.0) == "reading: 2 MB of text"
    assert data_line("reading", 11_000_000, 10_000_000, 30.0) == "reading: 10 of 10 MB of text, 0:00 left"


def test_a_tokenizer_that_loses_text_has_no_bits_per_byte() -> None:
    row = {"step": 8, "val_loss": 4.0, "val_perplexity": 54.6, "val_bits_per_byte": None}
    assert evaluation_line(row).endswith("perplexity 54.6, no bits per byte (its tokenizer loses text)")


def test_on_a_terminal_one_line_is_renewed() -> None:
    console = Console(file=io.StringIO(), width=150, force_terminal=True, color_system=None)
    reporter = ConsoleReporter(console)
    for step in (1, 2, 3):
        reporter.step({**ROW, "step": step}, steps=3)
    reporter.note("[red]not markup[/red] \x1b[31mnor a command")
    reporter.close()
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert "step 3/3 100 %" in written
    assert "[red]not markup[/red] \\x1b[31mnor a command" in written
    assert written.count("\n") <= 4
