"""What a run needs before it may begin: memory, room on the disk, and time.

disk = (weights + optimizer state) · (checkpoints that are kept + the one that is written)
time of a step = passes of a step · time of a pass + time of an update; of a run, see `pace`
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from weightdecay.errors import OutOfMemoryError, StorageError
from weightdecay.models.arithmetic import products_in, weights_in
from weightdecay.models.decoder import GPT
from weightdecay.models.objective import Objective
from weightdecay.training.distributed import inside_a_group
from weightdecay.training.footprint import Footprint, footprint
from weightdecay.training.optimizers import make_optimizer
from weightdecay.training.setup import Setup

# Passes are timed for so long at the most; what does not fit into it is timed on fewer sequences.
_LONGEST_TIMED_S = 6.0


@dataclass(frozen=True)
class Needs:
    """What a run takes, beside what is there.

    Attributes:
        memory: of one process.
        available: bytes of memory that can be had now, beside what this process has; None where the system does not
            say.
        checkpoints: how many lie on the disk at once.
        disk: bytes that they take.
        free: bytes that are free where the run will be written.
    """

    memory: Footprint
    available: int | None
    checkpoints: int
    disk: int
    free: int

    def lines(self) -> list[str]:
        """For people."""
        memory, of = self.memory, "" if self.available is None else f" of {size(self.available)} that can be had"
        each = ", ".join(f"{name} {size(value)}" for name, value in vars(memory).items() if value)
        bound = "at the most" if memory.activations else "at least"
        return [
            f"memory: {size(memory.total)} {bound}{of}: {each}",
            f"disk: {size(self.disk)} of {size(self.free)} that are free, for {self.checkpoints} checkpoints",
        ]


def needs_of(setup: Setup) -> Needs:
    """What a run of this setup takes. Nothing is allocated."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    available = available_memory(device)
    memory = _least(setup)
    if available is None or memory.more <= available:  # else nobody needs to know by how much it is too large
        memory = footprint(setup, device, setup.micro_batch_rows)
    kept = setup.config.run.keep + 1  # the next is written before the oldest goes
    return Needs(
        memory=memory,
        available=available,
        checkpoints=kept,
        disk=kept * (memory.weights + memory.optimizer),
        free=shutil.disk_usage(_existing(Path(setup.config.run.out or "."))).free,
    )


def _least(setup: Setup) -> Footprint:
    """Weights and gradients alone, which are known without a look at a step."""
    weights = sum(p.numel() * p.element_size() for p in setup.blueprint.parameters())
    return Footprint(program=0, weights=weights, gradients=weights, optimizer=0, activations=0, kept=0)


def refuse_what_does_not_fit(setup: Setup, needs: Needs) -> None:
    """Raise where a run would end for want of memory or room, with what would fit.

    Raises:
        OutOfMemoryError, StorageError: there is not enough.
    """
    wanted = _wanted(setup, needs.memory)
    if needs.available is not None and wanted > needs.available:
        raise OutOfMemoryError(
            f"this run needs {size(wanted)} more memory and {size(needs.available)} can be had: "
            f"{_what_fits(setup, needs)}"
        )
    if needs.disk > needs.free:
        raise StorageError(
            f"{needs.checkpoints} checkpoints of this run take {size(needs.disk)} and {size(needs.free)} are free at "
            f"{setup.config.run.out or '.'}: make room, give --out on another disk, or keep fewer (--keep 1)"
        )


def _wanted(setup: Setup, memory: Footprint) -> int:
    """Of all processes together, beside what those that run already have."""
    nproc = setup.config.run.nproc
    return nproc * memory.total - (nproc if inside_a_group() else 1) * memory.program


