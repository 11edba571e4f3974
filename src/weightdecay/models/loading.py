"""Weights by name into a model: all of them or none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from weightdecay.errors import DamagedError
from weightdecay.models.decoder import GPT


def load_weights(model: GPT, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Copy weights by name; all of them or none.

    Raises:
        DamagedError: missing or extra names, other shapes or dtypes; every one is listed.
    """
    own = model.tensors()
    faults = [f"{where}: no tensor '{name}'" for name in sorted(own.keys() - tensors.keys())]
    faults += [f"{where}: tensor '{name}' is not this model's" for name in sorted(tensors.keys() - own.keys())]
    for name in sorted(own.keys() & tensors.keys()):
        ours, theirs = own[name], tensors[name]
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            faults.append(
                f"{where}: tensor '{name}' is {theirs.dtype} {list(theirs.shape)}, "
                f"this model's {ours.dtype} {list(ours.shape)}"
            )
    if faults:
        raise DamagedError("\n".join(faults))
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
