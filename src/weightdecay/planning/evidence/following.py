"""What a forward did with each parameter: the strongest evidence of what it is for.

Each parameter is followed through views, casts and arithmetic with constants (`1 + w`, `-exp(A_log)`) up to the
operation in which it meets something that depends on the input. That meeting is noted: which operation, in which
argument, what was done to the parameter before, and what it met. What norms stand between (`norms`) and what attention
weighs (`scores`) is read from the same steps afterwards.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod

from weightdecay.planning.evidence.axes import LOST, Axes, Change, geometry, moved, varying
from weightdecay.planning.evidence.norms import note_places_of_norms
from weightdecay.planning.evidence.origins import CONSTANT, Argument, Origin, Step, takers
from weightdecay.planning.evidence.recorder import Operation, Recording
from weightdecay.planning.evidence.scores import note_attended
from weightdecay.planning.evidence.uses import (
    BIAS_SLOTS,
    FACTORS,
    FORM,
    GATES,
    LOOKUPS,
    MASKS,
    MODULATION,
    NORMALISING,
    PRODUCTS,
    REJOINS,
    ROUTED,
    SHAPE_ONLY,
    SOFTMAX,
    SPREAD,
    TERMS,
    WEIGHT_SLOTS,
    WEIGHTED_SUM,
    Use,
)

_LONGEST_PATH = 6
_COPIES = frozenset({"clone", "contiguous", "_to_copy", "alias", "detach"})  # leave every axis where it is
_REDUCTIONS = frozenset({"sum", "mean"})
_SPREADS = frozenset({"sqrt", "std", "linalg_vector_norm", "norm", "frobenius_norm"})
_KEEPS_SPREAD = frozenset({"add", "clamp", "clamp_min", "maximum", "mul", "sub"})
_MEETINGS = LOOKUPS | PRODUCTS  # even of parameters alone

_MOST_CHANGES = 16  # of a form, one after the other

Weighed = dict[str, tuple[Use, Axes]]


def uses_of(recording: Recording) -> dict[str, set[Use]]:
    """What was done with each parameter, by name."""
    follower = _Follower(recording)
    operations = [part for operation in recording.operations for part in operation.parts()]
    steps = [step for operation in operations if (step := follower.step(operation)) is not None]
    note_places_of_norms(steps, follower.uses, is_whole=recording.is_whole)
    note_attended(steps, follower.uses)
    return dict(follower.uses)


class _Follower:
    """Knows where every tensor comes from, up to the operation that is looked at."""

    def __init__(self, recording: Recording) -> None:
        self.uses: dict[str, set[Use]] = defaultdict(set)
        self._origins: dict[int, Origin] = {}
        self._written: dict[int, Origin] = {}  # what was written to in place, with all views of it
        self._sizes = {name: size for name, (_, size) in recording.parameters.items()}
        self._takers = takers(recording.operations)
        self._sources = 0

        for name, (number, _) in recording.parameters.items():
            known = self._origins.get(number, CONSTANT).parameters
            self._origins[number] = Origin({**known, name: ()})
        for number in recording.inputs:
            self._origins[number] = Origin(live=True, trait="input", source=self._new_source(), is_bare=True)

    def _new_source(self) -> int:
        self._sources += 1
        return self._sources

    # --- where tensors come from

    def step(self, operation: Operation) -> Step | None:
        """Note what happens in an operation; None where neither input nor parameters have a part in it."""
        arguments, live, carriers = [], [], []
        for slot, tensor, shape, form, memory in operation.operands:
            origin = self._origins.get(tensor, CONSTANT)
            if memory in self._written and not origin.live:
                origin = self._as_written(origin, memory)
            argument = Argument(slot, tensor, shape, form, origin)
            arguments.append(argument)
            if origin.live:
                live.append(argument)
            if origin.parameters:
                carriers.append(argument)
        if not live and not carriers:
            for result in operation.results:
                self._origins.pop(result.tensor, None)
            return None

        if operation.name in _REDUCTIONS:
            self._settle_weighted_sums(arguments[0], operation.axes)
        origin = self._meet(operation, arguments, live, carriers)
        for result in operation.results:
            self._origins[result.tensor] = origin
            if operation.in_place and (origin.live or origin.parameters):
                before = self._written.get(result.memory, CONSTANT)
                parameters = {**before.parameters, **origin.parameters}
                self._written[result.memory] = Origin(parameters, live=before.live or origin.live)
        return Step(operation, arguments, live, origin)

    def _as_written(self, origin: Origin, memory: int) -> Origin:
        """A weight may be built piece by piece: `w[:4] = self.a` writes into all views of `w`."""
        written = self._written[memory]
        if written.live:
            return Origin(live=True, trait="activation")
        return replace(origin, parameters={**written.parameters, **origin.parameters})

    # --- what happens to them

    def _meet(
        self,
        operation: Operation,
        arguments: Sequence[Argument],
        live: Sequence[Argument],
        carriers: Sequence[Argument],
    ) -> Origin:
        """Note what parameters meet, and say where the result comes from."""
        name = operation.name
        shape = operation.results[0].shape if operation.results else ()
        if name in SHAPE_ONLY and not live:
            return CONSTANT

        weighed: Weighed = {}
        if carriers and (live or name in _MEETINGS or len(carriers) > 1 or _is_spread(name, carriers, shape)):
            weighed = self._note_meetings(name, carriers, arguments, shape)
        if name in ("mul", "add") and len(live) > 1:
            self._settle_tables(name, live)

        table = arguments[0].origin
        is_row_choice = name in LOOKUPS and name != "embedding" and bool(table.parameters) and not table.live
        if live and not is_row_choice:
            fixed = [a for a in carriers if not a.origin.live]
            return self._live_result(operation, arguments, live, fixed, weighed)
        if not carriers:
            return CONSTANT
        # What the input chooses by itself, as ids do, is a look-up; by what a layer made of it, as a router does.
        routed = any(not a.origin.is_bare for a in live)
        return Origin(_followed(name, carriers, arguments, shape, routed=routed))

    def _note_meetings(
        self, name: str, carriers: Sequence[Argument], arguments: Sequence[Argument], shape: tuple[int, ...]
    ) -> Weighed:
        weighed: Weighed = {}
        for own in carriers:
            if own.origin.live and own.slot not in WEIGHT_SLOTS:
                continue
            partner = _partner(own, arguments)
            other = next((a.shape for a in arguments if a.origin is not own.origin), shape)
            rows = len([size for size in own.form if size > 1])
            lies = "" if name in PRODUCTS else geometry(own.form, shape, other)
            if lies in ("patch", "repeated") and partner == "projection" and not _along_features(own, arguments):
                lies = "grid"
            for parameter, through in own.origin.parameters.items():
                place = lies or self._place(parameter, own)
                use = Use(name, own.slot, partner, place, through, len(own.form), rows)
                self.uses[parameter].add(use)
                if name == "mul" and not own.origin.live and not GATES & {*through}:
                    weighed[parameter] = use, varying(own.form)
        return weighed

    def _place(self, parameter: str, own: Argument) -> str:
        """Whether a product takes a parameter whole as one matrix, or as a stack of them, or one out of a stack."""
        is_stack = (len(own.form) > 2 and own.form[0] > 1) or prod(own.shape) < self._sizes[parameter]
        return "stack" if is_stack else "matrix"

    def _live_result(
        self,
        operation: Operation,
        arguments: Sequence[Argument],
        live: Sequence[Argument],
        fixed: Sequence[Argument],
        weighed: Weighed,
    ) -> Origin:
        """What an operation on live tensors yields."""
        name, first = operation.name, live[0].origin
        carriers = frozenset([p for a in fixed for p in a.origin.parameters]) if fixed else frozenset()
        real = [a.origin for a in live if not a.origin.is_bare]

        # One live tensor in another form, rotated, or under a mask is what it was.
        is_masked = len(real) == 1 and name in MASKS and not real[0].trait.endswith("spread")
        if not carriers and (name in FORM or name in MASKS or name == "neg") and (len(live) == 1 or is_masked):
            kept = first if len(live) == 1 else real[0]
            return _reformed(kept, operation) if name in FORM and name not in _COPIES else kept
        if not carriers and name in REJOINS and first.source and len({a.origin.source for a in live}) == 1:
            if len(live) > 1 or name not in TERMS:
                return replace(first, weighed={}, features=frozenset(), changes=())
            return first

        made_of = _modulated(arguments) if name in FORM or name in ("mul", "div", "add") else {}
        traits = [a.origin.trait for a in live]
        source = self._new_source()
        if (name == "mul" and "inverse-spread" in traits) or (name == "div" and traits[-1] == "spread"):
            for parameter in first.scaled_by:
                self._settle_gain(parameter)
            return Origin(made_of, live=True, trait="normalised", source=source)
        if name == "mul" and carriers:
            sums = {**_still_weighed(live[:1]), **weighed}
            scaled = first.scaled_by | carriers
            return Origin(made_of, live=True, trait="activation", source=source, scaled_by=scaled, weighed=sums)

        bare = not carriers and not real and name not in NORMALISING
        trait, features = _trait(name, traits, arguments), frozenset[int]()
        for a in fixed if trait == "projection" else ():
            if a.slot in WEIGHT_SLOTS:
                features = varying(a.form) - {-2}  # which was summed over
        summed: Mapping[str, int] = {}
        if name in TERMS and carriers:  # a bias changes no trait
            if {*traits} == {"projection"}:
                trait, features = first.trait, moved(first.features, first.changes)
            summed = {
                parameter: len([size for size in a.form if size > 1])
                for a in fixed
                for parameter in a.origin.parameters
            }
        elif len(live) == 1 and name in TERMS | GATES:
            summed = first.summed
        return Origin(
            made_of,
            live=True,
            trait=trait,
            source=source,
            is_bare=bare,
            weighed=_still_weighed(live) if name in TERMS else {},  # a sum of weighted things is still to be summed
            features=features,
            summed=summed,
        )

    # --- what is known only later

    def _settle_gain(self, parameter: str) -> None:
        """`w * x * rsqrt(…)` multiplies by the gain first: what it met is known only now."""
        uses = self.uses[parameter]
        self.uses[parameter] = {use._replace(partner="normalised") if use.operation == "mul" else use for use in uses}

    def _settle_weighted_sums(self, argument: Argument, axes: Sequence[object]) -> None:
        """`(x * w).sum(-1)` is `x @ w`: a product if the sum goes over axes along which `w` varies, and no others.

        A sum over everything may as well be a loss, and tells nothing; nor does the mean of what goes on beside it.
        """
        if not argument.origin.weighed or not axes or self._takers[argument.tensor] > 1:
            return
        count = len(argument.shape)
        summed = axes[0] if isinstance(axes[0], list | tuple) else [axes[0]]
        over = {axis if axis < 0 else axis - count for axis in summed if isinstance(axis, int)}
        for parameter, (use, varies) in argument.origin.weighed.items():
            if over and over <= moved(varies, argument.origin.changes) and len(over) < count:
                self.uses[parameter].discard(use)
                place = self._place(parameter, argument) if use.rows > 2 else "matrix"
                self.uses[parameter].add(use._replace(operation=WEIGHTED_SUM, slot="weight", geometry=place))

    def _settle_tables(self, name: str, live: Sequence[Argument]) -> None:
        """A table that the input is added to, and whose pieces then scale or shift another activation, modulates it.

        Positions are added to activations that go on; a modulation is itself broadcast over the activation.
        """
        for own in live:
            partner = next((a for a in live if a is not own), None)
            if partner is None or not own.origin.summed or partner.origin.is_bare:
                continue
            if prod(own.shape) < prod(partner.shape):
                for parameter, rows in own.origin.summed.items():
                    self.uses[parameter].add(Use(MODULATION, name, partner.origin.trait, "", rows=rows))


def _reformed(origin: Origin, operation: Operation) -> Origin:
    """The same in another form; where its axes went is followed if it may be asked for."""
    if not origin.weighed and not origin.features:
        return origin
    before = next(operand.shape for operand in operation.operands)
    change = Change(operation.name, operation.axes, before, operation.results[0].shape)
    changes = (*origin.changes, change) if len(origin.changes) < _MOST_CHANGES else (LOST,)
    return replace(origin, changes=changes)


def _still_weighed(arguments: Sequence[Argument]) -> Weighed:
    """The parameters whose products are still to be summed, with the axes along which they vary now."""
    return {
        parameter: (use, moved(varies, a.origin.changes))
        for a in arguments
        for parameter, (use, varies) in a.origin.weighed.items()
    }


def _along_features(own: Argument, arguments: Sequence[Argument]) -> bool:
    """Whether a tensor varies along nothing but what a layer gave its partner: so it may be a bias, one a head."""
    met = next((a.origin for a in arguments if a is not own and a.origin.features), None)
    features = moved(met.features, met.changes) if met is not None else frozenset()
    return not features or varying(own.form) <= features


def _partner(own: Argument, arguments: Sequence[Argument]) -> str:
    """What kind of thing a parameter meets in an operation."""
    others = [a.origin for a in arguments if a is not own]
    live = [origin for origin in others if origin.live]
    if live:
        # `x · mask` and `q · cos(position)`: the mask and the angles are not what is met
        met = next((origin for origin in live if not origin.is_bare), live[0])
        return met.trait or "activation"
    return "parameter" if any(origin.parameters for origin in others) else "constant"


def _trait(name: str, traits: Sequence[str], arguments: Sequence[Argument]) -> str:
    """What kind of live tensor an operation yields, of live ones with these traits."""
    if name in PRODUCTS:
        is_term = "add" in name
        factors = [a.origin for a in arguments if a.slot != "offs" and not (is_term and a.slot == "self")]
        # What a layer made of learned tokens meets projections as the input's own would.
        paths = [path for origin in factors if not origin.live for path in origin.parameters.values()]
        made = any(PRODUCTS & {*path} for path in paths)
        among = len([origin for origin in factors if origin.live])
        among += made and any(origin.trait == "projection" for origin in factors)
        return "scores" if among > 1 else "projection"
    if name in NORMALISING:
        return "normalised"
    if name in SOFTMAX and "scores" in traits:
        return "attention"
    if name.startswith("_fft_") and name != "_fft_c2r":
        return "spectrum"
    if name in ("rsqrt", "reciprocal"):
        return "inverse-spread"
    if name in _SPREADS or (name in _KEEPS_SPREAD and {*traits} == {"spread"}):
        return "spread"
    if name in ("add", "sub") and "scores" in traits:
        return "scores"
    return "looked-up" if name == "embedding" else "activation"


def _modulated(arguments: Sequence[Argument]) -> dict[str, tuple[str, ...]]:
    """The parameters that are no smaller than what they met: the input modulates them, and not they the input."""
    carriers = [a for a in arguments if a.origin.parameters]
    met = max([prod(a.shape) for a in arguments if not a.origin.parameters], default=0) if carriers else 0
    return {
        parameter: through if a.origin.live else (*through, "modulation")[:_LONGEST_PATH]
        for a in carriers
        if prod(a.shape) >= met
        for parameter, through in a.origin.parameters.items()
    }


def _is_spread(name: str, carriers: Sequence[Argument], shape: tuple[int, ...]) -> bool:
    """Whether a parameter is multiplied with a larger constant: a scale of it, or of a part of it."""
    return name in FACTORS and any(prod(a.form) < prod(shape) for a in carriers)


def _followed(
    name: str, carriers: Sequence[Argument], arguments: Sequence[Argument], shape: tuple[int, ...], *, routed: bool
) -> dict[str, tuple[str, ...]]:
    """The parameters of a result in which the input has no part, with their paths one step longer."""
    step: tuple[str, ...] = () if name in FORM else (ROUTED,) if routed else (name,)
    merged: dict[str, tuple[str, ...]] = {}
    for own in carriers:
        if name in LOOKUPS and own.slot in ("index", "indices"):
            continue  # it chooses what goes on, and does not go on itself
        for parameter, through in own.origin.parameters.items():
            more = (*step, SPREAD) if _only_serves(name, own, arguments, shape, through) else step
            path = (through + more)[:_LONGEST_PATH]
            # The scale of a weight may be made of the weight itself, as by its norm: what goes on is the weight.
            if parameter not in merged or (SPREAD in merged[parameter] and SPREAD not in path):
                merged[parameter] = path
    return merged


def _only_serves(
    name: str, own: Argument, arguments: Sequence[Argument], shape: tuple[int, ...], through: Sequence[str]
) -> bool:
    """Whether a parameter scales or shifts another that it meets, which then is what goes on."""
    if name in NORMALISING or "conv" in name:
        return own.slot == "bias" or (name in NORMALISING and own.slot == "weight")
    if (name, own.slot) in BIAS_SLOTS:
        return True
    is_gate = not GATES.isdisjoint(through)
    if name in FACTORS and is_gate and any(GATES.isdisjoint(path) for a in arguments for path in _paths(a, own)):
        return True  # a mask of the weight, however large
    if name not in FACTORS | TERMS or len(arguments) < 2 or prod(own.form) >= prod(shape):
        return False
    is_vector = sum(size > 1 for size in own.form) < 2
    by_constant = all(a is own or not a.origin.parameters for a in arguments)
    return is_vector or by_constant or is_gate


def _paths(other: Argument, own: Argument) -> Iterable[tuple[str, ...]]:
    """The steps from each parameter in another argument."""
    return () if other is own else other.origin.parameters.values()
