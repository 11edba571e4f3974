"""Where norms stand: what each normalises, and what its result goes into.

Read from the steps of a forward, once it is known where their tensors come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from weightdecay.planning.evidence.origins import Argument, Step
from weightdecay.planning.evidence.uses import AROUND_NORM, FORM, MASKS, NORMALISING, PRODUCTS, REJOINS, TERMS, Use


class _Normed(NamedTuple):
    """Of a live tensor: the gains of the norm whose result it is, and what kind of tensor was normalised for it."""

    gains: frozenset[str]
    before: str


_NOTHING = _Normed(frozenset(), "")
_BEGINNINGS = NORMALISING | {"mul", "div"}  # a norm written out ends in a multiplication or a division


def note_places_of_norms(steps: Sequence[Step], uses: dict[str, set[Use]], *, is_whole: bool) -> None:
    """Note of each gain what was normalised for it, and what took the result; of the last ones that they are."""
    known: dict[int, _Normed] = {}
    last: frozenset[str] = frozenset()
    for step in steps:
        name, normed, is_norm = step.operation.name, _NOTHING, False
        taken = [known[a.tensor] for a in step.live if a.tensor in known] if known else []
        if taken and name not in FORM:
            _note_after(name, step, known, uses)
        if (taken or name in _BEGINNINGS) and step.live and step.origin.live:
            is_norm, normed = _result(step, known)
        if is_norm:
            last = normed.gains or last
            for parameter in normed.gains:
                uses[parameter].add(Use(AROUND_NORM, "before", normed.before or "activation", ""))
        for result in step.operation.results:
            if normed is _NOTHING:
                known.pop(result.tensor, None)
            else:
                known[result.tensor] = normed
    for parameter in last if is_whole else ():
        uses[parameter].add(Use(AROUND_NORM, "order", "last", ""))


def _result(step: Step, known: Mapping[int, _Normed]) -> tuple[bool, _Normed]:
    """Whether a norm ends here, and what is known of the result."""
    name, live, origin = step.operation.name, step.live, step.origin
    for argument in live:
        if argument.origin.source == origin.source != 0:  # only another form of what it was
            return False, known.get(argument.tensor, _NOTHING)

    first = known.get(live[0].tensor, _NOTHING)
    traits = [a.origin.trait for a in live]
    if name in NORMALISING:
        gains = frozenset([p for a in step.arguments if a.slot == "weight" for p in a.origin.parameters])
        return True, _Normed(gains, traits[0])
    if origin.trait == "normalised" and name in ("mul", "div"):  # by its spread
        if scaled_by := live[0].origin.scaled_by:
            return True, _Normed(scaled_by, first.before)
        return False, _Normed(frozenset(), next((t for t in traits if not t.endswith("spread")), "activation"))

    carriers = frozenset([p for a in step.arguments if not a.origin.live for p in a.origin.parameters])
    if name == "mul" and carriers:
        is_gain = "normalised" in traits
        return is_gain, _Normed(carriers if is_gain else frozenset(), first.before if is_gain else traits[0])
    return False, first if name in TERMS and carriers else _NOTHING  # a shift is the norm's own


def _note_after(name: str, step: Step, known: Mapping[int, _Normed], uses: dict[str, set[Use]]) -> None:
    for own in step.live:
        normed = known.get(own.tensor, _NOTHING)
        if not normed.gains:
            continue
        others = [a.origin for a in step.arguments if a is not own]
        if (name in MASKS or name == "neg") and not [o for o in others if o.live and not o.is_bare]:
            continue
        if name in REJOINS and not [o for o in others if o.live and o.source != own.origin.source]:
            continue
        for parameter in normed.gains:
            uses[parameter].add(Use(AROUND_NORM, "after", _kind_of_taker(name, own, step.arguments), ""))


def _kind_of_taker(name: str, own: Argument, arguments: Sequence[Argument]) -> str:
    """What takes a norm's result: the scores of attention, another product, the residual stream, or something else."""
    if "scaled_dot_product" in name or "_flash_attention" in name:
        return "scores" if own.slot in ("query", "key") else "product"
    if name in PRODUCTS:
        is_weight = [bool(a.origin.parameters) for a in arguments if a is not own and a.origin.live]
        return "product" if all(is_weight) else "scores"
    if "conv" in name:
        return "product"
    return "residual" if name in TERMS else "other"
