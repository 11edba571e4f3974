"""What a parameter is called, whatever wraps its model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from weightdecay.naming import names_by_parameter, parameters_by_name, without_wrappers

Wrap = Callable[[Any], Any]


class Confusing(nn.Module):
    """A submodule really called `module` beside a tensor of the same name as its own, and a tied one."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(4, 4)
        self.weight = nn.Parameter(torch.ones(4))
        self.model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.head = nn.Linear(4, 4, bias=False)
        self.head.weight = self.module.weight

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.model(self.module(x) * self.weight))


NAMES = [
    "weight", "module.weight", "module.bias", "model.0.weight", "model.0.bias", "model.1.weight", "model.1.bias",
]  # fmt: skip


@pytest.fixture(scope="module")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    meeting = tmp_path_factory.mktemp("group") / "meeting"  # a file, for a port may be another's
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def inside(wrap: Wrap) -> Wrap:
    """Wrap a part rather than the whole."""

    def wrapped(model: Any) -> Any:
        model.model[0] = wrap(model.model[0])
        return model

    return wrapped


ON_CPU: dict[str, Any] = {"device_id": torch.device("cpu"), "sharding_strategy": ShardingStrategy.NO_SHARD}
ALONE: dict[str, Wrap] = {
    "nothing": lambda model: model,
    "compile": lambda model: torch.compile(model),
    "an average": lambda model: AveragedModel(model),
    "checkpointing": lambda model: checkpoint_wrapper(model),
    "a compiled part": inside(lambda model: torch.compile(model)),
    "a checkpointed part": inside(checkpoint_wrapper),
    "compile twice": lambda model: torch.compile(inside(torch.compile)(model)),
}
TOGETHER: dict[str, Wrap] = {
    "DDP": lambda model: DistributedDataParallel(model),
    "compiled DDP": lambda model: torch.compile(DistributedDataParallel(model)),
    "FSDP2": lambda model: fully_shard(model),
    "FSDP1": lambda model: FullyShardedDataParallel(model, use_orig_params=True, **ON_CPU),
}


@pytest.mark.parametrize("wrapper", ALONE)
def test_a_wrapped_model_has_the_names_of_the_bare_one(wrapper: str) -> None:
    wrapped = ALONE[wrapper](Confusing())
    assert list(names_by_parameter(wrapped).values()) == NAMES
    assert set(names_by_parameter(wrapped)) == set(wrapped.parameters())


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("wrapper", TOGETHER)
def test_a_distributed_model_has_the_names_of_the_bare_one(wrapper: str) -> None:
    wrapped = TOGETHER[wrapper](Confusing())
    assert list(names_by_parameter(wrapped).values()) == NAMES
    assert set(names_by_parameter(wrapped)) == set(wrapped.parameters())


@pytest.mark.usefixtures("process_group")
def test_the_flat_parameter_of_fsdp_is_not_taken_for_a_tensor_that_lies_in_it() -> None:
    wrapped = FullyShardedDataParallel(nn.Linear(4, 4), use_orig_params=False, **ON_CPU)
    assert list(names_by_parameter(wrapped).values()) == ["_flat_param"]
    assert list(parameters_by_name(wrapped)) == ["weight", "bias"]


def test_a_tied_tensor_is_called_by_its_first_name_and_found_by_each() -> None:
    model = Confusing()
    assert names_by_parameter(model)[model.head.weight] == "module.weight"
    assert parameters_by_name(model)["head.weight"] is parameters_by_name(model)["module.weight"]


def test_a_path_loses_what_only_wrappers_call_so_and_keeps_what_authors_may() -> None:
    assert without_wrappers("_orig_mod.module.0._fsdp_wrapped_module.weight") == "module.0.weight"
    assert without_wrappers("module.my_orig_mod.weight") == "module.my_orig_mod.weight"
