"""Several processes, one training: who am I, what do all agree on, and starting them on one machine.

Under torchrun the ranks come from its environment; `--nproc N` starts N processes itself, so that a signal's exit code
reaches the shell (torchrun turns every failure into 1). NCCL where CUDA is, gloo otherwise. The GPU paths here have
not been run on a GPU by this project.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from weightdecay.errors import TrainingError
from weightdecay.training.signals import StopRequest


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def total(self, *numbers: float) -> list[float]:
        """Each number summed over all ranks, in float64."""
        return self._reduce(numbers, dist.ReduceOp.SUM) if self.world_size > 1 else list(numbers)

    def highest(self, number: int) -> int:
        """The largest of all ranks' numbers: what one rank has seen, all then know."""
        return int(self._reduce((number,), dist.ReduceOp.MAX)[0]) if self.world_size > 1 else number

    def wait_for_all(self) -> None:
        if self.world_size > 1:
            self.highest(0)

    def _reduce(self, numbers: tuple[float, ...], operation: Any) -> list[float]:
        values: Tensor = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(values, op=operation)
        return [float(value) for value in values]


@contextmanager
def join() -> Iterator[Ranks]:
    """Take this process's place among the ranks that the environment names; alone if it names none."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if world_size == 1:
        yield Ranks(0, 1, device)
        return
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Ranks(dist.get_rank(), world_size, device)
    finally:
        dist.destroy_process_group()


def inside_a_group() -> bool:
    """Whether this process was started as one of several ranks."""
    return "WORLD_SIZE" in os.environ


def launch(nproc: int, target: Callable[..., int], *arguments: Any) -> int:
    """Run `target(*arguments)` in `nproc` new processes on this machine; its return value is each one's exit code.

    A signal is passed on to all. When one rank dies, the others are ended at once without saving: they would only
    wait for it until a time-out.

    Returns:
        The first exit code that is not 0, or 0.

    Raises:
        TrainingError: a rank was killed.
    """
    context = multiprocessing.get_context("spawn")
    port = _free_port()
    ranks = [
        context.Process(target=_run_rank, args=(target, arguments, rank, nproc, port), name=f"rank {rank}")
        for rank in range(nproc)
    ]
    with StopRequest() as stop:
        for process in ranks:
            process.start()
        passed_on = False
        while any(process.is_alive() for process in ranks):
            if stop.signal_number and not passed_on:
                passed_on = True
                for process in ranks:
                    if process.pid is not None and process.is_alive():
                        os.kill(process.pid, stop.signal_number)
            failed = [process for process in ranks if process.exitcode not in (None, 0)]
            if failed and not stop.signal_number:
                time.sleep(0.5)  # a fault that all ranks see ends them all; let each say so
                for process in ranks:
                    process.kill()
            time.sleep(0.05)
    killed = [process for process in ranks if (process.exitcode or 0) < 0 and process.exitcode != -signal.SIGKILL]
    codes = [process.exitcode or 0 for process in ranks]
    positive = next((code for code in codes if code > 0), 0)
    if not positive and any(codes):
        victim = killed[0] if killed else next(process for process in ranks if process.exitcode)
        raise TrainingError(f"{victim.name} was killed by signal {-(victim.exitcode or 0)}; the others were ended")
    return positive


def _run_rank(target: Callable[..., int], arguments: tuple[Any, ...], rank: int, nproc: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(max(1, torch.get_num_threads() // nproc))
    raise SystemExit(target(*arguments))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
