"""Rules, directions and roundings on sharded weights: FSDP2 over two processes against one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor, nn

import weightdecay
from tests.forking import ForkServer
from weightdecay.optim.adamw import AdamW
from weightdecay.optim.clipping import clipped_step
from weightdecay.optim.muon import Muon
from weightdecay.optim.state import load_state_by_name, settings_by_name, state_by_name

NANOCHAT: dict[str, Any] = {
    "adjust_lr_fn": "original", "orthogonalisation": "polar_express", "equal_rows": True, "neuron_beta2": 0.9,
}  # fmt: skip
PALM: dict[str, Any] = {"beta1": 0.9, "factored": False, "relative_step": False, "rule": "lr_squared"}
CASES: list[tuple[str, dict[str, Any]]] = [
    *(("AdamW", {"rule": rule}) for rule in ("decoupled", "fixed", "cautious", "towards_initial")),
    ("AdamW", {"rule": "cautious", "fused": True}),
    ("Lion", {"rule": "cautious"}),
    ("SGDW", {"rule": "towards_one", "momentum": 0.9}),
    ("Muon", {}),
    ("Muon", {"rule": "cautious", "nesterov": False, "fused": True}),
    ("Muon", NANOCHAT),
    ("Adafactor", {}),
    ("Adafactor", {"beta1": 0.9, "rule": "cautious"}),
    ("Adafactor", PALM),
    *((name, {"rounding": "master"}) for name in ("AdamW", "Lion", "SGDW", "Muon", "Adafactor")),
    ("AdamW", {"rounding": "kahan"}),
]


RESUMED: list[tuple[str, dict[str, Any]]] = [
    ("AdamW", {"rule": "fixed", "weight_decay": 0.01}),
    ("AdamW", {"rule": "towards_initial"}),
    *(("AdamW", {"rounding": rounding}) for rounding in ("stochastic", "kahan", "master")),
    ("Lion", {"rounding": "master"}),
    ("SGDW", {"momentum": 0.9}),
    ("Muon", {"rule": "fixed", "weight_decay": 0.01}),
    ("Muon", {"rounding": "master"}),
    ("Muon", NANOCHAT),
    ("Adafactor", {}),
    ("Adafactor", PALM | {"rounding": "master"}),
]


class Net(nn.Module):
    """Rows that two ranks cannot share equally, and a stack of experts, of which one rank gets two."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(8, 7)
        self.norm = nn.LayerNorm(7)
        self.down = nn.Linear(7, 4)
        self.experts = nn.Parameter(0.3 * torch.randn(3, 4, 4))

    def forward(self, x_BD: Tensor) -> Tensor:
        h_BD = self.down(self.norm(self.up(x_BD)).tanh())
        return torch.einsum("bi,eij->bj", h_BD, self.experts)


def _compare(name: str, settings: dict[str, Any], mesh: Any) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import distribute_tensor

    low = "rounding" in settings
    whole, sharded = (Net().bfloat16() if low else Net() for _ in range(2))
    fully_shard(sharded, mesh=mesh)
    pairs = [
        (net, getattr(weightdecay, name)(weightdecay.plan(net, weight_decay=0.01), lr=0.01, **settings))
        for net in (whole, sharded)
    ]
    for step in range(3):
        inputs = torch.randn(6, 8, generator=torch.Generator().manual_seed(step)).to(whole.norm.weight.dtype)
        for net, optimizer in pairs:
            optimizer.zero_grad()
            net(inputs).square().mean().backward()
        if low:  # in bfloat16 the reduced gradients differ by roundings, and the weights would by more
            for p, q in zip(whole.parameters(), sharded.parameters(), strict=True):
                alike: Any = (p.grad, q.grad)
                alike[1].to_local().copy_(distribute_tensor(alike[0], mesh, alike[1].placements).to_local())
        norms = [clipped_step(optimizer, 0.5).grad_norm for _, optimizer in pairs]
        assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    tolerance: dict[str, Any] = {"rtol": 2**-8, "atol": 1e-3} if low else {"rtol": 1e-5, "atol": 1e-6}
    for p, q in zip(whole.parameters(), sharded.parameters(), strict=True):
        assert torch.allclose(q.full_tensor().detach(), p.detach(), **tolerance), (name, settings)  # type: ignore[attr-defined]


