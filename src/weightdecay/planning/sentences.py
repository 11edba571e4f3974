"""What verdicts rest on, and why a tensor takes its share of λ, in words: where evidence becomes prose."""

from __future__ import annotations

import math
from collections.abc import Sequence

from weightdecay.planning.evidence.marks import Mark
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
from weightdecay.planning.policies.author_rates import AuthorRates
from weightdecay.planning.policies.overrides import Override
from weightdecay.planning.policies.role_policies import Decision
from weightdecay.planning.roles.from_use import rows_and_columns
from weightdecay.planning.roles.roles import (
    DISPUTED,
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
    "looked-up": "looked-up embeddings", "spectrum": "a spectrum", "attention": "attention weights",
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


def in_words(
    verdicts: Sequence[Verdict],
    decision: Decision,
    author: AuthorRates,
    override: Override | None,
    *,
    decay: bool,
    lr: bool,
    against: bool,
) -> tuple[str, str]:
    """(what the verdicts on a tensor rest on; what decided about λ, and what else was said).

    The ruling role itself stands before the second.

    Args:
        author: what the marks on the tensor come to.
        override: the user's, if one says shares.
        decay, lr: whether that override decides about λ, about η.
        against: whether it says otherwise than the author about λ.
    """
    seen = [evidence(verdict) for verdict in verdicts]
    said = []
    if override is not None and (decay or (lr and author.on_lr)):
        said.append(_by_override(override, (author.on_decay if against else ()) + (author.on_lr if lr else ())))
    elif not author.on_decay:
        ruling = [words for words, verdict in zip(seen, verdicts, strict=True) if verdict is decision.ruling]
        said.append(_by_policy(decision, *ruling[:1]))
    if decision.marks:
        said += [_by_author(author, decay=not decay, lr=not lr), _unread(decision.marks)]
    return "; ".join(seen), "; ".join(filter(None, said))


def _by_policy(decision: Decision, seen: str = "") -> str:
    if decision.ruling is None:
        return decision.reason

    why = decision.reason or seen
    others = [str(verdict.role) for verdict in decision.others]
    if others and decision.ruling.role in (Role.FROZEN, Role.UNREACHED):
        why += f"; if trained, it would decay as {' and '.join(others)}"
    elif others:
        why += f"; also {' and '.join(others)}, but one exempt role exempts a tied tensor"
    if decision.multiplier == 0.0 and decision.ruling.role in DISPUTED:
        why += "; opinions differ on whether such tensors should decay"
    return why


def _by_author(author: AuthorRates, *, decay: bool, lr: bool) -> str:
    """What the model's author says about λ and η, of those that count; empty if nothing."""
    said: dict[str, list[str]] = {}
    if decay and author.on_decay:
        said.setdefault(_where(author.on_decay), []).append(_λ(author))
    if lr and author.on_lr:
        said.setdefault(_where(author.on_lr), []).append(_η(author))
    return "; ".join(f"{', '.join(rates)} by its author: {where}" for where, rates in said.items())


def _λ(author: AuthorRates) -> str:
    if author.share == 0.0 or author.weight_decay == 0.0:
        return "exempt"
    return f"{author.share:g} of λ" if author.weight_decay is None else f"λ {author.weight_decay:g}"


def _η(author: AuthorRates) -> str:
    return f"lr × {author.lr_share:g}" if author.lr is None else f"lr {author.lr:g}"


def _by_override(override: Override, against: Sequence[Mark]) -> str:
    """What a user says, and which marks of the author that overrules."""
    why = f"override '{override.pattern}'" + (f": {override.reason}" if override.reason else "")
    return f"{why}; it goes before {_where(against)}, by which the author says otherwise" if against else why


def _unread(marks: Sequence[Mark]) -> str:
    """What marks say that no plan carries; empty for most."""
    left = [f"{mark.where} also says {', '.join(mark.unread)}" for mark in marks if mark.unread]
    return f"{'; '.join(left)}, which a plan does not carry: set it in the group" if left else ""


def _where(marks: Sequence[Mark]) -> str:
    return " and ".join(dict.fromkeys(mark.where for mark in marks))