def _what_fits(setup: Setup, needs: Needs) -> str:
    context, rows = setup.config.model.context, setup.micro_batch_rows
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    while rows > 1 and needs.memory.activations:
        rows = rows // 2
        wanted = _wanted(setup, footprint(setup, device, rows))
        if needs.available is not None and wanted <= needs.available:
            return f"--set run.micro_batch_tokens={rows * context} takes {size(wanted)}, for the same steps"
    if setup.config.run.nproc > 1:
        return "fewer processes (--nproc) or a smaller size of the recipe would fit"
    return "take a smaller size of the recipe or a shorter --context"


def available_memory(device: torch.device) -> int | None:
    """Bytes that can be had now, within what a container or `ulimit -v` allows; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = []
    try:
        told = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in told if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        if limit != "max":
            found.append(max(0, int(limit) - int(used)))
    except OSError:
        pass  # another system, or no such limit
    return min([*found, *_left_by_ulimit()], default=None)


def _left_by_ulimit() -> list[int]:
    """Of the addresses that this process may use, as clusters' schedulers limit them."""
    if sys.platform == "win32":  # which has no such limits
        return []
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return []
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:
        return [limit]
    return [max(0, limit - pages * resource.getpagesize())]


def seconds_a_step(setup: Setup) -> float:
    """How long a step of this run takes here and now: one pass and one update of the real model, timed."""
    config = setup.config
    model = GPT(config.model)
    model.arithmetic, model.recomputes = config.run.arithmetic, config.run.activation_checkpointing
    objective, optimizer = Objective(model), make_optimizer(config.optimizer, setup.plan.on(model))
    rows = setup.micro_batch_rows
    pass_s = pass_seconds(lambda n_rows: _pass_s(objective, setup, n_rows), rows)
    optimizer.step()
    started = time.perf_counter()
    optimizer.step()
    update_s = time.perf_counter() - started
    return setup.sizes.full / config.run.nproc * pass_s / rows + update_s


def pass_seconds(timed: Callable[[int], float], rows: int, longest: float = _LONGEST_TIMED_S) -> float:
    """Seconds that a pass of `rows` sequences takes.

    Of one sequence, four, sixteen … as long as there is time, for a busy machine makes short passes longer than long
    ones; at least of two, unless one takes all of it. Where that is not all of them, a straight line goes on from the
    last two: a part of a pass takes the same for one sequence as for many.

    Args:
        timed: a pass of so many sequences, in seconds.
        rows: for which it is asked.
        longest: after so many seconds no more passes begin.
    """
    spent = timed(1)  # finds memory and kernels
    found = [(0, 0.0), (1, min(timed(1), timed(1)))]
    while (last := found[-1][0]) < rows:
        more = min(rows, 4 * last)
        if spent + _on_the_line(found, more) > longest:
            if len(found) > 2 or found[-1][1] > longest:
                break
            more = 2
        found.append((more, timed(more)))
        spent += found[-1][1]
    return _on_the_line(found, rows)


def _on_the_line(found: Sequence[tuple[int, float]], rows: int) -> float:
    """Through the last two points, but neither falling nor steeper than one through the start."""
    (before, before_s), (last, last_s) = found[-2:]
    slope = min(last_s / last, max(0.0, (last_s - before_s) / (last - before)))
    return last_s + slope * (rows - last)


def _pass_s(objective: nn.Module, setup: Setup, rows: int) -> float:
    tokens_BT = torch.zeros(rows, setup.config.model.context, dtype=torch.long)
    started = time.perf_counter()
    with weights_in(objective, setup.dtype):
        with products_in(objective, setup.dtype, tokens_BT.device):
            loss = objective(tokens_BT, tokens_BT.clone()).total
        loss.backward()
    return time.perf_counter() - started


def _existing(path: Path) -> Path:
    """The nearest folder that is there."""
    path = path.absolute()
    return next(one for one in (path, *path.parents) if one.is_dir())


def size(n_bytes: float) -> str:
    """1,520,000,000 as `1.52 GB`."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if n_bytes >= unit:
            return f"{n_bytes / unit:.3g} {name}"
    return f"{n_bytes / 1e3:.3g} kB"
