"""Decides what is run to see how tensors are used, and runs it on copies.

What tells most for the least work comes first: the model whole, on the batch that was given or on guessed inputs, and
small models of its configuration where it is large; then its parts, the largest first, those with tensors of their
author's own before those whose tensors are all torch's, down to single modules. Each kind of part is run once: what one
layer does with its `scale`, its sisters do. What is too large for memory is run without values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from weightdecay.naming import bare_class, inner, registered, unwrapped
from weightdecay.planning.evidence.batches import Batch, for_a_copy, named_tensors, what_went_wrong
from weightdecay.planning.evidence.budget import MOST_IN_MEMORY, Budget, DeadlineError, OverBudgetError, TooLargeError
from weightdecay.planning.evidence.configurations import configuration_of, shrunk
from weightdecay.planning.evidence.example_inputs import can_be_guessed, example_inputs
from weightdecay.planning.evidence.runnable_copy import Device, placeholders, runnable_copy, whole_shapes
from weightdecay.planning.evidence.running import Run, run_once
from weightdecay.planning.evidence.tensors import Site, TensorFacts, read_tensors
from weightdecay.planning.evidence.undisturbed import undisturbed
from weightdecay.planning.evidence.uses import Use
from weightdecay.planning.patterns import INDEX

LARGEST_RUN = 64_000_000  # elements of a model that is run with values: about a second and 300 MB
_COST_OF_A_RUN = 50  # operations that take as long as it takes to begin and end one


@dataclass(frozen=True)
class Traced:
    """The facts with what forwards did to each tensor.

    `incomplete` says what cut the work short, so that another machine may see more; empty where nothing did.
    `batch_fault` says how the batch that was given failed; empty where it did not.
    """

    tensors: list[TensorFacts]
    incomplete: str = ""
    batch_fault: str = ""


def trace(
    model: nn.Module, tensors: Sequence[TensorFacts], batch: Batch | None = None, budget: Budget | None = None
) -> Traced:
    """Run copies of the model or of its parts, and say what they did to each tensor.

    Args:
        model: what was planned; it stays as it is, and so does the process.
        tensors: its facts.
        batch: what its forward takes; inputs are guessed for what it does not show.
        budget: what all runs may cost together.
    """
    budget = budget or Budget()
    tracer = _Tracer(unwrapped(model), tensors, budget, whole_shapes(model))
    with undisturbed():
        tracer.run(batch)
    cut = f"the deadline of {budget.deadline:g} s passed before everything was run" if budget.cut else ""
    return Traced(tracer.facts(), cut, tracer.batch_fault)


@dataclass(frozen=True)
class _Part:
    prefix: str
    module: nn.Module


class _Tracer:
    """Collects uses by name, and by kind of tensor, so that what was not run can be told by its sisters."""

    def __init__(
        self,
        root: nn.Module,
        tensors: Sequence[TensorFacts],
        budget: Budget,
        shapes: Mapping[int, tuple[int, ...]] | None = None,
    ) -> None:
        self.root = root
        self.shapes = shapes
        self.tensors = tensors
        self.budget = budget
        self.found: dict[str, set[Use]] = {}
        self.sisters: dict[object, set[Use]] = {}
        self.reached: set[object] = set()  # kinds of tensors that a gradient gets to
        self.unreached: dict[object, str] = {}  # those that none gets to, and how that was seen
        self.batch_fault = ""
        self.shown: set[str] = set()  # what the batch showed, as far as it came
        self._visited: set[object] = set()
        self._attempted: set[object] = set()
        sites = [(site, facts) for facts in tensors for site in facts.sites]
        self.custom = {site.name for site, _ in sites if not site.is_torchs}
        self.trained = {site.name for site, facts in sites if facts.trainable}
        self.kinds = {site.name: self._kind_of(site, len(facts.shape)) for site, facts in sites}

    def _kind_of(self, site: Site, axes: int) -> object:
        """Tensors of one kind do the same: attributes of one class, or of torch's own what differs in indices only."""
        if site.name in self.custom:
            return site.owner, site.attribute, site.original, axes
        return site.owner, INDEX.sub("#", site.name), axes

    @cached_property
    def outside(self) -> dict[int, Any]:
        return placeholders(self.root)

    # --- what is run, in which order

    def run(self, batch: Batch | None) -> None:
        whole = _Part("", self.root)
        if batch is None or not self._run_batch(whole, batch):
            for step in self._steps(whole):
                if self._open(self.kinds):
                    step()

        self._visit(whole, self.kinds, only_custom=True)
        # what torch's own modules do, their types say: to see it costs half of the work at the most
        with self.budget.one_run():
            self._visit(whole, self.kinds, only_custom=False)

    def _steps(self, whole: _Part) -> list[Callable[[], None]]:
        """To see a whole model without a batch: itself, and if it is large, small ones of its configuration.

        These come first where they surely tell the same for less work: transformers' families differ in sizes only.
        """
        steps: list[Callable[[], None]] = [lambda: self._attempt(whole)]
        if elements(self.root) > LARGEST_RUN:
            is_first = hasattr(configuration_of(self.root), "to_dict")
            steps.insert(0 if is_first else 1, self._run_shrunk)
        return steps

    def _run_batch(self, whole: _Part, batch: Batch) -> bool:
        """Whether the batch went through; with values, where neither model nor work is too large for that."""
        size = elements(whole.module)
        devices: tuple[Device, ...] = ("cpu", "meta") if size <= LARGEST_RUN else ("meta", "cpu")
        fault = ""
        for device in devices if size <= MOST_IN_MEMORY else ("meta",):
            try:
                copy = runnable_copy(whole.module, device, shapes=self.shapes)
            except Exception as error:  # whatever the user's classes raise when they are copied
                self.batch_fault = f"no copy of the model can be made: {what_went_wrong(error, whole.module)}"
                return False
            run = self._run(whole, copy, for_a_copy(batch), given=True)
            self.shown |= run.uses.keys()
            if run.fault is None:
                return True
            if isinstance(run.fault, DeadlineError):
                break  # told as `incomplete`
            said = what_went_wrong(run.fault, copy)
            fault = fault or (said if device == "cpu" else f"{said}, run without values, since it is large")
            if device == "cpu" and not isinstance(run.fault, TooLargeError):
                break
        self.batch_fault = fault
        return False

    def _run_shrunk(self) -> None:
        """Smaller copies until one has told of every kind of tensor."""
        for small in shrunk(self.root, LARGEST_RUN):
            tracer = _Tracer(small, read_tensors(small), self.budget)
            tracer.run(None)
            self.sisters = {**tracer.sisters, **self.sisters}
            self.reached |= tracer.reached
            self.unreached = {**tracer.unreached, **self.unreached}
            if not self._open(self.kinds):
                return

    def _open(self, names: Iterable[str]) -> list[str]:
        """The tensors that nothing was seen of, nor of their sisters."""
        return [name for name in names if name not in self.found and self.kinds[name] not in self.sisters]

    def _visit(self, part: _Part, names: Iterable[str], *, only_custom: bool) -> None:
        """Run what a part is made of while tensors in it are still untold."""
        if not self._open(names):
            return
        for name, child in part.module._modules.items():
            if child is None or not self.budget.left:
                continue
            prefix = part.prefix if child is inner(part.module) else f"{part.prefix}{name}."
            below = _Part(prefix, unwrapped(child))
            still_open = self._open([one for one in names if one.startswith(prefix)])
            kind = _kind(below.module)
            if not still_open or (kind, only_custom) in self._visited:
                continue
            self._visited.add((kind, only_custom))
            # torch's own modules would show on their own no more than their type says
            tells = not self.custom.isdisjoint(still_open) if only_custom else not _is_torchs(below.module)
            if tells and kind not in self._attempted:
                self._attempted.add(kind)
                self._attempt(below)
            self._visit(below, still_open, only_custom=only_custom)

    # --- one part

    def _attempt(self, part: _Part) -> None:
        """Run on the first inputs that go through; what a broken run saw before it broke counts too."""
        # only what may run is copied: a module that merely holds others may hold a data set too
        if not self.budget.left or not can_be_guessed(part.module):
            return
        is_root = part.module is self.root
        try:
            device: Device = "cpu" if elements(part.module) <= LARGEST_RUN else "meta"
            copy = runnable_copy(part.module, device, None if is_root else self.outside, self.shapes)
        except Exception:  # whatever the user's classes raise when they are copied: its parts are tried
            return
        tracked = len(self._parameters(part, copy))
        hopeless: set[str] = set()
        for candidate in _unlike(example_inputs(copy, whole=is_root)):
            first = _forms(candidate)[:1]
            if str(first) in hopeless or not self.budget.left:
                continue
            run = self._run(part, copy, candidate)
            # where most was seen, the input was right and something inside failed, or went on for too long: another
            # guess would fail there too
            if run.fault is None or isinstance(run.fault, OverBudgetError) or 2 * len(run.uses) > tracked:
                return
            if not run.uses:  # its first argument met nothing that takes it
                hopeless.add(str(first))

    def _parameters(self, part: _Part, copy: nn.Module) -> dict[str, Any]:
        named = {f"{part.prefix}{entry.name}": entry.parameter for entry in registered(copy)}
        return {name: parameter for name, parameter in named.items() if name in self.kinds}

    def _run(self, part: _Part, copy: nn.Module, inputs: Any, *, given: bool = False) -> Run:
        """Run once, and once more as in training where a gradient gets to less than is used."""
        parameters = self._parameters(part, copy)
        self.budget.operations -= _COST_OF_A_RUN + len(parameters)
        run = run_once(copy, inputs, parameters, self.budget)
        for name, uses in run.uses.items():
            self.found.setdefault(name, set()).update(uses)
            self.sisters.setdefault(self.kinds[name], set()).update(uses)
        if run.reached is None:
            return run

        self.reached |= {self.kinds[name] for name in run.reached}
        if self._unreached(run, given):
            for module in copy.modules():
                module.training = True
            again = run_once(copy, inputs, parameters, self.budget)
            for module in copy.modules():
                module.training = False
            if again.reached is not None:
                self.reached |= {self.kinds[name] for name in again.reached}
                ran = "the model" if part.module is self.root else bare_class(part.module).__name__
                how = f"{ran} was run, and no gradient of its output gets to it"
                self.unreached.update(dict.fromkeys((self.kinds[name] for name in self._unreached(run, given)), how))
        return run

    def _unreached(self, run: Run, given: bool) -> list[str]:
        """Of torch's own layers a guessed input proves nothing: it may have been too short for what they do."""
        told = self.trained if given else self.trained & self.custom
        return [name for name in run.uses if name in told and self.kinds[name] not in self.reached]

    # --- what was found

    def facts(self) -> list[TensorFacts]:
        traced = []
        for facts in self.tensors:
            uses: set[Use] = set()
            for site in facts.sites:
                uses |= self.found.get(site.name) or self.sisters.get(self.kinds[site.name], set())
            kinds = [self.kinds[site.name] for site in facts.sites]
            unreached = "" if not self.reached.isdisjoint(kinds) else self.unreached.get(kinds[0], "")
            shown = any(site.name in self.shown for site in facts.sites)
            traced.append(
                replace(
                    facts,
                    uses=tuple(sorted(uses)) if uses else None,
                    unreached=unreached,
                    untold="" if shown else self.batch_fault,
                )
            )
        return traced


def _unlike(candidates: Iterable[Any]) -> Iterator[Any]:
    """Those that differ from the earlier ones in names or shapes."""
    seen: set[str] = set()
    for candidate in candidates:
        form = str(_forms(candidate))
        if form not in seen:
            seen.add(form)
            yield candidate


def _forms(candidate: Any) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(tensor.shape)) for name, tensor in named_tensors(candidate)]


def elements(module: nn.Module) -> int:
    """How many numbers its parameters hold."""
    return sum(map(torch.numel, module.parameters()))


def _is_torchs(module: nn.Module) -> bool:
    return bare_class(module).__module__.startswith("torch.")


def _kind(module: nn.Module) -> object:
    return bare_class(module), tuple((name, tuple(p.shape)) for name, p in module.named_parameters())
