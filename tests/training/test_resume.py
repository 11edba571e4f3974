"""Runs that are stopped, killed and damaged, in real processes with real signals."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.commands import MOVING, SMALL, Command
from tests.forking import Forked, ForkServer
from weightdecay.cli import main
from weightdecay.training.signals import StopRequest

STEPS = 40
LAST = f"checkpoints/step-{STEPS:08d}"


def arguments(text: Path, out: Path, *more: str) -> list[str]:
    return ["train", "gpt3:nano", "--data", str(text), "--steps", str(STEPS), "--out", str(out),
            "--checkpoint-every", "6", *SMALL, *MOVING, *more]  # fmt: skip


def wait_until(condition: Callable[[], bool], process: Forked) -> None:
    """Looks as often as the machine allows, until it holds or the process is gone."""
    while process.poll() is None and not condition():
        time.sleep(0.0005)


def rows(run: Path) -> list[dict[str, Any]]:
    """The metric rows without their wall-clock fields."""
    clock = {"tokens_per_s", "elapsed_s", "eval_s"}
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in clock} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (one / LAST / name).read_bytes() == (other / LAST / name).read_bytes(), name
    assert rows(one) == rows(other)
    kept = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (one, other)]
    assert kept[0] == kept[1]


@pytest.fixture(scope="module")
def whole_run(small_text: Path, tmp_path_factory: pytest.TempPathFactory, weightdecay: Command) -> Path:
    """The run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = weightdecay(*arguments(small_text, out))
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def copy_of_whole(whole_run: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(whole_run, copy)
    config = copy / "run.toml"
    config.write_text(config.read_text().replace(str(whole_run), str(copy)))
    return copy


def test_the_run_goes_through_its_text_more_than_once_with_dropout_on(whole_run: Path) -> None:
    """Otherwise the tests below would show less than they say."""
    config = (whole_run / "run.toml").read_text()
    assert "dropout = 0.1" in config
    assert "stochastic_depth = 0.1" in config
    training = json.loads((whole_run / "environment.json").read_text())
    assert training["threads"] == 1
    assert len([row for row in rows(whole_run) if row["kind"] == "train"]) == STEPS


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(
    forks: ForkServer, small_text: Path, whole_run: Path, tmp_path: Path
) -> None:
    """SIGKILL at four moments: twice after a random step, twice inside a save."""
    out = tmp_path / "run"
    moments = random.Random(20)
    killed_at = []
    for attempt in range(4):
        process = forks.start(*arguments(small_text, out))
        done_before = steps_done(out)
        if attempt % 2:
            wait_until(lambda: any(out.glob("checkpoints/.partial-*")), process)
        else:
            goal = min(done_before + moments.randint(1, 9), STEPS - 1)
            wait_until(lambda goal=goal: steps_done(out) >= goal, process)  # type: ignore[misc]
        process.kill()
        process.communicate()
        killed_at.append((steps_done(out), sorted(path.name for path in out.glob("checkpoints/*"))))
    assert any(name.startswith(".partial-") for _, names in killed_at for name in names), "no kill fell into a save"
    last = forks.start(*arguments(small_text, out, "--resume", "auto"))
    text, _ = last.communicate(timeout=120)
    assert last.returncode == 0, text
    assert_same_run(whole_run, out)


def steps_done(out: Path) -> int:
    try:
        lines = (out / "metrics.jsonl").read_text().splitlines()
        return max((json.loads(line)["step"] for line in lines[:-1]), default=0)
    except (OSError, ValueError):
        return 0


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_signal_saves_at_the_next_step_and_the_resumed_run_ends_the_same(
    forks: ForkServer, small_text: Path, whole_run: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    process = forks.start(*arguments(small_text, out))
    wait_until(lambda: steps_done(out) >= 8, process)
    process.send_signal(number)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, text
    assert "once more leaves at once" in text
    found = re.search(rf"stopped by signal {int(number)} after step (\d+) of 40; saved", text)
    assert found is not None, text
    assert (out / f"checkpoints/step-{int(found[1]):08d}/manifest.json").is_file()
    again = forks.start(*arguments(small_text, out, "--resume", "must"))
    text, _ = again.communicate(timeout=120)
    assert again.returncode == 0, text
    assert f"resumed from step {found[1]}" in text
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (whole_run / LAST / name).read_bytes() == (out / LAST / name).read_bytes()
    assert rows(whole_run) == rows(out)
    written = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    clock = [row["elapsed_s"] for row in written if row["kind"] == "train"]
    assert clock == sorted(clock)


def test_a_second_signal_leaves_at_once_and_an_echo_of_the_first_does_not() -> None:
    """The first one waits for a step that never ends here, because the process is held up between the two."""
    script = (
        "import os, signal, time\n"
        "from weightdecay.training.signals import ECHO_S, StopRequest\n"
        "with StopRequest(before_leaving=lambda: print('leaving', flush=True)) as stop:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert stop.signal_number == signal.SIGTERM\n"
        "    print('first survived', flush=True)\n"
        "    time.sleep(1.1 * ECHO_S)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False)
    assert done.stdout == "first survived\nleaving\n"
    assert done.returncode == 130


def test_afterwards_signals_do_what_they_did_before() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_finished_run_is_left_as_it_is(copy_of_whole: Path, small_text: Path, weightdecay: Command) -> None:
    before = {path: path.read_bytes() for path in copy_of_whole.rglob("*") if path.is_file() and path.name != ".lock"}
    done = weightdecay(*arguments(small_text, copy_of_whole))
    assert done.returncode == 0, done.stderr
    assert "this run is finished (40 steps)" in done.stdout
    after = {path: path.read_bytes() for path in copy_of_whole.rglob("*") if path.is_file() and path.name != ".lock"}
    assert before == after


def test_a_run_that_was_killed_between_its_last_save_and_its_summary_is_finished_as_it_would_have_been(
    copy_of_whole: Path, whole_run: Path, small_text: Path, weightdecay: Command
) -> None:
    (copy_of_whole / "summary.json").unlink()
    shutil.copytree(copy_of_whole / "checkpoints/step-00000036", copy_of_whole / "checkpoints/step-00000030")
    done = weightdecay(*arguments(small_text, copy_of_whole))
    assert done.returncode == 0, done.stderr
    assert_same_run(whole_run, copy_of_whole)
    one, other = (json.loads((run / "summary.json").read_text()) for run in (copy_of_whole, whole_run))
    of_the_machine = {"elapsed_s": 0, "peak_memory_bytes": 0}
    assert one | of_the_machine == other | of_the_machine


@pytest.mark.parametrize("name", ["summary.json", "environment.json", "run.toml"])
def test_a_damaged_record_of_the_run_is_named(
    copy_of_whole: Path, small_text: Path, weightdecay: Command, name: str
) -> None:
    (copy_of_whole / name).write_text("{")
    done = weightdecay(*arguments(small_text, copy_of_whole))
    assert done.returncode == 4
    assert done.stderr.startswith(f"error: {copy_of_whole / name}: cannot be read: ")


def unfinish(run: Path) -> None:
    (run / "summary.json").unlink()
    shutil.rmtree(run / LAST)


def test_a_damaged_newest_checkpoint_is_passed_over(
    copy_of_whole: Path, whole_run: Path, small_text: Path, weightdecay: Command
) -> None:
    path = copy_of_whole / LAST / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-7] ^= 4
    path.write_bytes(content)
    (copy_of_whole / "summary.json").unlink()
    done = weightdecay(*arguments(small_text, copy_of_whole))
    assert done.returncode == 0, done.stderr
    assert "checkpoint of step 40 is damaged and is passed over" in done.stdout
    assert "SHA-256" in done.stdout
    assert "resumed from step 36" in done.stdout
    assert path.read_bytes() == (whole_run / LAST / "model.safetensors").read_bytes()
    assert (copy_of_whole / "checkpoints/damaged-step-00000040/model.safetensors").read_bytes() == content


def test_without_a_good_checkpoint_the_command_exits_with_4(
    copy_of_whole: Path, small_text: Path, weightdecay: Command
) -> None:
    (copy_of_whole / "summary.json").unlink()
    for path in copy_of_whole.glob("checkpoints/*/optimizer.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    done = weightdecay(*arguments(small_text, copy_of_whole))
    assert done.returncode == 4
    assert "no checkpoint is good" in done.stderr


def with_two_threads(command: list[str]) -> None:
    torch.set_num_threads(2)
    main(command)


def test_another_number_of_threads_is_said(copy_of_whole: Path, small_text: Path, forks: ForkServer) -> None:
    unfinish(copy_of_whole)
    process = forks.call(with_two_threads, arguments(small_text, copy_of_whole))
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert "resumed with 2 threads, was saved with 1" in said.replace("\n", " ")


def test_a_changed_setting_is_refused_kept_or_obeyed_from_the_first_step(
    copy_of_whole: Path, small_text: Path, weightdecay: Command
) -> None:
    unfinish(copy_of_whole)
    changed = arguments(small_text, copy_of_whole, "--weight-decay", "0.5", "--lr", "1e-3")
    refused = weightdecay(*changed)
    assert refused.returncode == 2
    assert "optimizer.weight_decay: the run has 0.1, asked for 0.5" in refused.stderr
    assert "optimizer.lr: the run has 0.006, asked for 0.001" in refused.stderr
    obeyed = weightdecay(*changed, "--on-change", "override")
    assert obeyed.returncode == 0, obeyed.stderr
    by_step = {row["step"]: row for row in rows(copy_of_whole) if row["kind"] == "train"}
    assert [by_step[step]["weight_decay"] for step in (35, 36, 37, 38)] == [0.1, 0.1, 0.5, 0.5]
    assert by_step[37]["lr"] == pytest.approx(by_step[36]["lr"] / 6, rel=0.3)


def test_keeping_the_settings_of_the_run_ends_it_as_it_would_have_ended(
    copy_of_whole: Path, whole_run: Path, small_text: Path, weightdecay: Command
) -> None:
    unfinish(copy_of_whole)
    done = weightdecay(*arguments(small_text, copy_of_whole, "--lr", "1e-3", "--on-change", "keep"))
    assert done.returncode == 0, done.stderr
    assert_same_run(whole_run, copy_of_whole)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seed", "7"], "run.seed: the run has 0, asked for 7; this cannot change"),
        (["--set", "model.d_ff=48"], "model.d_ff: the run has 128, asked for 48; this cannot change"),
        (["--resume", "never"], "holds a run already"),
    ],
)
def test_what_cannot_change_on_the_way_is_refused(
    whole_run: Path, small_text: Path, weightdecay: Command, more: list[str], message: str
) -> None:
    done = weightdecay(*arguments(small_text, whole_run, *more))
    assert done.returncode == 2
    assert message in done.stderr


def test_other_data_is_refused(whole_run: Path, tmp_path: Path, weightdecay: Command) -> None:
    other = tmp_path / "other.txt"
    other.write_text("another text\n" * 300)
    done = weightdecay(*arguments(other, whole_run))
    assert done.returncode == 2
    assert "was trained with corpus_sha256" in done.stderr


def test_a_directory_that_is_no_run_is_left_alone(small_text: Path, tmp_path: Path, weightdecay: Command) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    done = weightdecay(*arguments(small_text, tmp_path))
    assert done.returncode == 2
    assert "thesis.tex" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != ".lock") == ["thesis.tex"]
    missing = weightdecay(*arguments(small_text, tmp_path / "none", "--resume", "must"))
    assert missing.returncode == 2
    assert "holds no run to resume" in missing.stderr
    assert not (tmp_path / "none").exists()


