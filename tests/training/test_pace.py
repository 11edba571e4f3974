"""What a run says of its time, from its own first steps."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import weightdecay as library
from tests.commands import SMALL, Command
from weightdecay.training.pace import Pace, run_seconds
from weightdecay.training.progress import SilentReporter
from weightdecay.training.setup import Setup, set_up


def setup_of(text: Path, **changes: Any) -> Setup:
    values = {
        "run.steps": 400, "data.sources": [str(text)], "data.tokenizer": "byte", "run.batch_tokens": 512,
        "run.eval_every": 100, "run.eval_tokens": 120, "model.context": 16,
    }  # fmt: skip
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    return set_up(library.recipe("gpt3:nano").config(values))


def told(pace: Pace, seconds: list[float]) -> list[tuple[int, str]]:
    """The lines, each with the number of steps after which it came."""
    lines = [(number, pace.after_step(step_s)) for number, step_s in enumerate(seconds, 1)]
    return [(number, line) for number, line in lines if line]


def test_the_time_of_a_run_is_that_of_its_steps_and_of_a_third_for_each_evaluated_token(small_text: Path) -> None:
    setup = setup_of(small_text)
    assert run_seconds(setup, 0.001) == pytest.approx(0.001 * (400 * 512 + 4 * 120 / 3))
    assert run_seconds(setup, 0.001, done=250) == pytest.approx(0.001 * (150 * 512 + 2 * 120 / 3))
    assert run_seconds(setup_of(small_text, run__steps=401), 1.0) == pytest.approx(401 * 512 + 5 * 120 / 3)
    held_out = len(setup.data.held_out.tokens)
    assert run_seconds(setup_of(small_text, run__eval_tokens=10**9), 1.0) == pytest.approx(400 * 512 + 4 * held_out / 3)


def test_a_run_whose_batch_grows_takes_as_long_as_its_tokens(small_text: Path) -> None:
    grown = setup_of(small_text, run__batch_ramp=("0:256", "51200:512"))
    assert run_seconds(grown, 1.0) == pytest.approx(200 * 256 + 200 * 512 + 4 * 120 / 3)
    [(_, line)] = told(Pace(grown), [9.0, *[0.5] * 10])  # half a second for half a batch
    assert "about 5:00 for 400 steps" in line


def test_the_first_step_is_no_measure_and_one_hiccup_does_no_harm(small_text: Path) -> None:
    [(after, line)] = told(Pace(setup_of(small_text)), [30.0, 0.4, 2.0, 0.4, 0.4, 0.4])
    assert after == 4
    assert line == "time: about 2:40 for 400 steps, 0.4 s each (timed over steps 2 to 4), evaluations included"


@pytest.mark.parametrize(
    ("step_s", "steps", "after"),
    [(0.01, 4000, 101), (0.4, 4000, 4), (60.0, 4000, 2), (0.01, 20, 3), (0.01, 2, 2)],
    ids=["short steps", "steps", "very long steps", "a short run", "two steps"],
)
def test_it_is_told_as_soon_as_there_is_enough_to_tell_by(
    small_text: Path, step_s: float, steps: int, after: int
) -> None:
    lines = told(Pace(setup_of(small_text, run__steps=steps)), [step_s] * min(steps, 200))
    assert [number for number, _ in lines] == [after]


def test_a_resumed_run_tells_what_is_left(small_text: Path) -> None:
    [(_, line)] = told(Pace(setup_of(small_text), done=100), [1.0] * 9)
    assert "about 5:00 for the 300 steps that are left, 1 s each (timed over steps 102 to 104)" in line


class Listening(SilentReporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def time_lines(lines: list[str]) -> list[str]:
    return [line for line in lines if re.fullmatch(r"time: about \d+:\d\d for .* evaluations included", line)]


def test_a_real_run_tells_its_time_once_and_a_resumed_one_what_is_left(small_text: Path, tmp_path: Path) -> None:
    config = setup_of(small_text, model__n_layers=1, run__batch_tokens=32, run__out=str(tmp_path / "run")).config
    for steps, which in ((4, "4 steps"), (8, "the 4 steps that are left")):
        listening = Listening()
        config = config.resolved(run__steps=steps, schedule__warmup_steps=1)
        library.train(config, on_change="override", reporter=listening)
        [line] = time_lines(listening.notes)
        assert f"for {which}, " in line


@pytest.mark.long
def test_the_time_is_told_in_a_log_and_beside_a_document(
    weightdecay: Command, small_text: Path, tmp_path: Path
) -> None:
    run = ("train", "gpt3:nano", "--data", small_text, "--out", tmp_path / "run", "--steps", "30", *SMALL)
    done = weightdecay(*run, "--json")
    assert json.loads(done.stdout)["summary"]["steps"] == 30
    assert len(time_lines(done.stderr.splitlines())) == 1
    longer = weightdecay(*run, "--steps", "60", "--on-change", "override")
    [line] = time_lines(longer.stdout.splitlines())
    assert longer.stdout.index(line) < longer.stdout.index("held-out at step")