def _save_and_resume(name: str, settings: dict[str, Any], mesh: Any, folder: str) -> None:
    """Through torch's distributed checkpoint, and by name in another order: both go on as if nothing had stopped."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load
    from torch.distributed.checkpoint.state_dict_saver import save
    from torch.distributed.fsdp import fully_shard

    def sharded(*, backwards: bool = False) -> tuple[Net, Any]:
        net = Net().bfloat16() if "rounding" in settings else Net()
        fully_shard(net, mesh=mesh)
        named = list(net.named_parameters())
        return net, getattr(weightdecay, name)(named[::-1] if backwards else named, lr=0.01, **settings)

    def train(net: Net, optimizer: Any, first: int) -> None:
        for step in range(first, first + 2):
            inputs = torch.randn(6, 8, generator=torch.Generator().manual_seed(step)).to(net.norm.weight.dtype)
            optimizer.zero_grad()
            net(inputs).square().mean().backward()
            optimizer.step()

    through, optimizer = sharded()
    train(through, optimizer, 0)
    middle = {key: value.clone() for key, value in through.state_dict().items()}
    tensors = {key: value.clone() for key, value in state_by_name(optimizer, through).items()}
    kept = settings_by_name(optimizer, through)
    assert not any(hasattr(value, "device_mesh") for value in tensors.values())
    save({"optimizer": get_optimizer_state_dict(through, optimizer)}, checkpoint_id=folder)
    train(through, optimizer, 2)
    for way in ("checkpoint", "name"):
        # the noise of stochastic rounding goes by a tensor's place
        net, again = sharded(backwards=way == "name" and settings.get("rounding") != "stochastic")
        if way == "checkpoint":
            before = [p.to_local().clone() for p in net.parameters()]  # type: ignore[attr-defined]
            state = {"optimizer": get_optimizer_state_dict(net, again)}
            assert all(torch.equal(w, p.to_local()) for w, p in zip(before, net.parameters(), strict=True))  # type: ignore[attr-defined]
            load(state, checkpoint_id=folder)
            set_optimizer_state_dict(net, again, state["optimizer"])
        else:
            load_state_by_name(again, tensors, kept, names=net)
        net.load_state_dict(middle)
        train(net, again, 2)
        for p, q in zip(net.parameters(), through.parameters(), strict=True):
            assert torch.equal(p.to_local(), q.to_local()), (name, settings, way)  # type: ignore[attr-defined]


def _noise_of_parts(mesh: Any, rank: int) -> None:
    """Shards are rounded by noise of their own, what is replicated by the same everywhere."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    for placement, alike in ((Shard(0), False), (Replicate(), True)):
        p = nn.Parameter(distribute_tensor(torch.ones(64, 64, dtype=torch.bfloat16), mesh, [placement]))
        p.grad = torch.zeros_like(p)
        AdamW([p], lr=1e-3, weight_decay=1.0, rounding="stochastic").step()
        local: Tensor = p.to_local().detach()  # type: ignore[attr-defined]
        others = [torch.empty_like(local) for _ in range(2)]
        torch.distributed.all_gather(others, local)
        assert 0 < int((local != 1).sum()) < local.numel()
        assert torch.equal(others[1 - rank], local) == alike


def _stacked_matrices(mesh: Any) -> None:
    """Two matrices one above the other, and three experts of them, cut between ranks wherever they may be."""
    from torch.distributed.tensor import Shard, distribute_tensor

    for shape, axis in (((6, 5), 0), ((6, 5), 1), ((3, 4, 5), 0), ((3, 4, 5), 1)):
        torch.manual_seed(0)
        whole = nn.Parameter(torch.randn(shape))
        sharded = nn.Parameter(distribute_tensor(whole.detach().clone(), mesh, [Shard(axis)]))
        optimizers = [Muon([{"params": [p], "stacked": 2}], lr=0.02, **NANOCHAT) for p in (whole, sharded)]
        for _ in range(3):
            whole.grad = torch.randn(shape)
            sharded.grad = distribute_tensor(whole.grad.clone(), mesh, [Shard(axis)])
            for optimizer in optimizers:
                optimizer.step()
        torch.testing.assert_close(sharded.full_tensor().detach(), whole.detach())  # type: ignore[attr-defined]


def _one_rank(rank: int, folder: str, resuming: bool) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2,))
    if resuming:
        for number, (name, settings) in enumerate(RESUMED):
            _save_and_resume(name, settings, mesh, f"{folder}/checkpoint-{number}")
    else:
        for name, settings in CASES:
            _compare(name, settings, mesh)
        _noise_of_parts(mesh, rank)
        _stacked_matrices(mesh)
    Path(folder, f"done-{rank}").touch()
    os._exit(0)  # gloo threads can abort a process that tears them down


def test_a_sharded_model_decays_as_a_whole_one_does(forks: ForkServer, tmp_path: Path) -> None:
    forks.ranks(_one_rank, str(tmp_path), False)
    assert {path.name for path in tmp_path.glob("done-*")} == {"done-0", "done-1"}


@pytest.mark.long
def test_sharded_optimizers_resume_bit_for_bit(forks: ForkServer, tmp_path: Path) -> None:
    forks.ranks(_one_rank, str(tmp_path), True)
    assert {path.name for path in tmp_path.glob("done-*")} == {"done-0", "done-1"}
