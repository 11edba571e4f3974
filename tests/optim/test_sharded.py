"""Rules on sharded weights: FSDP2 over two processes against one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import nn
from torch.multiprocessing.spawn import spawn

import weightdecay
from weightdecay.optim.clipping import clipped_step

CASES: list[tuple[str, dict[str, Any]]] = [
    *(("AdamW", {"rule": rule}) for rule in ("decoupled", "fixed", "cautious", "towards_initial")),
    ("AdamW", {"rule": "cautious", "fused": True}),
    ("Lion", {"rule": "cautious"}),
    ("SGDW", {"rule": "towards_one", "momentum": 0.9}),
]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4))


def _one_rank(rank: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for name, settings in CASES:
        whole, sharded = network(), network()
        fully_shard(sharded, mesh=mesh)
        pairs = []
        for net in (whole, sharded):
            plan = weightdecay.plan(net, weight_decay=0.01)
            pairs.append((net, getattr(weightdecay, name)(plan, lr=0.01, **settings)))
        for step in range(3):
            inputs = torch.randn(6, 8, generator=torch.Generator().manual_seed(step))
            norms = []
            for net, optimizer in pairs:
                optimizer.zero_grad()
                net(inputs).square().mean().backward()
                norms.append(clipped_step(optimizer, 0.5).grad_norm)
            assert norms[0] == pytest.approx(norms[1], rel=1e-5)
        for p, q in zip(sharded.parameters(), whole.parameters(), strict=True):
            assert torch.allclose(p.full_tensor().detach(), q.detach(), rtol=1e-5, atol=1e-6), (name, settings)  # type: ignore[attr-defined]
    Path(folder, f"done-{rank}").touch()
    os._exit(0)  # gloo threads can abort a process that tears them down


def test_a_sharded_model_decays_as_a_whole_one_does(tmp_path: Path) -> None:
    spawn(_one_rank, args=(str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    assert {path.name for path in tmp_path.glob("done-*")} == {"done-0", "done-1"}
