"""Products of a parameter with the input, followed to where they are weighed against each other.

`softmax(q @ kᵀ)` over what the input gave tells a learned query from a matrix, which is multiplied in the same way.
Which axes of a product the input gave is followed through all that only changes its form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from weightdecay.planning.evidence.axes import Axes, Change, moved
from weightdecay.planning.evidence.origins import Argument, Step
from weightdecay.planning.evidence.uses import ATTENDED, FORM, PRODUCTS, SOFTMAX, Use

_LEFT, _RIGHT = frozenset({"self", "mat1", "batch1"}), frozenset({"mat2", "batch2"})
_KEEP = frozenset({"mul", "div", "add", "sub", "masked_fill", "where"})  # scaled, and with masks
_FORM_OR_KEEP = FORM | _KEEP

Scored = dict[str, Axes]
"""Parameters that a tensor is a product of, with its axes along which the input lies; none if that was lost."""


def note_attended(steps: Sequence[Step], uses: dict[str, set[Use]]) -> None:
    """Note which parameters ask as a learned query does: attention weighs their products with what the input gave."""
    weighed = _weighed(steps)
    scored: dict[int, Scored] = {}
    for operation, arguments, _, origin in steps if weighed else ():
        along: Scored = {}
        before = next(((a, scored[a.tensor]) for a in arguments if a.tensor in scored), None) if scored else None
        if origin.live and before is not None and operation.name in SOFTMAX:
            _note(operation.axes[0], *before, uses)
        elif origin.live and not weighed.isdisjoint([result.tensor for result in operation.results]):
            if operation.name in PRODUCTS:
                along = _of_product(arguments)
            elif before is not None and operation.name in _FORM_OR_KEEP:
                change = Change(operation.name, operation.axes, before[0].shape, operation.results[0].shape)
                along = {parameter: moved(axes, (change,)) for parameter, axes in before[1].items()}
        for result in operation.results:
            if along:
                scored[result.tensor] = along
            else:
                scored.pop(result.tensor, None)


def _weighed(steps: Sequence[Step]) -> set[int]:
    """The tensors that end in a softmax, as far back as to a product: no others need be followed."""
    found: set[int] = set()
    for operation, _, live, _ in reversed(steps):
        if operation.name in SOFTMAX:
            found.update([a.tensor for a in live[:1]])
        elif operation.name in _FORM_OR_KEEP and found and not found.isdisjoint([r.tensor for r in operation.results]):
            found.update([a.tensor for a in live])
    return found


def _note(axis: int, argument: Argument, scored: Scored, uses: Mapping[str, set[Use]]) -> None:
    """A softmax along the last axis, if that is one along which the input lies."""
    if axis not in (-1, len(argument.shape) - 1):
        return
    for parameter, axes in scored.items():
        # A single row weighs features as well as it may ask for them.
        if -1 in axes and any(use.operation in PRODUCTS and use.rows > 1 for use in uses[parameter]):
            uses[parameter].add(Use(ATTENDED, "query", "scores", ""))


def _of_product(arguments: Sequence[Argument]) -> Scored:
    """For parameters that a product is made of, its axes along which the input lies."""
    factors = [a for a in arguments if a.slot in _LEFT | _RIGHT]
    # What mixes the scores of several heads is no query of theirs.
    if not any(a.origin.live and a.origin.trait != "scores" for a in factors):
        return {}
    return {
        parameter: frozenset({-1 if own.slot in _LEFT else -2})
        for own in factors
        if not own.origin.live
        for parameter, through in own.origin.parameters.items()
        if PRODUCTS.isdisjoint(through)  # what a layer made of tokens is told by how they met the layer
    }
