"""Every tensor of a model once, under the name it has in the bare model, with what can be known without running it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from weightdecay.errors import PlanError
from weightdecay.naming import Registered, bare_class, registered, unwrapped
from weightdecay.planning.evidence.marks import Listing, Mark, listings, marks_of
from weightdecay.planning.evidence.uses import Use

_CONTAINERS = frozenset({"ModuleList", "ModuleDict", "Sequential"})
_TORCHS_ATTRIBUTE = re.compile(r"weight|bias|in_proj_|[qkv]_proj_")


@dataclass(frozen=True)
class Site:
    """One place at which a tensor is registered.

    `bases` are the torch.nn classes the owner inherits from, nearest first; `within` those of all modules around it,
    the root excepted (transformers' rule looks at them). Of a parametrised tensor, `attribute` and `owner` are those
    that its author wrote, and `original` says which part of it this is: "original", "original0" …
    """

    name: str
    attribute: str
    owner: str
    bases: tuple[str, ...] = ()
    within: tuple[str, ...] = ()
    original: str = ""

    @cached_property
    def is_torchs(self) -> bool:
        """Whether one of torch's own modules, or a class that inherits from one, registered it, as far as names go."""
        return bool(set(self.bases) - _CONTAINERS) and _TORCHS_ATTRIBUTE.match(self.attribute) is not None


@dataclass(frozen=True)
class TensorFacts:
    """What is known of one tensor before anyone judges it; the first site names it, the others are aliases.

    `marks` is what the model's author says of it; `listed` whether the root's own `no_weight_decay()` names it.
    `uses` are what a traced forward did with it; None where nothing was traced.
    `unreached` says how it was seen that no gradient gets to it; empty where one does, or nothing is known.
    `untold` says why a batch that was given could not show its use; empty where it did, or none was given.
    """

    shape: tuple[int, ...]
    sites: tuple[Site, ...]
    trainable: bool = True
    marks: tuple[Mark, ...] = ()
    listed: bool = False
    dtype: str = "float32"
    uses: tuple[Use, ...] | None = None
    unreached: str = ""
    untold: str = ""

    @cached_property
    def name(self) -> str:
        return self.sites[0].name


@lru_cache(maxsize=4096)
def torch_bases(cls: type) -> tuple[str, ...]:
    """The torch.nn classes that a class inherits from, nearest first."""
    return tuple(
        base.__name__ for base in cls.__mro__ if base.__module__.startswith("torch.nn.") and base is not nn.Module
    )


def _site(entry: Registered, root: nn.Module) -> Site:
    cls, attribute, original = entry.owner, entry.attribute, ""
    if issubclass(cls, ParametrizationList):
        # It stands at `owner.parametrizations.attribute`; what matters is whose attribute was parametrised.
        cls = entry.around[-3] if len(entry.around) > 2 else bare_class(unwrapped(root))
        attribute, original = entry.name.split(".")[-2], entry.attribute
    return Site(entry.name, attribute, cls.__name__, torch_bases(cls), _bases_within(entry.around), original)


@lru_cache(maxsize=4096)
def _bases_within(around: tuple[type, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(base for cls in around for base in torch_bases(cls)))


@dataclass
class _Collected:
    first: Registered
    sites: list[Site] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


def read_tensors(model: nn.Module) -> list[TensorFacts]:
    """The facts of every tensor, each once, in the order of `named_parameters`.

    Raises:
        PlanError: the model has no parameters, or lazy ones that no forward has shaped yet.
    """
    collected: dict[object, _Collected] = {}
    for entry in registered(model):
        found = collected.setdefault(entry.key, _Collected(entry))
        found.sites.append(_site(entry, model))
        found.names.append(entry.name)
    if not collected:
        raise PlanError(f"{type(model).__name__} has no parameters: there is nothing to plan")
    parameters = [(found.first.name, found.first.parameter) for found in collected.values()]
    lazy = [name for name, parameter in parameters if isinstance(parameter, nn.parameter.UninitializedParameter)]
    if lazy:
        raise PlanError(
            f"lazy parameters have no shape yet: {', '.join(lazy[:5])}{' …' if len(lazy) > 5 else ''}: "
            "run one forward pass through the model, then plan"
        )
    listed = listings(model)
    marks = [marks_of(found.first.parameter, found.names, listed) for found in collected.values()]
    return [_facts(found, own, listed) for found, own in zip(collected.values(), marks, strict=True)]


def _facts(found: _Collected, marks: tuple[Mark, ...], listed: Sequence[Listing]) -> TensorFacts:
    parameter, name = found.first.parameter, found.first.name
    return TensorFacts(
        shape=found.first.shape,
        sites=tuple(found.sites),
        trainable=bool(parameter.requires_grad),
        marks=marks,
        listed=any(not one.prefix and not one.anywhere and one.names(name) for one in listed),
        dtype=str(parameter.dtype).removeprefix("torch."),
    )


def read_shapes(shapes: Sequence[tuple[str, tuple[int, ...], str]]) -> list[TensorFacts]:
    """Facts of a bare state dict: (name, shape, dtype) and nothing else, so that verdicts on them are weak."""
    return [
        TensorFacts(shape, (Site(name, name.rpartition(".")[2], ""),), dtype=dtype) for name, shape, dtype in shapes
    ]
