"""Where tensors stand: those that no optimizer has, those that are stepped twice, and those that are no model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from weightdecay.auditing.judging import Judgement
from weightdecay.naming import names_by_parameter


@dataclass(frozen=True)
class Placing:
    """The places of all tensors.

    Attributes:
        names: of the model's tensors, by the tensor; a tied one by its first.
        places: of each tensor in the optimizers, as (optimizer, group).
        strangers: how many tensors of the optimizers belong to no module of the model.
    """

    names: Mapping[Tensor, str]
    places: Mapping[Tensor, Sequence[tuple[int, int]]]

    @property
    def strangers(self) -> int:
        return sum(tensor not in self.names for tensor in self.places)

    def is_doubled(self, tensor: Tensor) -> bool:
        return len(self.places.get(tensor, ())) > 1

    def judgements(self) -> list[Judgement]:
        """What is missing, and what is doubled."""
        found = [
            Judgement("missing", "error", name, size_of(tensor), -1, -1)
            for tensor, name in self.names.items()
            if tensor.requires_grad and tensor not in self.places
        ]
        for tensor, places in self.places.items():
            if len(places) > 1:
                (first, group), *others = places
                about = "several optimizers" if any(other != first for other, _ in others) else "one optimizer"
                name = self.names.get(tensor) or place_name(group, 0)
                found.append(Judgement("doubled", "error", name, size_of(tensor), first, group, about=about))
        return found


def placing_of(model: nn.Module | None, optimizers: Sequence[Any]) -> Placing:
    """Where the tensors of a model and of its optimizers stand."""
    places: dict[Tensor, list[tuple[int, int]]] = {}
    for place, optimizer in enumerate(optimizers):
        for number, group in enumerate(optimizer.param_groups):
            for tensor in group["params"]:
                places.setdefault(tensor, []).append((place, number))
    return Placing({} if model is None else names_by_parameter(model), places)


def size_of(tensor: Tensor) -> int:
    """How many numbers a tensor has; a lazy one has none yet."""
    return 0 if isinstance(tensor, UninitializedParameter) else tensor.numel()


def place_name(group: int, index: int) -> str:
    """What a tensor is called that no module owns: how it is reached."""
    return f"param_groups[{group}]['params'][{index}]"