def test_a_run_that_was_killed_before_it_began_can_be_started(
    whole_run: Path, small_text: Path, tmp_path: Path, weightdecay: Command
) -> None:
    (tmp_path / "plan.json").write_text("{}")
    (tmp_path / ".partial-1-ab").write_text("half of environment.js")
    done = weightdecay(*arguments(small_text, tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "plan.json").read_text() == (whole_run / "plan.json").read_text()


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(
    copy_of_whole: Path, small_text: Path, weightdecay: Command
) -> None:
    (copy_of_whole / "summary.json").unlink()
    script = (
        "import sys, time; from pathlib import Path; from weightdecay.runs import Run\n"
        "with Run(Path(sys.argv[1])).lock(): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(copy_of_whole)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    second = weightdecay(*arguments(small_text, copy_of_whole))
    assert second.returncode == 1
    assert f"process {holder.pid} is training here" in second.stderr
    holder.kill()
    holder.communicate()
    third = weightdecay(*arguments(small_text, copy_of_whole))
    assert third.returncode == 0, third.stderr


def test_a_run_can_start_from_the_weights_of_another(
    whole_run: Path, small_text: Path, tmp_path: Path, weightdecay: Command
) -> None:
    done = weightdecay(*arguments(small_text, tmp_path / "new", "--init-from", str(whole_run), "--lr", "1e-4"))
    assert done.returncode == 0, done.stderr
    ended = rows(whole_run)[-2]["loss"]
    assert rows(tmp_path / "new")[0]["loss"] < 0.5 * rows(whole_run)[0]["loss"] + 0.5 * ended
    other_shape = weightdecay(
        *arguments(small_text, tmp_path / "wide", "--init-from", str(whole_run), "--set", "model.d_ff=48")
    )
    assert other_shape.returncode == 4
    assert "tensor 'blocks.0.feedforward.up.weight' is torch.float32 [128, 32]" in other_shape.stderr
    assert "tensor 'blocks.1.feedforward.down.weight'" in other_shape.stderr
    assert not (tmp_path / "wide" / "checkpoints").exists()
