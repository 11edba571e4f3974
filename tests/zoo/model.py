"""A real model of another package, a batch for it, and which of its tensors are to decay, read from its source.

Ordinary modules of torch need no label: `of_torch` knows what their parameters are. Every other tensor is matched by a
pattern with a line of why. Nothing here looks at a plan: these labels are what plans are measured against.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any, Literal

import torch
from torch import nn

Label = Literal["decays", "exempt", "open"]
Why = Mapping[str, str]
_STRONGER: tuple[Label, ...] = ("decays", "open", "exempt")


@dataclass(frozen=True, eq=False)
class Model:
    """A small instance of a public model.

    Attributes:
        package: its distribution on PyPI.
        title: what it is called there, with the settings that matter.
        make: builds it, offline and in under two seconds.
        batch: what its forward takes, as `weightdecay.plan(batch=...)` has it.
        decays, exempt: patterns, searched in a tensor's name, and why it is so; the longest that is found decides.
        open: likewise, where the field has two opinions: both are given.
    """

    package: str
    title: str
    make: Callable[[], nn.Module]
    batch: Callable[[], Any]
    decays: Why = field(default_factory=dict)
    exempt: Why = field(default_factory=dict)
    open: Why = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.package}: {self.title}"

    @property
    def installed(self) -> bool:
        try:
            distribution(self.package)
        except PackageNotFoundError:
            return False
        return True

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make()

    def labels(self, model: nn.Module) -> dict[torch.Tensor, Label]:
        """The label of every tensor; of a tied one's labels, exempt comes before open, and open before decays.

        Raises:
            LookupError: tensors that nothing labels, or patterns that match none.
        """
        found: dict[torch.Tensor, Label] = {}
        used: set[str] = set()
        missing = []
        for name, owner, attribute, parameter in _registered(model):
            label = self._given(name, used) or of_torch(owner, attribute)
            if not parameter.requires_grad:
                label = "exempt"
            if label is None:
                missing.append(f"{name} {list(parameter.shape)} of {type(owner).__name__}")
                continue
            found[parameter] = max(label, found.get(parameter, label), key=_STRONGER.index)

        idle = {*self.decays, *self.exempt, *self.open} - used
        if missing or idle:
            raise LookupError(f"{self.name}: without a label: {missing}; patterns that match nothing: {sorted(idle)}")
        return found

    def _given(self, name: str, used: set[str]) -> Label | None:
        of_kind: list[tuple[Label, Why]] = [("decays", self.decays), ("exempt", self.exempt), ("open", self.open)]
        matching = [
            (len(pattern), pattern, kind) for kind, why in of_kind for pattern in why if re.search(pattern, name)
        ]
        if not matching:
            return None
        used.update(pattern for _, pattern, _ in matching)
        return max(matching)[2]


def _registered(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """Every name of every parameter, with the module that owns it; tied ones come again."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                yield f"{prefix}.{attribute}" if prefix else attribute, module, attribute, parameter


_MATRICES = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.Embedding, nn.EmbeddingBag)
_GAINS = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._NormBase,
    nn.PReLU,
)


def of_torch(owner: nn.Module, attribute: str) -> Label | None:
    """What a parameter of torch's own modules, or of a class made from one, is."""
    if isinstance(owner, _MATRICES):
        return {"weight": "decays", "bias": "exempt"}.get(attribute)  # type: ignore[return-value]
    if isinstance(owner, _GAINS):
        return "exempt" if attribute in ("weight", "bias") else None
    if isinstance(owner, nn.RNNBase | nn.RNNCellBase):
        return "decays" if attribute.startswith("weight") else "exempt"
    if isinstance(owner, nn.MultiheadAttention):
        return "decays" if attribute.endswith("proj_weight") else "exempt"
    return None


def of(module: str) -> Any:
    """A module of a package that may not be there, imported on use; as it has no types here, it is Any."""
    _stand_in_for_torchvisions_operators()
    return importlib.import_module(module)


def _stand_in_for_torchvisions_operators() -> None:
    """PyPI's torchvision is compiled for CUDA's torch; beside a CPU build its Python imports only if these exist.

    Nothing here runs them.
    """
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
