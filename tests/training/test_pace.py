"""What a run says of its time, from its own first steps."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import weightdecay as library
from tests.commands import SMALL, Command
from weightdecay.training import pace
from weightdecay.training.building import build
from weightdecay.training.distributed import Ranks
from weightdecay.training.pace import Pace, pass_seconds, run_seconds
from weightdecay.training.progress import SilentReporter
from weightdecay.training.setup import Setup, set_up

ALONE = Ranks(0, 1, torch.device("cpu"))


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


@pytest.mark.parametrize("rows", [1, 2, 3, 16, 37])
def test_a_pass_that_is_timed_in_full_takes_what_it_takes(rows: int) -> None:
    """However much of it is the same for any number of sequences."""
    assert pass_seconds(lambda n: 0.5 + 0.01 * n, rows) == pytest.approx(0.5 + 0.01 * rows)
    assert pass_seconds(lambda n: 0.02 * n, rows) == pytest.approx(0.02 * rows)
    assert pass_seconds(lambda _: 0.2, rows) == pytest.approx(0.2)


def test_the_first_pass_of_a_size_which_finds_its_memory_is_no_measure() -> None:
    known: set[int] = set()

    def timed(rows: int) -> float:
        warm, cold = 0.01 + 0.001 * rows, 1 if rows in known else 3
        known.add(rows)
        return cold * warm

    assert pass_seconds(timed, 16) == pytest.approx(0.026)


def test_a_pass_too_long_to_be_timed_goes_by_a_line_and_not_through_the_start() -> None:
    asked: list[int] = []

    def timed(rows: int) -> float:
        asked.append(rows)
        return 1.0 + 0.5 * rows

    assert pass_seconds(timed, 1000) == pytest.approx(501.0)
    assert sum(1.0 + 0.5 * rows for rows in asked) < 12


def test_passes_that_take_all_the_time_are_timed_once_more_and_no_further() -> None:
    asked: list[int] = []

    def timed(rows: int) -> float:
        asked.append(rows)
        return 20.0 * rows

    assert pass_seconds(timed, 8) == pytest.approx(160.0)
    assert set(asked) == {1}


def test_a_busy_machine_that_stretches_short_passes_does_not_stretch_the_whole_run() -> None:
    """Measured with eight programs on two cores: 1.2 s for one sequence, 1.3 s for sixteen; 19 s were told."""
    assert pass_seconds(lambda rows: 1.2 + 0.006 * rows, 16) == pytest.approx(1.3, rel=0.01)
    # Noise that would make more sequences cheaper than few makes them as expensive.
    assert pass_seconds(lambda rows: 3.5 if rows == 1 else 2.0, 16) == pytest.approx(2.0)


def test_what_was_told_before_the_first_step_is_told_anew_only_where_the_steps_say_otherwise(small_text: Path) -> None:
    pace = Pace(setup_of(small_text), _told=0.4 / 512)
    assert told(pace, [9.0, *[0.44] * 10]) == []
    pace = Pace(setup_of(small_text), _told=0.4 / 512)
    [(_, line)] = told(pace, [9.0, *[0.8] * 10])
    assert line == "time: rather about 5:20 for 400 steps, 0.8 s each (timed over steps 2 to 4), evaluations included"


class Listening(SilentReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)

    def step(self, row: Mapping[str, Any], steps: int) -> None:  # noqa: ARG002
        self.said.append(f"step {row['step']}")


def time_lines(lines: list[str]) -> list[str]:
    return [line for line in lines if re.fullmatch(r"time: about \d+:\d\d for .* evaluations included", line)]


def test_a_real_run_tells_its_time_before_its_first_step_and_a_resumed_one_what_is_left(
    small_text: Path, tmp_path: Path
) -> None:
    config = setup_of(small_text, model__n_layers=1, run__batch_tokens=32, run__out=str(tmp_path / "run")).config
    for steps, which in ((4, "4 steps"), (8, "the 4 steps that are left")):
        listening = Listening()
        config = config.resolved(run__steps=steps, run__log_every=1, schedule__warmup_steps=1)
        library.train(config, on_change="override", reporter=listening)
        [line] = time_lines(listening.said)
        assert f"for {which}, " in line
        assert "timed now on 2 sequences" in line
        assert listening.said.index(line) < listening.said.index(f"step {steps - 3}")


@pytest.mark.parametrize(("second", "longest"), [(0.001, [1.0]), (100.0, [1.0, 6.0])], ids=["short run", "long run"])
def test_a_run_that_is_long_beside_it_waits_for_passes_that_are_timed_in_full(
    second: float, longest: list[float], small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def timed(_model: Any, _setup: Any, _device: Any, longest: float) -> tuple[float, int]:
        asked.append(longest)
        return (second, 1) if longest == 1.0 else (0.5 * second, 32)

    monkeypatch.setattr(pace, "_seconds_a_sequence", timed)
    setup = setup_of(small_text, run__out=str(tmp_path / "run"))
    line = Pace(setup).before_first_step(build(setup, ALONE, print, fresh=True), ALONE)
    assert asked == longest
    assert line is not None
    assert ("timed now on 32 sequences" in line) == (len(longest) == 2)


@pytest.mark.parametrize("recipe", ["gpt2:nano", "mixtral:nano"])
def test_passes_that_are_timed_leave_no_trace_in_the_weights(
    recipe: str, small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {
        "run.steps": 3, "data.sources": [str(small_text)], "data.tokenizer": "byte", "run.batch_tokens": 64,
        "model.context": 16, "model.dropout": 0.1, "model.n_layers": 2,
    }  # fmt: skip
    weights = []
    for name in ("timed", "not timed"):
        if name == "not timed":
            monkeypatch.setattr(Pace, "before_first_step", lambda *_: None)
        run = library.train(library.recipe(recipe).config(values | {"run.out": str(tmp_path / name)}))
        weights.append((run.checkpoints / "step-00000003" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


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
