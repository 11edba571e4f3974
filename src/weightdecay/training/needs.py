"""What a run needs before it may begin: memory and room on the disk; of its time, see `pace`.

disk = (weights + optimizer state) · (checkpoints that are kept + the one that is written)
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from weightdecay.errors import OutOfMemoryError, StorageError
from weightdecay.training.distributed import inside_a_group
from weightdecay.training.footprint import Footprint, footprint
from weightdecay.training.setup import Setup


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
