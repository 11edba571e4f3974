"""What verdicts rest on, in words: the only place where evidence becomes prose."""

from __future__ import annotations

import math

from weightdecay.planning.evidence.uses import (
    BIAS_SLOTS,
    FACTORS,
    JOINS,
    LOOKUPS,
    MODULATION,
    NORMALISING,
    PRODUCTS,
    Use,
)
from weightdecay.planning.roles.from_use import rows_and_columns
from weightdecay.planning.roles.roles import (
    ByName,
    ByShape,
    BySister,
    ByType,
    ByUse,
    Fixed,
    Given,
    Role,
    Source,
    Verdict,
)

_SETTLED = {
    "adapter": ", under the name of an adapter",
    "tied": ", tied to the embedding",
    "head": ": one row per token, and named so",
    "router": ", named a router",
}
_PLACES = {"number": ", as one number", "vector": ", one number per feature"}
_VERBS = {"mul": "multiplies", "div": "divides or is divided by", "add": "is added to", "sub": "is subtracted with"}
_PARTNERS = {
    "input": "the input", "parameter": "another parameter", "constant": "a constant",
    "normalised": "a normalised activation", "projection": "a projection", "scores": "attention scores",
    "looked-up": "looked-up embeddings", "spectrum": "a spectrum",
}  # fmt: skip
_STEPS = {
    "add": "a sum", "mul": "a product", "rsub": "1 − w", "neg": "a change of sign", "_softmax": "softmax",
    "modulation": "modulation by the input", "mm": "a matrix product", "embedding": "a look-up",
    "routed": "a choice of rows", "spread": "being repeated",
}  # fmt: skip


def evidence(verdict: Verdict) -> str:
    """What a verdict rests on, for people."""
    text = _seen(verdict)
    if verdict.settled_by is not None:
        how, name = verdict.settled_by
        text += f", named `{name}`" if how == "named" else _SETTLED[how]
    if verdict.is_bare:
        text += " (weak: nothing but name and shape is known)"
    if verdict.untold:
        text += f" (the batch did not show it: {verdict.untold})"
    return text


def _seen(verdict: Verdict) -> str:
    source, typed = verdict.source, verdict.contested_by
    if typed is not None and isinstance(source, ByUse):
        return f"{_of(typed)} and so {typed.role}, but {traced(source.use)}"
    if isinstance(source, ByShape) and verdict.role is Role.UNKNOWN:
        return f"shape {list(source.shape)}, and neither its use, its owner nor its name says more"
    return _told(source)


def _told(source: Source) -> str:
    match source:
        case ByUse(attribute, owner, use, typed):
            return f"{_of(typed) if typed else f'`{attribute}` of {owner}'}; {traced(use)}"
        case ByType():
            return _of(source)
        case ByName():
            return _by_name(source)
        case ByShape(shape):
            return _by_shape(shape)
        case BySister(sister, known):
            return f"as its sister {sister}: {_told(known)}"
        case Fixed(why):
            return why
        case Given(pattern, reason):
            return f"override '{pattern}'" + (f": {reason}" if reason else "")


def _of(typed: ByType) -> str:
    owner = typed.owner if typed.kind == typed.owner else f"{typed.owner}, a torch.nn.{typed.kind}"
    return f"`{typed.attribute}` of {owner}"


def _by_name(source: ByName) -> str:
    shape = list(source.shape)
    match source.how:
        case "norm":
            return f"`{source.name}` of {source.owner}: a vector in a norm, by its name"
        case "sinusoidal":
            return f"`{source.name}` of {source.owner}: sinusoidal, by its name"
        case "misfit":
            return f"named `{source.name}`, but no such thing has shape {shape}"
        case _:
            return f"named `{source.name}`, shape {shape}"


def _by_shape(shape: tuple[int, ...]) -> str:
    longer = rows_and_columns(shape)
    if not longer:
        return f"shape {list(shape)}: a single number, by shape alone"
    if len(longer) == 1:
        return f"shape {list(shape)}: one number per feature, by shape alone"
    return f"shape {list(shape)}: a matrix of {math.prod(shape):,} elements, by shape alone"


def traced(use: Use) -> str:
    """One use in words."""
    steps = dict.fromkeys(_STEPS.get(step, step.strip("_")) for step in use.through)
    before = f"after {', '.join(steps)} " if steps else ""
    where = _PLACES.get(use.geometry, "") if use.operation in FACTORS else ""
    return f"traced: {before}{_verb(use)}{where}"


def _verb(use: Use) -> str:
    partner = _PARTNERS.get(use.partner, "an activation")
    operation = use.operation.removeprefix("native").strip("_").replace("_", " ")
    if (use.operation, use.slot) in BIAS_SLOTS:
        return "is added to a matrix product"
    if use.operation in PRODUCTS:
        which = "one matrix of many" if use.geometry == "stack" else "a matrix"
        return f"multiplies {partner} as {which}"
    if use.operation in LOOKUPS:
        by = {"constant": "fixed indices", "activation": "indices"}.get(use.partner, partner)
        return f"is looked up by {by}"
    if use.operation in NORMALISING:
        return {"weight": "is the gain of", "bias": "is the shift of"}.get(use.slot, "enters") + f" a {operation}"
    if use.operation == MODULATION:
        return f"{'scales' if use.slot == 'mul' else 'shifts'} {partner} with what the input added to it"
    if "conv" in use.operation and use.slot in ("weight", "bias"):
        return f"convolves {partner}" if use.slot == "weight" else "is added to a convolution"
    if use.operation in _VERBS:
        return f"{_VERBS[use.operation]} {partner}"
    if use.operation in JOINS:
        return f"is joined ({operation}) with {partner}"
    return f"is `{use.slot}` of {operation}, with {partner}"
