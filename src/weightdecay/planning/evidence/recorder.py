"""What a forward pass does with each tensor: the strongest evidence of what it is for.

A dispatch mode sees every operation below autograd. It follows each parameter through views, casts and arithmetic with
constants (`1 + w`, `-exp(A_log)`) up to the operation in which it meets something that depends on the input, and notes
that meeting: which operation, in which argument, what was done to the parameter before, and what it met.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from weightdecay.planning.evidence.budget import Budget, Runner, memory_of, tensors_in
from weightdecay.planning.evidence.origins import (
    CONSTANT,
    LONGEST_PATH,
    Argument,
    Origin,
    distinct,
    geometry,
    modulated,
    partner_of,
    trait_of,
    varying,
)
from weightdecay.planning.evidence.scores import SOFTMAX, attended, scored
from weightdecay.planning.evidence.uses import (
    AROUND_NORM,
    ATTENDED,
    BIAS_SLOTS,
    FACTORS,
    FORM,
    GATES,
    LOOKUPS,
    MODULATION,
    NORMALISING,
    PRODUCTS,
    ROUTED,
    SHAPE_ONLY,
    SPREAD,
    TERMS,
    WEIGHT_SLOTS,
    WEIGHTED_SUM,
    Use,
)

_COPIES = frozenset({"clone", "contiguous", "_to_copy", "alias", "detach"})  # leave every axis where it is
_REDUCTIONS = frozenset({"sum", "mean"})
_REJOINS = frozenset({"add", "sub", "rsub", "cat", "stack", "where"})  # of one tensor's own pieces: rotations


class UsageRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the uses of named parameters while active.

    Args:
        parameters: names and tensors to follow.
        inputs: the tensors fed to the model: what depends on them is live.
        budget: what runs the operations, and stops where they become too many.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.Tensor],
        inputs: Iterable[torch.Tensor],
        budget: Runner | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.uses: dict[str, set[Use]] = {}
        self._origins: Any = WeakTensorKeyDictionary()  # Origin of each tensor that is still alive
        self._budget: Runner = budget or Budget()
        # What was written to in place, with all views of it; held, so that no storage of that address can follow it.
        self._written: dict[int, tuple[torch.Tensor, Origin]] = {}
        self._sizes = {name: tensor.numel() for name, tensor in parameters.items()}
        self._sources = 0
        self._last_gains: frozenset[str] = frozenset()

        for name, tensor in parameters.items():
            known = dict(self._origin(tensor).parameters)
            self._origins[tensor] = Origin({**known, name: ()})
        for tensor in inputs:
            self._origins[tensor] = Origin(live=True, trait="input", source=self._new_source(), is_bare=True)

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        super().__exit__(kind, value, traceback)  # type: ignore[no-untyped-call]
        if kind is None:
            for parameter in self._last_gains:
                self._note(parameter, Use(AROUND_NORM, "order", "last", ""))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch's compiler is not there while this is active; to tell it so would import it, which takes a second."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = self._budget.run(func, args, kwargs or {})

        name = func._schema.name.removeprefix("aten::")
        in_place = name.endswith("_") and not name.startswith("_")
        if name == "pow" and len(args) > 1 and isinstance(args[1], int | float) and args[1] < 0:
            name = "rsqrt"
        name = name.rstrip("_") if in_place else name
        arguments = self._arguments(func, args, kwargs or {})
        results = [out] if isinstance(out, torch.Tensor) else tensors_in(out)
        if name in _REDUCTIONS:
            self._settle_weighted_sums(arguments, args)

        shape = tuple(results[0].shape) if results else ()
        origin = self._operation(name, arguments, shape)
        if origin.live:
            if name in SOFTMAX:
                self._note_attended(args, arguments[0])
            along = scored(name, args, arguments, shape)
            origin = replace(origin, scored=along) if along or origin.scored else origin
        for tensor in results:
            self._origins[tensor] = origin
            if in_place and (origin.live or origin.parameters):
                self._write(tensor, origin)
        return out

    # --- where tensors come from

    def _new_source(self) -> int:
        self._sources += 1
        return self._sources

    def _origin(self, tensor: torch.Tensor) -> Origin:
        origin: Origin = self._origins.get(tensor, CONSTANT)
        if not self._written or origin.live or memory_of(tensor) not in self._written:
            return origin
        written = self._written[memory_of(tensor)][1]
        if written.live:
            return Origin(live=True, trait="activation")
        return replace(origin, parameters={**written.parameters, **origin.parameters})

    def _write(self, tensor: torch.Tensor, origin: Origin) -> None:
        """A weight may be built piece by piece: `w[:4] = self.a` writes into all views of `w`."""
        key = memory_of(tensor)
        before = self._written[key][1] if key in self._written else CONSTANT
        parameters = {**before.parameters, **origin.parameters}
        self._written[key] = tensor, Origin(parameters, live=before.live or origin.live)

    def _arguments(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Argument]:
        slots = [argument.name for argument in func._schema.arguments]
        arguments = []
        for slot, value in [*zip(slots, args, strict=False), *kwargs.items()]:
            if isinstance(value, torch.Tensor):
                arguments.append(Argument(slot, value, self._origin(value)))
            elif isinstance(value, list | tuple):
                arguments += [Argument(slot, tensor, self._origin(tensor)) for tensor in tensors_in(value)]
        return arguments

    # --- what happens to them

    def _operation(self, name: str, arguments: Sequence[Argument], shape: tuple[int, ...]) -> Origin:
        """Note what happens here and say where the result comes from."""
        live = [a.origin for a in arguments if a.origin.live]
        if name in SHAPE_ONLY and not live:
            return CONSTANT
        carriers = [a for a in arguments if a.origin.parameters]

        weighed: dict[str, tuple[Use, frozenset[int]]] = {}
        if carriers and (live or name in LOOKUPS | PRODUCTS or len(carriers) > 1 or _is_spread(name, carriers, shape)):
            weighed = self._note_meetings(name, carriers, arguments, shape)
        if any(origin.gains for origin in live) and name not in FORM:
            self._note_after_norm(name, arguments)
        if live and any(origin.summed for origin in live):
            self._settle_tables(name, arguments)

        table = arguments[0].origin if arguments else CONSTANT
        is_row_choice = name in LOOKUPS and name != "embedding" and bool(table.parameters) and not table.live
        if live and not is_row_choice:
            return self._live_result(name, arguments, live, weighed)
        if not carriers:
            return CONSTANT
        return Origin(_followed(name, carriers, arguments, shape, routed=bool(live)))

    def _note(self, parameter: str, use: Use) -> None:
        self.uses.setdefault(parameter, set()).add(use)

    def _note_meetings(
        self, name: str, carriers: Sequence[Argument], arguments: Sequence[Argument], shape: tuple[int, ...]
    ) -> dict[str, tuple[Use, frozenset[int]]]:
        weighed: dict[str, tuple[Use, frozenset[int]]] = {}
        for own in carriers:
            if own.origin.live and own.slot not in WEIGHT_SLOTS:
                continue
            partner, form = partner_of(own, arguments), distinct(own.tensor)
            other = next((tuple(a.tensor.shape) for a in arguments if a.origin is not own.origin), shape)
            for parameter, through in own.origin.parameters.items():
                place = self._place(parameter, own.tensor) if name in PRODUCTS else geometry(form, shape, other)
                rows = sum(size > 1 for size in form)
                use = Use(name, own.slot, partner, place, through, len(form), rows)
                self._note(parameter, use)
                if name == "mul" and not own.origin.live and not GATES & {*through}:
                    weighed[parameter] = use, varying(own.tensor)
        return weighed

    def _place(self, parameter: str, tensor: torch.Tensor) -> str:
        """Whether a product takes a parameter whole as one matrix, or as a stack of them, or one out of a stack."""
        own = distinct(tensor)
        is_stack = (len(own) > 2 and own[0] > 1) or tensor.numel() < self._sizes[parameter]
        return "stack" if is_stack else "matrix"

    def _live_result(
        self,
        name: str,
        arguments: Sequence[Argument],
        live: Sequence[Origin],
        weighed: Mapping[str, tuple[Use, frozenset[int]]],
    ) -> Origin:
        """What an operation on live tensors yields."""
        first = live[0]
        carriers = frozenset(name for a in arguments if not a.origin.live for name in a.origin.parameters)

        # One live tensor in another form, rotated, or under a mask is what it was.
        if not carriers and (name in FORM or name in ("mul", "div", "neg")):
            real = [origin for origin in live if not origin.is_bare]
            if len(live) == 1 or (len(real) == 1 and name in ("mul", "div") and not real[0].trait.endswith("spread")):
                kept = first if len(live) == 1 else real[0]
                return kept if name in _COPIES or name not in FORM else replace(kept, weighed={})
        if not carriers and name in _REJOINS and len({origin.source for origin in live}) == 1 and first.source:
            return replace(first, weighed={})

        made_of = modulated(arguments) if name in FORM or name in ("mul", "div", "add") else {}
        fresh = Origin(made_of, live=True, source=self._new_source())
        traits = [origin.trait for origin in live]
        if (name == "mul" and "inverse-spread" in traits) or (name == "div" and traits[-1] == "spread"):
            for parameter in first.scaled_by:
                self._settle_gain(parameter)
            before = next((trait for trait in traits if not trait.endswith("spread")), "activation")
            result = replace(fresh, trait="normalised", normalised=first.normalised if first.scaled_by else before)
            return self._normed(result, first.scaled_by) if first.scaled_by else result
        if name in NORMALISING:
            gains = frozenset(p for a in arguments if a.slot == "weight" for p in a.origin.parameters)
            return self._normed(replace(fresh, trait="normalised", normalised=traits[0]), gains)

        if name == "mul" and carriers:
            before = first.normalised if "normalised" in traits else first.trait
            scaled = replace(fresh, trait="activation", scaled_by=first.scaled_by | carriers, normalised=before)
            scaled = replace(scaled, weighed={**first.weighed, **weighed})
            return self._normed(scaled, carriers) if "normalised" in traits else scaled

        bare = not carriers and all(origin.is_bare for origin in live)
        result = replace(fresh, trait=trait_of(name, live, arguments), is_bare=bare)
        if name in TERMS and carriers:  # a bias changes no trait, and is a norm's own shift
            trait = first.trait if set(traits) == {"projection"} else result.trait
            summed = {
                name: sum(size > 1 for size in distinct(a.tensor))
                for a in arguments
                if not a.origin.live
                for name in a.origin.parameters
            }
            return replace(result, trait=trait, summed=summed, gains=first.gains, normalised=first.normalised)
        if len(live) == 1 and name in TERMS | GATES:
            return replace(result, summed=first.summed)
        if name in TERMS:  # a sum of weighted things is still to be summed
            return replace(result, weighed={key: use for origin in live for key, use in origin.weighed.items()})
        return result

    def _note_attended(self, args: Sequence[Any], argument: Argument) -> None:
        for parameter in attended(args, argument):
            # A single row weighs features as well as it may ask for them.
            if any(use.operation in PRODUCTS and use.rows > 1 for use in self.uses[parameter]):
                self._note(parameter, Use(ATTENDED, "query", "scores", ""))

    # --- norms: which gain, of what, before what

    def _normed(self, result: Origin, gains: frozenset[str]) -> Origin:
        for parameter in gains:
            self._note(parameter, Use(AROUND_NORM, "before", result.normalised or "activation", ""))
        self._last_gains = gains or self._last_gains
        return replace(result, gains=gains)

    def _note_after_norm(self, name: str, arguments: Sequence[Argument]) -> None:
        for own in arguments:
            others = [a.origin for a in arguments if a is not own]
            meets = any(o.live and not o.is_bare for o in others)
            if not own.origin.gains or (name in ("mul", "div", "neg") and not meets):
                continue
            if name in _REJOINS and all(not o.live or o.source == own.origin.source for o in others):
                continue

            after = "other"
            if "scaled_dot_product" in name or "_flash_attention" in name:
                after = "scores" if own.slot in ("query", "key") else "product"
            elif name in PRODUCTS:
                after = "scores" if any(o.live and not o.parameters for o in others) else "product"
            elif "conv" in name:
                after = "product"
            elif name in TERMS:
                after = "residual"
            for parameter in own.origin.gains:
                self._note(parameter, Use(AROUND_NORM, "after", after, ""))

    # --- what is known only later

    def _settle_gain(self, parameter: str) -> None:
        """`w * x * rsqrt(…)` multiplies by the gain first: what it met is known only now."""
        uses = self.uses[parameter]
        self.uses[parameter] = {use._replace(partner="normalised") if use.operation == "mul" else use for use in uses}

    def _settle_weighted_sums(self, arguments: Sequence[Argument], args: Sequence[Any]) -> None:
        """`(x * w).sum(-1)` is `x @ w`: a product if the sum goes over axes along which `w` varies, and no others.

        A sum over everything may as well be a loss, and tells nothing.
        """
        if not arguments or not arguments[0].origin.weighed:
            return
        axes = args[1] if len(args) > 1 else None
        summed = [axes] if isinstance(axes, int) else axes or []
        count = arguments[0].tensor.dim()
        over = {axis if axis < 0 else axis - count for axis in summed}
        for parameter, (use, varies) in arguments[0].origin.weighed.items():
            if over and over <= varies and len(over) < count:
                self.uses[parameter].discard(use)
                place = self._place(parameter, arguments[0].tensor) if use.rows > 2 else "matrix"
                self._note(parameter, use._replace(operation=WEIGHTED_SUM, slot="weight", geometry=place))

    def _settle_tables(self, name: str, arguments: Sequence[Argument]) -> None:
        """A table that the input is added to, and whose pieces then scale or shift another activation, modulates it.

        Positions are added to activations that go on; a modulation is itself broadcast over the activation.
        """
        if name not in ("mul", "add") or len(arguments) < 2:
            return
        for own in arguments:
            partner = next((a for a in arguments if a is not own and a.origin.live), None)
            if partner is None or not own.origin.summed or partner.origin.is_bare:
                continue
            if own.tensor.numel() < partner.tensor.numel():
                for parameter, rows in own.origin.summed.items():
                    self._note(parameter, Use(MODULATION, name, partner.origin.trait, "", rows=rows))


def _is_spread(name: str, carriers: Sequence[Argument], shape: tuple[int, ...]) -> bool:
    """Whether a parameter is multiplied with a larger constant: a scale of it, or of a part of it."""
    return name in FACTORS and any(prod(distinct(a.tensor)) < prod(shape) for a in carriers)


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
            path = (through + more)[:LONGEST_PATH]
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
    form, is_gate = distinct(own.tensor), not GATES.isdisjoint(through)
    if name in FACTORS and is_gate and any(GATES.isdisjoint(path) for a in arguments for path in _paths(a, own)):
        return True  # a mask of the weight, however large
    if name not in FACTORS | TERMS or len(arguments) < 2 or prod(form) >= prod(shape):
        return False
    is_vector = sum(size > 1 for size in form) < 2
    by_constant = all(a is own or not a.origin.parameters for a in arguments)
    return is_vector or by_constant or is_gate


def _paths(other: Argument, own: Argument) -> Iterable[tuple[str, ...]]:
    """The steps from each parameter in another argument."""
    return () if other is own else other.origin.parameters.values()
