"""Every tensor of a model once, under the name it has in the bare model, with what can be known without running it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch

import torch
from torch import nn

from weightdecay.errors import PlanError
from weightdecay.naming import Registered, bare_class, inner, registered


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
    `unreached` says how it was seen that no gradient gets to it; empty where one does, or nothing is known.
    `untold` says why a batch that was given could not show its use; empty where it did, or none was given.
    """

    shape: tuple[int, ...]
    sites: tuple[Site, ...]
    trainable: bool = True
    marked: str = ""
    listed: bool = False
    dtype: str = "float32"
    uses: tuple[str, ...] | None = None
    unreached: str = ""
    untold: str = ""

    @property
    def name(self) -> str:
        return self.sites[0].name

    @property
    def aliases(self) -> tuple[str, ...]:
        return tuple(site.name for site in self.sites[1:])


@functools.lru_cache(maxsize=4096)
def torch_bases(cls: type) -> tuple[str, ...]:
    """The torch.nn classes that a class inherits from, nearest first."""
    return tuple(
        base.__name__ for base in cls.__mro__ if base.__module__.startswith("torch.nn.") and base is not nn.Module
    )


def _site(entry: Registered) -> Site:
    cls = bare_class(entry.owner)
    within = [base for module in entry.around for base in torch_bases(bare_class(module))]
    return Site(entry.name, entry.attribute, cls.__name__, torch_bases(cls), tuple(dict.fromkeys(within)))


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
    first: Registered
    sites: list[Site] = field(default_factory=list)


def read_tensors(model: nn.Module) -> list[TensorFacts]:
    """The facts of every tensor, each once, in the order of `named_parameters`.

    Raises:
        PlanError: the model has no parameters, or lazy ones that no forward has shaped yet.
    """
    collected: dict[object, _Collected] = {}
    for entry in registered(model):
        collected.setdefault(entry.key, _Collected(entry)).sites.append(_site(entry))
    if not collected:
        raise PlanError(f"{type(model).__name__} has no parameters: there is nothing to plan")
    lazy = [found.first.name for found in collected.values() if _is_lazy(found.first.parameter)]
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
