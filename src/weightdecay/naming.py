"""What a model's parameters are called, whatever wraps the model: the one rule of plans, state, settings and migration.

Wrappers rename parameters (`module.`, `_orig_mod.`, `_fsdp_wrapped_module.` …), flatten them (FSDP1) or change the
class of their owner (FSDP2). All of that is undone here, by the class of each module on the way and never by cutting
strings, so that a submodule which is really called `module` keeps its name.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

# (class that wraps, attribute that holds what it wraps); found by name, since importing each costs time or an extra
_WRAPPED: dict[str, str] = {
    "OptimizedModule": "_orig_mod",
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "AveragedModel": "module",
    "DeepSpeedEngine": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "OffloadWrapper": "_checkpoint_wrapped_module",
    "_FabricModule": "_forward_module",
}
# The same, of those that are part of the model: they have tensors or arguments of their own, and only names pass them.
_ADAPTED: dict[str, str] = {"PeftModel": "base_model", "BaseTuner": "model", "BaseTunerLayer": "base_layer"}
# Attributes that no author of a model would choose: they show a wrapper even where only a path is left of it.
_UNMISTAKABLE = frozenset(name for name in _WRAPPED.values() if name.startswith("_"))
_CLASS_MIXED_IN = ("FSDPModule", "DDP")  # FSDP2 and composable DDP give a module a class of their own


class Place(NamedTuple):
    """A module at one of its places in a model.

    Attributes:
        module: it.
        prefix: what the names of its tensors begin with.
        around: the classes that the authors of it and of the modules around it wrote, outermost first, without the
            root's and without wrappers.
        wrapped: what it wraps, if it is a wrapper.
    """

    module: nn.Module
    prefix: str
    around: tuple[type, ...]
    wrapped: nn.Module | None


@dataclass(frozen=True)
class Registered:
    """A tensor at one of the places where it is registered.

    Attributes:
        name: what it is called there.
        attribute: the name's last part.
        parameter: the tensor that stands there now; under FSDP1 the flat one that it lies in.
        parameter_name: what that is called; another name where it is flat, for it holds more than this tensor.
        shape: its own, whole.
        owner: the class, as its author wrote it, of the module that it belongs to.
        around: such classes of the modules around it, as a `Place` has them.
        key: equal where the tensor is the same.
    """

    name: str
    attribute: str
    parameter: Tensor
    parameter_name: str
    shape: tuple[int, ...]
    owner: type
    around: tuple[type, ...]
    key: object


def places(model: nn.Module) -> list[Place]:
    """All modules at all their places, in the order of `named_modules`."""
    found = []
    waiting: list[tuple[nn.Module, str, tuple[type, ...], bool]] = [(model, "", (), True)]
    while waiting:
        module, prefix, around, is_root = waiting.pop()
        cls: type = type(module)
        holder = _holder(cls)
        wrapped = module._modules.get(holder) if holder else None
        if not is_root and wrapped is None:
            around = (*around, _bare(cls))
        found.append(Place(module, prefix, around, wrapped))

        below: list[tuple[nn.Module, str, tuple[type, ...], bool]] = []
        for name, child in module._modules.items():
            if child is not None:
                is_wrapped = child is wrapped
                below.append((child, prefix if is_wrapped else f"{prefix}{name}.", around, is_root and is_wrapped))
        waiting += reversed(below)
    return found


def registered(model: nn.Module) -> list[Registered]:
    """All parameters at all their places, in the order of `named_parameters`."""
    whole_shapes = _whole_shapes(model)
    found = []
    for module, prefix, around, _ in places(model):
        cls: type = type(module)
        for attribute, parameter in module._parameters.items():
            if parameter is None:
                continue
            here = f"{prefix}{attribute}"
            if hasattr(parameter, "_param_infos") and hasattr(parameter, "_shapes"):  # one that FSDP1 has flattened
                for owner, path, original, shape in _unpacked(parameter):
                    name = f"{prefix}{path}.{original}" if path else f"{prefix}{original}"
                    key = id(parameter), name
                    found.append(Registered(name, original, parameter, here, shape, bare_class(owner), around, key))
                continue
            lazy = isinstance(parameter, nn.parameter.UninitializedParameter)
            shape = () if lazy else whole_shapes.get((id(module), attribute), tuple(parameter.shape))
            found.append(Registered(here, attribute, parameter, here, shape, _bare(cls), around, id(parameter)))
    return found


def parameters_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Name, those of tied tensors included, to the tensor that stands there now (FSDP1: the flat one it lies in)."""
    return {entry.name: entry.parameter for entry in registered(model)}


def names_by_parameter(model: nn.Module) -> dict[Tensor, str]:
    """The tensors that an optimizer can hold, each with its name, the first one where it is tied."""
    names: dict[Tensor, str] = {}
    for entry in registered(model):
        names.setdefault(entry.parameter, entry.parameter_name)
    return names


def without_wrappers(path: str) -> str:
    """A path of attributes without those that only a wrapper makes.

    For names of which no model is at hand that could say what was a wrapper; `module`, which authors use as well,
    stays.
    """
    return ".".join(part for part in path.split(".") if part not in _UNMISTAKABLE)


def inner(module: nn.Module) -> nn.Module | None:
    """What a wrapper wraps, or None if `module` is no wrapper."""
    cls: type = type(module)
    holder = _holder(cls)
    return module._modules.get(holder) if holder else None


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside all that only wrap it, which is what runs; adapters run as they are, only names pass them."""
    while (wrapped := inner(module)) is not None:
        cls: type = type(module)
        if _is_adapted(cls):
            break
        module = wrapped
    return module


def bare_class(module: nn.Module) -> type:
    """The class that the module's author wrote, whatever was mixed into it since."""
    cls: type = type(module)
    return _bare(cls)


@functools.lru_cache(maxsize=4096)
def _holder(cls: type) -> str | None:
    """The attribute in which a class of wrappers or adapters holds what it wraps."""
    holders = {**_WRAPPED, **_ADAPTED}
    return next((holders[base.__name__] for base in cls.__mro__ if base.__name__ in holders), None)


@functools.lru_cache(maxsize=4096)
def _is_adapted(cls: type) -> bool:
    return any(base.__name__ in _ADAPTED for base in cls.__mro__)


@functools.lru_cache(maxsize=4096)
def _bare(cls: type) -> type:
    def is_mixed(candidate: type) -> bool:
        return any(
            base.__name__ in _CLASS_MIXED_IN and base.__module__.startswith("torch.") for base in candidate.__mro__
        )

    return next((candidate for candidate in cls.__mro__ if not is_mixed(candidate)), cls)


# --- FSDP1; `_param_infos`, `_shapes` and `_handle` are torch's private names, and there are no public ones


def _unpacked(flat: Any) -> Iterator[tuple[nn.Module, str, str, tuple[int, ...]]]:
    """The tensors that were packed into one flat parameter: (owner, path to it, attribute, shape)."""
    for info, shape in zip(flat._param_infos, flat._shapes, strict=True):
        yield info.module, without_wrappers(info.module_name), info.param_name, tuple(shape)


def _whole_shapes(model: nn.Module) -> dict[tuple[int, str], tuple[int, ...]]:
    """With `use_orig_params` the model shows flat local pieces; the whole shapes lie in the wrappers' handles."""
    shapes: dict[tuple[int, str], tuple[int, ...]] = {}
    for module in model.modules():
        flat = getattr(getattr(module, "_handle", None), "flat_param", None)
        if flat is not None and hasattr(flat, "_param_infos"):
            for owner, _, attribute, shape in _unpacked(flat):
                shapes[id(owner), attribute] = shape
    return shapes
