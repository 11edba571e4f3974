"""Decides what is run to see how tensors are used, and runs it on a twin.

A model that is small enough is run whole. Where that fails or the model is large, its parts are run, the largest first,
down to single modules. Each kind of part is run once: what one layer does with its `scale`, its sisters do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from weightdecay.naming import bare_class
from weightdecay.planning.evidence.example_inputs import example_inputs
from weightdecay.planning.evidence.recorder import UsageRecorder
from weightdecay.planning.evidence.runnable_copy import absent, twin, undisturbed, unwrapped
from weightdecay.planning.evidence.small_config import shrunk
from weightdecay.planning.evidence.tensors import Site, TensorFacts, read_tensors
from weightdecay.planning.evidence.uses import Use
from weightdecay.planning.patterns import INDEX

LARGEST_RUN = 64_000_000  # elements: about a second and 300 MB
_MOST_RUNS = 200

Batch = torch.Tensor | Mapping[str, Any] | Sequence[Any]
Uses = dict[str, set[Use]]


def with_uses(model: nn.Module, tensors: Sequence[TensorFacts], batch: Batch | None = None) -> list[TensorFacts]:
    """The facts with what a forward did to each tensor; None stays where nothing could be run."""
    with undisturbed():
        tracer = _Tracer(unwrapped(model), tensors)
        tracer.run(batch)
    return tracer.facts()


@dataclass(frozen=True)
class _Part:
    prefix: str
    module: nn.Module


class _Tracer:
    """Collects uses by name, and by kind of tensor, so that what was not run can be told by its sisters."""

    def __init__(self, root: nn.Module, tensors: Sequence[TensorFacts]) -> None:
        self.root = root
        self.tensors = tensors
        self.found: Uses = {}
        self.runs = 0
        self.seen: set[object] = set()
        self.sisters: dict[object, set[Use]] = {}
        sites = [(site, facts) for facts in tensors for site in facts.sites]
        self.custom = {site.name for site, facts in sites if not site.is_torchs}
        self.kinds = {site.name: self._kind_of(site, len(facts.shape)) for site, facts in sites}

    def _kind_of(self, site: Site, axes: int) -> object:
        """Tensors of one kind do the same: attributes of one class, or of torch's own what differs in indices only."""
        if site.name in self.custom:
            return site.owner, site.attribute, site.original, axes
        return site.owner, INDEX.sub("#", site.name), axes

    def run(self, batch: Batch | None) -> None:
        if batch is not None:
            self._attempt(_Part("", self.root), [_on_cpu(batch)])
        elif _elements(self.root) > LARGEST_RUN:
            self._run_shrunk()
        self._visit(_Part("", self.root), self.kinds)

    @cached_property
    def outside(self) -> dict[int, Any]:
        return absent(self.root)

    def facts(self) -> list[TensorFacts]:
        traced = []
        for facts in self.tensors:
            uses: set[Use] = set()
            for site in facts.sites:
                uses |= self.found.get(site.name) or self.sisters.get(self.kinds[site.name], set())
            traced.append(replace(facts, uses=tuple(sorted(uses)) if uses else None))
        return traced

    def _run_shrunk(self) -> None:
        """Smaller copies until one has told of every kind of tensor."""
        for small in shrunk(self.root, LARGEST_RUN):
            tracer = _Tracer(small, read_tensors(small))
            tracer.run(None)
            self.sisters = {**tracer.sisters, **self.sisters}
            if self.sisters.keys() >= {*self.kinds.values()}:
                return

    def _is_open(self, name: str) -> bool:
        return name not in self.found and self.kinds[name] not in self.sisters

    def _visit(self, part: _Part, names: Iterable[str]) -> None:
        """Run a part if tensors in it are still untold, then what it is made of."""
        open_names = [name for name in names if name.startswith(part.prefix) and self._is_open(name)]
        kind = _kind(part.module)
        untouched = part.module is self.root and not self.found
        if self.runs >= _MOST_RUNS or kind in self.seen or not (open_names or untouched):
            return
        self.seen.add(kind)
        # torch's own modules would show on their own no more than their type says
        tells = part.module is self.root or not _is_torchs(part.module) or not self.custom.isdisjoint(open_names)
        if tells and _elements(part.module) <= LARGEST_RUN:
            self._attempt(part, example_inputs(part.module))
        for name, child in part.module.named_children():
            self._visit(_Part(f"{part.prefix}{name}.", unwrapped(child)), open_names)

    def _attempt(self, part: _Part, candidates: Iterable[Any]) -> None:
        """Run on the first candidate that goes through; what a broken run saw before it broke counts too."""
        copy: nn.Module | None = None
        for candidate in _unlike(candidates):
            # only what is run is copied: a module that merely holds others may hold a data set too
            copy = self._copy(part) if copy is None else copy
            if copy is None:
                return
            parameters = {f"{part.prefix}{name}": p for name, p in copy.named_parameters(remove_duplicate=False)}
            recorder = UsageRecorder(parameters, [leaf for _, leaf in _named_leaves(candidate)])
            self.runs += 1
            complete = _goes_through(copy, candidate, recorder)
            for name, uses in recorder.uses.items():
                self.found.setdefault(name, set()).update(uses)
                self.sisters.setdefault(self.kinds[name], set()).update(uses)
            # where most was seen, the input was right and something inside failed: another guess would fail there too
            if complete or 2 * len(recorder.uses) > len(parameters):
                return

    def _copy(self, part: _Part) -> nn.Module | None:
        try:
            return twin(part.module, None if part.module is self.root else self.outside)
        except Exception:  # a module may hold what cannot be copied: then its parts are tried
            return None


def _goes_through(module: nn.Module, candidate: Any, recorder: UsageRecorder) -> bool:
    named = candidate if isinstance(candidate, Mapping) else {}
    positional = () if named else candidate if isinstance(candidate, tuple | list) else (candidate,)
    try:
        with recorder:
            module(*positional, **named)
    except Exception:  # whatever the user's forward raises on a guessed input
        return False
    return True


def _unlike(candidates: Iterable[Any]) -> Iterator[Any]:
    """Those that differ from the earlier ones in names or shapes."""
    seen: set[str] = set()
    for candidate in candidates:
        form = str([(name, tuple(leaf.shape)) for name, leaf in _named_leaves(candidate)])
        if form not in seen:
            seen.add(form)
            yield candidate


def _elements(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _is_torchs(module: nn.Module) -> bool:
    return bare_class(module).__module__.startswith("torch.")


def _kind(module: nn.Module) -> object:
    return bare_class(module), tuple((name, tuple(p.shape)) for name, p in module.named_parameters())


def _on_cpu(value: Any) -> Any:
    """The batch where and in the precision in which the twin runs; the user's own tensors stay as they are."""
    if isinstance(value, torch.Tensor):
        moved = value.detach().cpu()
        return moved.float() if moved.dtype in (torch.float16, torch.bfloat16) else moved
    if isinstance(value, Mapping):
        return {key: _on_cpu(item) for key, item in value.items()}
    return type(value)(_on_cpu(item) for item in value) if type(value) in (list, tuple) else value


def _named_leaves(value: Any, name: str = "") -> list[tuple[str, torch.Tensor]]:
    """The tensors in a batch with the path to each."""
    if isinstance(value, torch.Tensor):
        return [(name, value)]
    if isinstance(value, Mapping):
        return [leaf for key, item in value.items() for leaf in _named_leaves(item, f"{name}.{key}")]
    if isinstance(value, list | tuple):
        return [leaf for index, item in enumerate(value) for leaf in _named_leaves(item, f"{name}.{index}")]
    return []
