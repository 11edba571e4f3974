"""Where nobody asks, products are in bfloat16 if that is faster here, and in float32 if it is emulated."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import SMALL, Command
from weightdecay.recipes.schema import recipe
from weightdecay.recipes.settings import TrainConfig
from weightdecay.training.precision import bfloat16_costs, with_precision
from weightdecay.training.resuming import agree_on_config, with_recorded_choice

# oneDNN then emulates bfloat16, as on a processor without instructions for it.
EMULATED = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
needs_x86 = pytest.mark.skipif(sys.platform != "linux", reason="oneDNN's limit is known on Linux alone")


def config(**values: object) -> TrainConfig:
    return recipe("gpt3:nano").config({key.replace("__", "."): value for key, value in values.items()})


def test_bfloat16_is_taken_where_it_is_faster_and_where_it_is_asked_for() -> None:
    assert with_precision(config(), 0.4).run.dtype == "bfloat16"
    assert with_precision(config(), 1.1).run.dtype == "float32"
    assert with_precision(config(run__dtype="bfloat16"), 60.0).run.dtype == "bfloat16"
    assert with_precision(config(run__dtype="float32"), 0.4).run.dtype == "float32"
    assert with_precision(recipe("gpt1:nano").config(), 0.4).run.dtype == "float32"  # as its recipe has it
    assert with_precision(config()).run.dtype == ("float32" if bfloat16_costs() > 1 else "bfloat16")


@pytest.mark.parametrize("recorded", ["bfloat16", "float32"])
def test_a_run_goes_on_in_the_precision_that_it_has(recorded: str) -> None:
    old = config(run__dtype=recorded)
    assert agree_on_config(old, with_recorded_choice(old, config()), "refuse", print) == old
    other = {"bfloat16": "float32", "float32": "bfloat16"}[recorded]
    asked = with_recorded_choice(old, config(run__dtype=other))
    assert agree_on_config(old, asked, "override", print).run.dtype == other


@needs_x86
def test_a_processor_without_bfloat16_trains_in_float32_and_says_so(
    weightdecay: Command, small_text: Path, tmp_path: Path
) -> None:
    run = ("train", "gpt3:nano", *SMALL, "--data", str(small_text), "--steps", "2", "--out", str(tmp_path / "run"))
    done = weightdecay(*run, **EMULATED)
    assert done.returncode == 0, done.stderr
    assert "precision: float32, for bfloat16 products take" in done.stdout
    assert 'dtype = "float32"' in (tmp_path / "run/run.toml").read_text()
    again = weightdecay(*run)  # here, where bfloat16 may be the faster
    assert again.returncode == 0, again.stderr


@needs_x86
@pytest.mark.long
def test_bfloat16_that_is_asked_for_is_taken_and_said_to_be_slow(
    weightdecay: Command, small_text: Path, tmp_path: Path
) -> None:
    asked = ("--dtype", "bfloat16", "--out", str(tmp_path / "run"))
    done = weightdecay("train", "gpt3:nano", *SMALL, "--data", str(small_text), "--steps", "2", *asked, **EMULATED)
    assert done.returncode == 0, done.stderr
    assert "--dtype float32 is faster" in done.stdout
    assert 'dtype = "bfloat16"' in (tmp_path / "run/run.toml").read_text()


@needs_x86
@pytest.mark.long
def test_a_bench_says_it_too(weightdecay: Command) -> None:
    done = weightdecay("bench", "gpt3:nano", "--steps", "1", "--json", **EMULATED)
    document = json.loads(done.stdout)
    assert document["dtype"] == "float32"
    assert "precision: float32" in document["remarks"][0]


@needs_x86
@pytest.mark.long
def test_one_core_and_no_compiler_are_said_and_gone_on_without(tmp_path: Path) -> None:
    """A processor with one core to give, and a PATH on which there is nothing."""
    empty = {**os.environ, "PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "weightdecay", "bench", "--dtype", "bfloat16", "--steps", "1", "--json"]
    core = min(os.sched_getaffinity(0))
    taskset = shutil.which("taskset") or pytest.skip("no taskset here")
    done = subprocess.run([taskset, "-c", str(core), *command], capture_output=True, text=True, check=False, env=empty)
    assert done.returncode == 0, done.stderr
    remarks = json.loads(done.stdout)["remarks"]
    assert any(words.startswith("1 of ") and "cores are used" in words for words in remarks)
    assert any("no C compiler" in words for words in remarks)
