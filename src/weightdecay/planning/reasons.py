"""Why a tensor takes the share of λ that it takes, in words; what the evidence is, `sentences.py` says."""

from __future__ import annotations

from collections.abc import Sequence

from weightdecay.planning.evidence.marks import Mark
from weightdecay.planning.policies.author_rates import AuthorRates
from weightdecay.planning.policies.overrides import Override
from weightdecay.planning.policies.role_policies import Decision
from weightdecay.planning.roles.roles import DISPUTED, Role


def why(
    decision: Decision,
    seen: str,
    author: AuthorRates,
    override: Override | None,
    *,
    decay: bool,
    lr: bool,
    against: bool,
) -> str:
    """What decided, in words: first about λ, then what else was said; the ruling role itself stands before it.

    Args:
        seen: what the ruling verdict rests on, in words.
        author: what the marks on the tensor come to.
        override: the user's, if one says shares.
        decay, lr: whether that override decides about λ, about η.
        against: whether it says otherwise than the author about λ.
    """
    said = []
    if override is not None and (decay or (lr and author.on_lr)):
        said.append(_by_override(override, (author.on_decay if against else ()) + (author.on_lr if lr else ())))
    elif not author.on_decay:
        said.append(_by_policy(decision, seen))
    if decision.marks:
        said += [_by_author(author, decay=not decay, lr=not lr), _unread(decision.marks)]
    return "; ".join(filter(None, said))


def _by_policy(decision: Decision, seen: str) -> str:
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
