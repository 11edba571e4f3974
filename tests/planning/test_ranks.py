"""The plan on two real processes: sharded, replicated and flattened models, and ranks that disagree."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import weightdecay
from tests.forking import ForkServer
from tests.planning.test_plan import RootMeanSquare
from tests.planning.test_wrapped import Stack
from weightdecay.errors import CheckFailedError, PlanError

RANKS = 2


def fully_sharded(model: Stack) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for block in model.blocks.values():
        fully_shard(block)
    fully_shard(model)
    return model


def replicated(model: Stack) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def tensor_parallel(model: Stack) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (RANKS,))
    return parallelize_module(model, mesh, {"blocks.0.module": ColwiseParallel(), "head": ColwiseParallel()})


def flattened(model: Stack) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))


def flattened_without_names(model: Stack) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(model, use_orig_params=False, device_id=torch.device("cpu"))


def flattened_purely(model: Any) -> nn.Module:
    """Each flat parameter holds tensors that decay alike."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    for block in model.blocks.values():
        block.module.bias = None
        block.temperature = None
    policy = ModuleWrapPolicy({nn.Linear, nn.Embedding, RootMeanSquare})
    return FullyShardedDataParallel(
        model, auto_wrap_policy=policy, use_orig_params=False, device_id=torch.device("cpu")
    )


def same_plan(wrap: Callable[[Stack], nn.Module]) -> str:
    """Empty if the wrapped model has the bare one's plan, and its optimizer carries it."""
    torch.manual_seed(0)
    bare = weightdecay.plan(Stack())
    model = wrap(Stack())
    own = weightdecay.plan(model)
    for found in (own, bare.on(model)):
        found.check_ranks()
        wrong = [
            str((ours.name, ours.roles, theirs.roles))
            for ours, theirs in zip(bare, found, strict=True)
            if (ours.name, ours.shape, ours.roles, ours.multiplier)
            != (theirs.name, theirs.shape, theirs.roles, theirs.multiplier)
        ]
        if wrong:
            return "\n".join(wrong)
        found.check(torch.optim.AdamW(found.param_groups(lr=1e-3))).raise_if_wrong()
    return ""


def torn(_: object) -> str:
    torch.manual_seed(0)
    bare = weightdecay.plan(Stack())
    try:
        bare.on(flattened_without_names(Stack())).param_groups(lr=1e-3)
    except PlanError as error:
        return "" if "use_orig_params=True" in str(error) else str(error)
    return "flat parameters of mixed tensors were not refused"


def pure(_: object) -> str:
    model = flattened_purely(Stack())
    groups = weightdecay.plan(model).param_groups(lr=1e-3)
    flat = {id(parameter) for parameter in model.parameters()}
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    return "" if sorted(grouped) == sorted(flat) and len(groups) == 2 else f"{len(groups)} groups of {len(grouped)}"


def disagreeing(_: object) -> str:
    policy: Any = "default" if dist.get_rank() == 0 else "no-embeddings"
    try:
        weightdecay.plan(Stack(), policy=policy).check_ranks()
    except CheckFailedError as error:
        return "" if "ranks 1 plan otherwise than rank 0: embed.weight" in str(error) else str(error)
    return "ranks that disagree were not found"


CASES: dict[str, tuple[Callable[[Any], str], Any]] = {
    "FSDP2": (same_plan, fully_sharded),
    "DDP": (same_plan, replicated),
    "DTensor": (same_plan, tensor_parallel),
    "FSDP1 with use_orig_params": (same_plan, flattened),
    "FSDP1 with mixed flat parameters": (torn, None),
    "FSDP1 with pure flat parameters": (pure, None),
    "ranks that disagree": (disagreeing, None),
}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # nothing here listens to the outside
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    found = {}
    for name, (case, argument) in CASES.items():
        try:
            found[name] = case(argument)
        except Exception:
            found[name] = traceback.format_exc()
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)  # gloo's threads can abort a process that tears them down


@pytest.fixture(scope="module")
def outcomes(forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    folder = tmp_path_factory.mktemp("ranks")
    forks.ranks(work, str(folder), count=RANKS)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_hold_the_bare_models_plan_or_say_why_not(name: str, outcomes: list[dict[str, str]]) -> None:
    assert [found[name] for found in outcomes] == ["", ""]
