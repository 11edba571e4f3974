"""Several processes on one machine, over gloo."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from tests.commands import MOVING, SMALL, Command
from tests.forking import Forked, ForkServer
from weightdecay.errors import ConfigError, TrainingError
from weightdecay.models.config import ModelConfig
from weightdecay.models.decoder import GPT
from weightdecay.models.objective import Objective
from weightdecay.optim.adamw import AdamW
from weightdecay.planning.plan import plan
from weightdecay.recipes.schema import recipe
from weightdecay.training.distributed import join
from weightdecay.training.setup import set_up
from weightdecay.training.signals import ECHO_S
from weightdecay.training.step import take_step


def arguments(text: Path, out: Path, *more: str) -> list[str]:
    plain = [*SMALL, "--set", "model.dropout=0", "--set", "model.stochastic_depth=0", "--dtype", "float32"]
    return ["train", "gpt3:nano", "--data", str(text), "--steps", "30", "--out", str(out), *plain, *more]


def losses(run: Path) -> list[float]:
    rows: list[dict[str, Any]] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = {"train": "loss", "eval": "val_loss"}
    return [row[names[row["kind"]]] for row in rows if row["kind"] in names]


def fields(run: Path, *names: str) -> list[tuple[Any, ...]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [tuple(row[name] for name in names) for row in rows if row["kind"] == "train"]


def wait_for_rows(run: Path, count: int, process: Forked) -> None:
    while process.poll() is None:
        if (run / "metrics.jsonl").is_file() and len((run / "metrics.jsonl").read_text().splitlines()) > count:
            return
        time.sleep(0.005)


def variables(rank: int, port: int) -> dict[str, str]:
    """What torchrun tells one of two ranks on a machine."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    # As ours do: nothing listens to the outside, and gloo, whose threads can abort a process, is not torn down.
    ours = {"GLOO_SOCKET_IFNAME": "lo", "WEIGHTDECAY_RANK_LEAVES_AT_ONCE": "1"}
    return {name: str(value) for name, value in (told | ours).items()}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def begun_by_torchrun(forks: ForkServer, command: list[str]) -> list[Forked]:
    port = free_port()
    environments = [{**os.environ, **variables(rank, port)} for rank in range(2)]
    return [forks.start(*command, start_new_session=True, environment=each) for each in environments]


def begun_by_us(forks: ForkServer, command: list[str]) -> list[Forked]:
    return [forks.start(*command, start_new_session=True)]


