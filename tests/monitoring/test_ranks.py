"""Two real processes have the rows that one has: replicated, and with shards of every tensor."""

from __future__ import annotations

import json
import os
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import weightdecay
from tests.forking import ForkServer
from weightdecay import Monitor

WIDTH = 33
"""Rows that two processes cannot share equally."""


def seeded() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1, bias=False), nn.Linear(1, WIDTH))


def rows_of(model: Any, share: slice) -> list[dict[str, Any]]:
    """A monitor's rows of some steps; each process has its share of every batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    with Monitor(model, optimizer, interval=2) as monitor:
        for step in range(6):
            batch = torch.randn(8, 16, generator=torch.Generator().manual_seed(step))
            model(batch[share]).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return monitor.rows


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # nothing here listens to the outside
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    try:
        share = slice(rank, None, 2)
        found["DDP"] = rows_of(nn.parallel.DistributedDataParallel(seeded()), share)
        sharded: Any = seeded()
        for layer in sharded:
            fully_shard(layer)
        found["FSDP2"] = rows_of(fully_shard(sharded), share)
    except Exception:
        found["fault"] = traceback.format_exc()
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    os._exit(0)  # gloo's threads can abort a process that tears them down


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == pytest.approx(other, rel=2e-4, abs=1e-8)
    return bool(one == other)


def test_two_processes_have_the_rows_that_one_has(forks: ForkServer, tmp_path: Path) -> None:
    forks.ranks(work, str(tmp_path))
    first, second = (json.loads(Path(tmp_path, f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2))
    assert first == second, "both say the same"
    model = seeded()
    alone = json.loads(json.dumps(rows_of(model, slice(None))))
    assert len(alone) == 3 * (5 + 2), "of five tensors and two roles"
    for how in ("DDP", "FSDP2"):
        assert len(first[how]) == len(alone), first.get("fault")
        for ours, theirs in zip(first[how], alone, strict=True):
            different = {key: (ours[key], value) for key, value in theirs.items() if not alike(ours[key], value)}
            assert not different, (how, ours["step"], ours.get("name"), different)


def test_what_shows_flat_pieces_is_refused() -> None:
    class FullyShardedDataParallel(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self._fsdp_wrapped_module = module

    model = FullyShardedDataParallel(seeded())
    with pytest.raises(weightdecay.OptimizerError, match="fully_shard"):
        Monitor(model, torch.optim.AdamW(model.parameters()))
