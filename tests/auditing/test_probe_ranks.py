"""On two real processes a probe of shards says what one of the whole model says, on both, and leaves all as it was."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from examples.museum.exhibit import Loop
from examples.museum.language_model import LanguageModel, two_groups
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import weightdecay
from tests.auditing.loops.parts import seeded, train
from tests.auditing.witness import differences, facts_of
from tests.forking import ForkServer

Shard = Callable[[Any], nn.Module]
Make = Callable[[nn.Module], Any]


def fully(model: Any) -> nn.Module:
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    return model  # type: ignore[no-any-return]


def hybrid(model: Any) -> nn.Module:
    fully_shard(model, mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard")))
    return model  # type: ignore[no-any-return]


def columns(model: Any) -> nn.Module:
    mesh = init_device_mesh("cpu", (2,))
    whole = ColwiseParallel(output_layouts=Replicate())
    return parallelize_module(model, mesh, {f"blocks.{index}.up": whole for index in range(2)})


def adamw(model: nn.Module) -> Any:
    return torch.optim.AdamW(two_groups(model.parameters(), 0.1), lr=1e-3)


def hooked(model: nn.Module) -> Any:
    optimizer = adamw(model)

    @torch.no_grad()
    def decay(optimizer: Any, *_: Any) -> None:
        for p in optimizer.param_groups[0]["params"]:
            p.mul_(1 - 1e-4)

    optimizer.register_step_pre_hook(decay)
    return optimizer


def muon(model: nn.Module) -> Any:
    return weightdecay.Muon(weightdecay.plan(model, weight_decay=0.1), lr=1e-3)


def towards(target: Literal["initial", "one"], model: nn.Module) -> Any:
    plan = weightdecay.plan(model, weight_decay=0.1)
    return weightdecay.AdamW(plan, lr=1e-3, rule="towards_initial" if target == "initial" else "towards_one")


def coupled(model: nn.Module) -> Any:
    return torch.optim.Adam(two_groups(model.parameters(), 0.1), lr=1e-3)


def fault(shard: Shard, make: Make) -> str:
    """Empty if the probe of shards says what it says of the whole."""
    # 33 rows cannot be shared equally by two processes, 32 can.
    width = 32 if shard is columns else 33
    seen = []
    for how in (None, shard):
        model = seeded(lambda: LanguageModel(width=width))
        model = how(model) if how else model
        optimizer = make(model)
        train(model, optimizer)
        before = facts_of(Loop(model, optimizer, {}))
        seen.append(weightdecay.probe(model, optimizer))
        if changed := differences(before, facts_of(Loop(model, optimizer, {}))):
            return f"changed: {changed}"

    whole, shards = seen
    if shards.optimizers[0].seen_on == "twin":
        return shards.optimizers[0].why
    for one, other in zip(whole, shards, strict=True):
        alike = (one.name, one.shape, one.elements, one.coupled) == (
            other.name,
            other.shape,
            other.elements,
            other.coupled,
        )
        near = abs((one.realised or 0.0) - (other.realised or 0.0)) <= 0.02 * abs(one.realised or 0.0) + 1e-8
        if not (alike and near and abs(one.weight_norm - other.weight_norm) < 1e-4 * one.weight_norm):
            return f"{one}\n{other}"
    everybody: list[Any] = [None, None]
    dist.all_gather_object(everybody, [tensor.realised for tensor in shards])
    return "" if everybody[0] == everybody[1] else "the processes say different things"


def communicating() -> str:
    """Each process owns some tensors, and tells the others of them in its step."""
    model = nn.parallel.DistributedDataParallel(seeded())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=1e-3, weight_decay=0.1)
    train(model, optimizer)
    before = facts_of(Loop(model, optimizer, {}))
    seen = weightdecay.probe(model, optimizer)
    changed = differences(before, facts_of(Loop(model, optimizer, {})))
    return f"changed: {changed}" if changed else "" if "other processes" in seen.optimizers[0].why else str(seen)


def gradient_of_one_process() -> str:
    """The other one has none; what is collective must go on."""
    model: Any = fully(seeded(lambda: LanguageModel(width=33)))
    optimizer = adamw(model)
    train(model, optimizer)
    if dist.get_rank():
        model.norm.weight.grad = None
    seen = weightdecay.probe(model, optimizer)
    return "" if not seen["norm.weight"].has_gradient and seen["head.weight"].has_gradient else str(seen)


def nothing_on_one_process(
    rule: Literal["decoupled", "towards_initial", "towards_one"] = "decoupled",
    rounding: Literal["nearest", "stochastic", "kahan", "master"] = "nearest",
    dtype: torch.dtype = torch.float32,
) -> str:
    """A matrix of one row lies on the first process alone; the other one sees and does the same all the same."""
    said = []
    for is_sharded in (False, True):
        model = seeded(lambda: nn.Sequential(nn.Linear(256, 1, bias=False)).to(dtype))
        if is_sharded:
            fully_shard(model)
        optimizer = weightdecay.AdamW(model.parameters(), lr=1e-3, weight_decay=1.0, rule=rule, rounding=rounding)
        for _ in range(5):
            model(torch.ones(4, 256, dtype=dtype)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        (tensor,) = weightdecay.probe(model, optimizer)
        said.append(tensor.realised or 0.0)
    whole, shards = said
    near = 2e-5 if dtype is torch.float32 else 1e-4  # some 256 elements tell a tenth of a rounding
    return "" if abs(shards - whole) <= 0.02 * abs(whole) and abs(whole - 1e-3) < near else f"{whole}, {shards}"


CASES: dict[str, Callable[[], str]] = {
    "FSDP2": partial(fault, fully, adamw),
    "FSDP2, a hook that decays too": partial(fault, fully, hooked),
    "FSDP2, Muon, whose step is collective": partial(fault, fully, muon),
    "FSDP2, coupled": partial(fault, fully, coupled),
    "FSDP2, towards the first weights": partial(fault, fully, partial(towards, "initial")),
    "FSDP2, towards 1": partial(fault, fully, partial(towards, "one")),
    **{
        f"FSDP2, one row, {rule}": partial(nothing_on_one_process, rule)
        for rule in ("decoupled", "towards_initial", "towards_one")
    },
    **{
        f"FSDP2, one row, bfloat16, {rounding}": partial(nothing_on_one_process, "decoupled", rounding, torch.bfloat16)
        for rounding in ("stochastic", "kahan", "master")
    },
    "HSDP": partial(fault, hybrid, adamw),
    "tensor parallel": partial(fault, columns, adamw),
    "a gradient that one process has": gradient_of_one_process,
    "a step that speaks with other processes": communicating,
}


def work(rank: int, folder: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # nothing here listens to the outside
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {}
    for name in names:
        try:
            found[name] = CASES[name]()
        except Exception:
            found[name] = traceback.format_exc()
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    os._exit(0)  # gloo's threads can abort a process that tears them down


@pytest.mark.parametrize("names", [["FSDP2"], pytest.param(list(CASES), marks=pytest.mark.long)], ids=["FSDP2", "all"])
def test_a_probe_of_shards_is_one_of_the_whole(forks: ForkServer, tmp_path: Path, names: list[str]) -> None:
    forks.ranks(work, str(tmp_path), names)
    for rank in range(2):
        found = json.loads(Path(tmp_path, f"{rank}.json").read_text(encoding="utf-8"))
        assert found == dict.fromkeys(names, "")
