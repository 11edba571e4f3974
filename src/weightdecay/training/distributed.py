"""Several processes, one training: who am I, what do all agree on, and starting them on one machine.

Under torchrun the ranks come from its environment; `--nproc N` starts N processes itself, so that a signal's exit code
reaches the shell (torchrun turns every failure into 1). NCCL where CUDA is, gloo otherwise. The GPU paths here have
not been run on a GPU by this project.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from weightdecay.errors import ConfigError, ProcessGroupError
from weightdecay.training.signals import StopRequest

# Set in ranks that `launch` made: they leave without tearing gloo down, whose threads can abort the process there
# ("terminate called without an active exception", seen in torch 2.13 on a loaded machine).
_LEAVES_AT_ONCE = "WEIGHTDECAY_RANK_LEAVES_AT_ONCE"
_GRACE_S = 1.0  # for each other rank, after one has failed


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

    def sum_of(self, tensor: Tensor) -> Tensor:
        """A tensor summed over all ranks."""
        summed = tensor.clone()
        if self.world_size > 1:
            dist.all_reduce(summed)
        return summed

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
    """Take this process's place among the ranks that the environment names; alone if it names none.

    Raises:
        ConfigError: there are GPUs, and fewer than ranks on this machine.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available()
    if cuda and local_rank >= (gpus := torch.cuda.device_count()):
        raise ConfigError(f"process {local_rank + 1} on this machine finds {gpus} GPUs: give --nproc {gpus}")
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if world_size == 1:
        yield Ranks(0, 1, device)
        return
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Ranks(dist.get_rank(), world_size, device)
    finally:
        if _LEAVES_AT_ONCE not in os.environ:
            dist.destroy_process_group()


def inside_a_group() -> bool:
    """Whether this process was started as one of several ranks."""
    return "WORLD_SIZE" in os.environ


def launch(nproc: int, target: Callable[..., int], *arguments: Any) -> None:
    """Run `target(*arguments)` in `nproc` new processes on this machine; its return value is each one's exit code.

    A signal is passed on to all; a second one ends all at once. When one rank dies, the others are ended without
    saving: they would only wait for it until a time-out.

    Raises:
        ProcessGroupError: a rank ended with another exit code than 0, or was killed.
    """
    context = multiprocessing.get_context("spawn")
    port = _free_port()
    ranks = [
        context.Process(target=_run_rank, args=(target, arguments, rank, nproc, port), name=f"rank {rank}")
        for rank in range(nproc)
    ]
    with StopRequest(before_leaving=lambda: _kill(ranks), tells=True) as stop:
        for process in ranks:
            process.start()
        first = _first_to_fail(ranks, stop)
    for process in ranks:
        process.join()
    if first is not None:
        code = first.exitcode or 0
        how = f"ended with exit code {code}" if code > 0 else f"was killed by signal {-code}"
        raise ProcessGroupError(f"{first.name} of {nproc} {how}; all have ended", code if code > 0 else 1)


def _first_to_fail(ranks: Sequence[BaseProcess], stop: StopRequest) -> BaseProcess | None:
    """Wait for all; pass a signal on; end the others once one has failed."""
    passed_on = False
    while any(process.is_alive() for process in ranks):
        if stop.signal_number and not passed_on:
            passed_on = True
            for process in ranks:
                if process.is_alive() and process.pid is not None:
                    os.kill(process.pid, stop.signal_number)
        failed = next((process for process in ranks if process.exitcode), None)
        if failed is not None:
            for process in ranks:
                process.join(timeout=_GRACE_S)  # a fault that all see ends them all; let each say so
            _kill(ranks)
            return failed
        time.sleep(0.05)
    return next((process for process in ranks if process.exitcode), None)


def _kill(ranks: Sequence[BaseProcess]) -> None:
    for process in ranks:
        if process.pid is not None:  # it was started
            process.kill()


def _run_rank(target: Callable[..., int], arguments: tuple[Any, ...], rank: int, nproc: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        _LEAVES_AT_ONCE: "1",
        "GLOO_SOCKET_IFNAME": "lo",  # ranks of one machine talk over nothing else
    }
    torch.set_num_threads(max(1, torch.get_num_threads() // nproc))
    code = target(*arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
