"""Everything of a loop that a look must leave as it was: values, addresses, flags, hooks, generators, classes."""

from __future__ import annotations

import random
from typing import Any

import numpy
import torch
from examples.museum.exhibit import Loop
from torch import Tensor
from torch.distributed.tensor import DTensor

Facts = dict[str, Any]


def facts_of(loop: Loop) -> Facts:
    """A flat mapping of names to what can be compared with `==`."""
    facts: Facts = {
        "torch's generator": torch.get_rng_state().numpy().tobytes(),
        "numpy's generator": str(numpy.random.get_state()),
        "Python's generator": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
    }
    for name, p in loop.model.named_parameters(remove_duplicate=False):
        facts |= tensor(f"parameter {name}", p)
        facts |= tensor(f"gradient of {name}", p.grad)
        facts[f"flags of {name}"] = (p.requires_grad, p.is_leaf, sorted(vars(p)))
        facts[f"hooks of {name}"] = (len(p._backward_hooks or {}), len(p._post_accumulate_grad_hooks or {}))
    for name, buffer in loop.model.named_buffers(remove_duplicate=False):
        facts |= tensor(f"buffer {name}", buffer)
    for name, module in loop.model.named_modules():
        hooks = {key: list(value) for key, value in vars(module).items() if key.endswith("_hooks")}
        facts[f"module {name}"] = (id(module), module.training, sorted(vars(module)), str(hooks))
    for index, optimizer in enumerate(loop.optimizers):
        facts |= optimizer_facts(f"optimizer {index}", optimizer)
    return facts


def optimizer_facts(name: str, optimizer: Any) -> Facts:
    attributes = attributes_of(optimizer)
    facts: Facts = {f"{name} attributes": [(key, id(value)) for key, value in sorted(attributes.items())]}
    for key, value in attributes.items():
        if not isinstance(value, torch.nn.Module) and key not in ("param_groups", "state"):
            facts |= anything(f"{name}.{key}", value)
    for kind in type(optimizer).__mro__:
        facts[f"{name}: class {kind.__qualname__}"] = [(key, id(value)) for key, value in sorted(vars(kind).items())]
    for index, group in enumerate(optimizer.param_groups):
        place = f"{name} group {index}"
        facts[place] = (id(group), list(group), id(group["params"]), [id(p) for p in group["params"]])
        for key, value in group.items():
            if key != "params":
                facts |= anything(f"{place} {key}", value)
    for p, state in getattr(optimizer, "state", {}).items():
        facts |= anything(f"{name} state of {id(p)}", state)
    for key, value in attributes.items():
        if key.endswith("_hooks"):
            facts[f"{name} {key}"] = [id(hook) for hook in value.values()]
    return facts


def attributes_of(optimizer: Any) -> dict[str, Any]:
    """Of classes with `__slots__`, too."""
    slots = [slot for kind in type(optimizer).__mro__ for slot in getattr(kind, "__slots__", ())]
    return {**{slot: getattr(optimizer, slot) for slot in slots}, **getattr(optimizer, "__dict__", {})}


def anything(name: str, value: Any) -> Facts:
    if isinstance(value, Tensor):
        return tensor(name, value)
    if isinstance(value, dict):
        facts: Facts = {f"{name} keys": (id(value), [str(key) for key in value])}
        for key, inner in value.items():
            facts |= anything(f"{name} {key}", inner)
        return facts
    if isinstance(value, list | tuple):
        inside = [anything(f"{name}[{index}]", inner) for index, inner in enumerate(value)]
        return {
            f"{name} items": (id(value), len(value)),
            **{key: fact for facts in inside for key, fact in facts.items()},
        }
    return {name: value if isinstance(value, int | float | str | bool) else id(value)}


def tensor(name: str, value: Tensor | None) -> Facts:
    if value is None or value.is_sparse:
        return {name: id(value)}
    kept: Any = value.detach()
    values: Tensor = kept.to_local() if isinstance(value, DTensor) else kept
    bits = values.contiguous().reshape(-1).view(torch.uint8) if values.numel() else values
    return {
        name: (id(value), value.dtype, tuple(value.shape), values.data_ptr(), bits.cpu().numpy().tobytes()),
        f"{name} version": value._version,
    }


def differences(before: Facts, after: Facts) -> list[str]:
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
