"""Every tensor of a model once, under the name it has in the bare model, with what can be known without running it.

Wrappers rename parameters (`module.`, `_orig_mod.`, `_fsdp_wrapped_module.` …), flatten them (FSDP1) or change the
class of their owner (FSDP2). All of that is undone here, by the class of each module on the way and never by cutting
strings, so that a submodule which is really called `module` keeps its name.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from weightdecay.errors import PlanError

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
    "PeftModel": "base_model",
    "BaseTuner": "model",
    "BaseTunerLayer": "base_layer",
}
_UNMISTAKABLE = frozenset(name for name in _WRAPPED.values() if name.startswith("_"))
_CLASS_MIXED_IN = ("FSDPModule", "DDP")  # FSDP2 and composable DDP give a module a class of their own


@dataclass(frozen=True)
class Site:
    """One place at which a tensor is registered.

    `bases` are the torch.nn classes the owner inherits from, nearest first; `within` those of all modules around it,
    the root excepted (transformers' rule looks at them).
    """

    name: str
    attribute: str
    owner: str
    bases: tuple[str, ...] = ()
    within: tuple[str, ...] = ()


@dataclass(frozen=True)
class TensorFacts:
    """What is known of one tensor before anyone judges it; the first site names it, the others are aliases.

    `marked` says how the model's author exempts it, if so; `listed` whether the root's own `no_weight_decay()` does.
    `uses` are what a traced forward did with it, written as in `usage.py`; None where nothing was traced.
    """

    shape: tuple[int, ...]
    sites: tuple[Site, ...]
    trainable: bool = True
    marked: str = ""
    listed: bool = False
    dtype: str = "float32"
    uses: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        return self.sites[0].name

    @property
    def aliases(self) -> tuple[str, ...]:
        return tuple(site.name for site in self.sites[1:])


@dataclass(frozen=True)
class _Registered:
    """A tensor at one of its sites; `key` is equal where the tensor is the same."""

    key: object
    parameter: torch.Tensor
    shape: tuple[int, ...]
    site: Site
    owner: nn.Module


@functools.lru_cache(maxsize=4096)
def _holder(cls: type) -> str | None:
    """The attribute in which a class of wrappers holds what it wraps."""
    return next((_WRAPPED[base.__name__] for base in cls.__mro__ if base.__name__ in _WRAPPED), None)


def inner(module: nn.Module) -> nn.Module | None:
    """What a wrapper wraps, or None if `module` is no wrapper."""
    cls: type = type(module)
    holder = _holder(cls)
    return module._modules.get(holder) if holder else None


@functools.lru_cache(maxsize=4096)
def _bare(cls: type) -> type:
    def is_mixed(candidate: type) -> bool:
        return any(
            base.__name__ in _CLASS_MIXED_IN and base.__module__.startswith("torch.") for base in candidate.__mro__
        )

    return next((candidate for candidate in cls.__mro__ if not is_mixed(candidate)), cls)


def bare_class(module: nn.Module) -> type:
    """The class that the module's author wrote, whatever was mixed into it since."""
    cls: type = type(module)
    return _bare(cls)


@functools.lru_cache(maxsize=4096)
def torch_bases(cls: type) -> tuple[str, ...]:
    """The torch.nn classes that a class inherits from, nearest first."""
    return tuple(
        base.__name__ for base in cls.__mro__ if base.__module__.startswith("torch.nn.") and base is not nn.Module
    )


def _flattened(flat: Any) -> Iterator[tuple[nn.Module, str, str, tuple[int, ...]]]:
    """The tensors that FSDP1 packed into one flat parameter: (owner, path to it, attribute, shape)."""
    for info, shape in zip(flat._param_infos, flat._shapes, strict=True):
        path = ".".join(part for part in info.module_name.split(".") if part not in _UNMISTAKABLE)
        yield info.module, path, info.param_name, tuple(shape)


def _original_shapes(model: nn.Module) -> dict[tuple[int, str], tuple[int, ...]]:
    """FSDP1 with `use_orig_params` shows flat local pieces; the whole shapes lie in its handles."""
    shapes: dict[tuple[int, str], tuple[int, ...]] = {}
    for module in model.modules():
        flat = getattr(getattr(module, "_handle", None), "flat_param", None)
        if flat is not None and hasattr(flat, "_param_infos"):
            for owner, _, attribute, shape in _flattened(flat):
                shapes[id(owner), attribute] = shape
    return shapes


def _registered(model: nn.Module) -> Iterator[_Registered]:
    """All parameters at all their sites, in the order of `named_parameters`."""
    shapes = _original_shapes(model)

    def visit(module: nn.Module, prefix: str, within: tuple[str, ...], root: bool) -> Iterator[_Registered]:
        wrapped = inner(module)
        cls = bare_class(module)
        bases = torch_bases(cls)
        if not root and wrapped is None:
            within = within + tuple(base for base in bases if base not in within)
        for attribute, parameter in module._parameters.items():
            if parameter is None:
                continue
            if hasattr(parameter, "_param_infos") and hasattr(parameter, "_shapes"):
                for owner, path, original, shape in _flattened(parameter):
                    name = f"{prefix}{path}.{original}" if path else f"{prefix}{original}"
                    owner_class = bare_class(owner)
                    site = Site(name, original, owner_class.__name__, torch_bases(owner_class), within)
                    yield _Registered((id(parameter), name), parameter, shape, site, owner)
                continue
            site = Site(f"{prefix}{attribute}", attribute, cls.__name__, bases, within)
            lazy = isinstance(parameter, nn.parameter.UninitializedParameter)
            shape = () if lazy else shapes.get((id(module), attribute), tuple(parameter.shape))
            yield _Registered(id(parameter), parameter, shape, site, module)
        for name, child in module._modules.items():
            if child is not None:
                hop = prefix if child is wrapped else f"{prefix}{name}."
                yield from visit(child, hop, within, root and child is wrapped)

    yield from visit(model, "", (), True)


def parameters_by_name(model: nn.Module) -> dict[str, torch.Tensor]:
    """Canonical name, aliases included, to the tensor that stands there now (FSDP1: the flat one it lies in)."""
    return {entry.site.name: entry.parameter for entry in _registered(model)}


def _listed(model: nn.Module) -> Iterator[tuple[str, str]]:
    """(prefix, pattern) of what `no_weight_decay()` names, as timm has it: of the model and of each model in it."""

    def visit(module: nn.Module, prefix: str) -> Iterator[tuple[str, str]]:
        wrapped = inner(module)
        method = getattr(module, "no_weight_decay", None) if wrapped is None else None
        names = method() if callable(method) else ()
        if isinstance(names, set | frozenset | list | tuple):
            yield from ((prefix, str(name)) for name in names)
        for name, child in module.named_children():
            yield from visit(child, prefix if child is wrapped else f"{prefix}{name}.")

    return visit(model, "")


@dataclass
class _Collected:
    first: _Registered
    sites: list[Site] = field(default_factory=list)


def read_tensors(model: nn.Module) -> list[TensorFacts]:
    """The facts of every tensor, each once, in the order of `named_parameters`.

    Raises:
        PlanError: the model has no parameters, or lazy ones that no forward has shaped yet.
    """
    collected: dict[object, _Collected] = {}
    for entry in _registered(model):
        collected.setdefault(entry.key, _Collected(entry)).sites.append(entry.site)
    if not collected:
        raise PlanError(f"{type(model).__name__} has no parameters: there is nothing to plan")
    lazy = [found.first.site.name for found in collected.values() if _is_lazy(found.first.parameter)]
    if lazy:
        raise PlanError(
            f"lazy parameters have no shape yet: {', '.join(lazy[:5])}{' …' if len(lazy) > 5 else ''}: "
            "run one forward pass through the model, then plan"
        )
    listed = list(_listed(model))
    return [_facts(found, listed) for found in collected.values()]


def _is_lazy(parameter: torch.Tensor) -> bool:
    return isinstance(parameter, nn.parameter.UninitializedParameter)


def _facts(found: _Collected, listed: Sequence[tuple[str, str]]) -> TensorFacts:
    parameter, sites = found.first.parameter, tuple(found.sites)
    marked = ""
    if getattr(parameter, "_no_weight_decay", False):
        marked = "its `_no_weight_decay` attribute is set"
    for prefix, pattern in listed:
        if any(fnmatch(site.name, prefix + pattern) for site in sites):
            marked = (
                "the model's `no_weight_decay()` names it" if not prefix else f"`{prefix}no_weight_decay()` names it"
            )
    return TensorFacts(
        shape=found.first.shape,
        sites=sites,
        trainable=bool(parameter.requires_grad),
        marked=marked,
        listed=any(not prefix and fnmatch(sites[0].name, pattern) for prefix, pattern in listed),
        dtype=str(parameter.dtype).removeprefix("torch."),
    )


def read_shapes(shapes: Sequence[tuple[str, tuple[int, ...], str]]) -> list[TensorFacts]:
    """Facts of a bare state dict: (name, shape, dtype) and nothing else, so that verdicts on them are weak."""
    return [
        TensorFacts(shape, (Site(name, name.rpartition(".")[2], ""),), dtype=dtype) for name, shape, dtype in shapes
    ]