# A rank that we begin imports torch anew, which takes four seconds of a processor.
@pytest.mark.parametrize("begin", [begun_by_torchrun, pytest.param(begun_by_us, marks=pytest.mark.long)])
def test_two_processes_train_what_one_does_and_either_can_go_on_for_the_other(
    begin: Callable[[ForkServer, list[str]], list[Forked]],
    forks: ForkServer,
    small_text: Path,
    tmp_path: Path,
    weightdecay: Command,
) -> None:
    one = weightdecay(*arguments(small_text, tmp_path / "one", *MOVING))
    assert one.returncode == 0, one.stderr
    accumulating = ("--set", "run.micro_batch_tokens=64")  # two passes in each process
    processes = begin(forks, arguments(small_text, tmp_path / "two", "--nproc", "2", *MOVING, *accumulating))
    wait_for_rows(tmp_path / "two", 6, processes[0])
    for process in processes:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: who began the ranks, and they, have it at once
    text = "".join(process.communicate(timeout=120)[0] for process in processes)
    assert {process.returncode for process in processes} == {130}, text
    found = re.search(r"stopped by signal 2 after step (\d+) of 30; saved", text)
    assert found is not None, text
    assert (tmp_path / "two" / f"checkpoints/step-{int(found[1]):08d}/manifest.json").is_file()
    again = weightdecay(*arguments(small_text, tmp_path / "two", *MOVING))
    assert again.returncode == 0, again.stderr
    moved = fields(tmp_path / "one", "batch_tokens", "grad_clip")
    assert {tokens // 32 for tokens, _ in moved} == {3, 4, 5, 6, 7, 8}
    assert fields(tmp_path / "two", "batch_tokens", "grad_clip") == moved
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def test_when_a_process_is_killed_the_others_leave_and_nothing_is_saved(
    forks: ForkServer, small_text: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = forks.start(*arguments(small_text, run, "--nproc", "2", "--checkpoint-every", "1000", "--steps", "3000"))
    wait_for_rows(run, 3, process)
    children = [child for child in psutil.Process(process.pid).children(recursive=True) if is_rank(child)]
    assert len(children) == 2
    children[0].suspend()  # as if it waited for the other without end
    os.kill(children[1].pid, signal.SIGKILL)
    began = time.monotonic()
    text, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert process.returncode == 1, text
    assert "of 2 was killed by signal 9" in text
    assert not list(run.glob("checkpoints/step-*"))
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


SLOW_SAVE = """
import sys, time
from pathlib import Path
from weightdecay.errors import ProcessGroupError
from weightdecay.training.distributed import launch
from weightdecay.training.signals import ECHO_S, StopRequest

def rank(folder: Path) -> int:
    with StopRequest() as stop:
        (folder / f"ready-{time.monotonic_ns()}").touch()
        while not stop.signal_number:
            time.sleep(0.01)
        time.sleep(ECHO_S / 2)
        (folder / f"saved-{time.monotonic_ns()}").touch()
    return 128 + stop.signal_number

if __name__ == "__main__":
    try:
        launch(2, rank, Path(sys.argv[1]))
    except ProcessGroupError as error:
        print(error)
        sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("tell", [os.kill, pytest.param(os.killpg, marks=pytest.mark.long)])
def test_a_signal_is_passed_on_and_is_one_to_a_rank_that_hears_of_it_twice(
    tell: Callable[[int, int], None], tmp_path: Path
) -> None:
    """`kill` tells the launcher alone; Ctrl-C in a terminal tells the launcher and its ranks at once."""
    (tmp_path / "script.py").write_text(SLOW_SAVE)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        while len(list(tmp_path.glob("ready-*"))) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        tell(process.pid, signal.SIGINT)
        text, _ = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert len(list(tmp_path.glob("saved-*"))) == 2
    assert "of 2 ended with exit code 130" in text
    assert process.returncode == 130


def one_is_poisoned(rank: int, port: int) -> None:
    os.environ |= variables(rank, port)
    torch.set_num_threads(1)
    with join() as ranks:
        torch.manual_seed(0)
        model = GPT(ModelConfig(vocab_size=31, context=8, n_layers=1, d_model=16, n_heads=2))
        optimizer = AdamW(plan(model), lr=1e-2, fused=True)
        objective = DistributedDataParallel(Objective(model))
        tokens = torch.randint(31, (4, 9))
        batch = [(tokens[:, :-1], tokens[:, 1:])]

        def step(number: int, on_nonfinite: Literal["stop", "skip"] = "stop") -> bool:
            return take_step(
                objective, optimizer, batch, sequences=8, ranks=ranks, dtype=torch.float32, grad_clip=1.0,
                seed=(0, number), on_nonfinite=on_nonfinite,
            ).skipped  # fmt: skip

        assert not step(0)
        before = [p.detach().clone() for p in model.parameters()]
        if ranks.rank:
            model.embedding.register_forward_hook(lambda _module, _inputs, out: out * torch.nan)
        assert step(1, "skip")
        with pytest.raises(TrainingError):
            step(2, "stop")
        assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
        ranks.wait_for_all()
    os._exit(0)  # which no failure comes to


def test_all_ranks_leave_a_step_out_whose_gradient_is_not_finite_on_one(forks: ForkServer) -> None:
    forks.ranks(one_is_poisoned, free_port())


@pytest.mark.long
def test_a_second_signal_ends_ranks_that_hang(forks: ForkServer, small_text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = forks.start(*arguments(small_text, run, "--nproc", "2", "--checkpoint-every", "1000", "--steps", "3000"))
    wait_for_rows(run, 3, process)
    ranks = [child for child in psutil.Process(process.pid).children(recursive=True) if is_rank(child)]
    for rank in ranks:
        rank.suspend()
    process.terminate()
    time.sleep(1.5 * ECHO_S)
    assert process.poll() is None
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143
    psutil.wait_procs(ranks, timeout=10)
    assert not [rank for rank in ranks if rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE]


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="process 3 on this machine finds 2 GPUs: give --nproc 2"), join():
        pass


def is_rank(process: psutil.Process) -> bool:
    return "spawn_main" in " ".join(process.cmdline())


def test_a_batch_that_cannot_be_shared_is_refused(small_text: Path) -> None:
    settings = {"run.nproc": 2, "run.batch_tokens": 32, "model.context": 32, "data.tokenizer": "byte"}
    config = recipe("gpt3:nano").config(settings | {"data.sources": [str(small_text)]})
    with pytest.raises(ConfigError, match="1 sequences a step cannot be shared by 2 processes"):
        set_up(config)
