"""From facts to verdicts: the evidence in order of strength, and all jobs of a tied tensor."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

from weightdecay.planning.evidence.tensors import Site, TensorFacts
from weightdecay.planning.roles.from_type_and_name import (
    by_name,
    by_shape,
    by_torch_type,
    kind_of_matrix,
    kind_of_table,
)
from weightdecay.planning.roles.from_use import agreeing, by_use
from weightdecay.planning.roles.roles import DECAYING, Role, Strength, Verdict

_ADDED = frozenset({Role.BIAS, Role.POSITION_EMBEDDING, Role.RELATIVE_POSITION})  # sums look alike
_TABLES = frozenset({Role.POSITION_EMBEDDING, Role.RELATIVE_POSITION, Role.LEARNED_TOKEN})
_PARTS_OF_RECURRENCES = frozenset({Role.STATE_SPACE, Role.SCALE, Role.BIAS})


def classify(tensors: Sequence[TensorFacts]) -> list[tuple[Verdict, ...]]:
    """The verdicts on each tensor, one per job; a frozen tensor's first verdict says that it is frozen."""
    vocabularies = {facts.shape[0] for facts in tensors for site in facts.sites if "Embedding" in site.bases}
    verdicts = _with_neighbours(tensors, [_verdicts(facts, vocabularies) for facts in tensors])
    return [_with_frozen(facts, found) for facts, found in zip(tensors, verdicts, strict=True)]


def _with_neighbours(
    tensors: Sequence[TensorFacts], verdicts: Sequence[tuple[Verdict, ...]]
) -> list[tuple[Verdict, ...]]:
    """Vectors beside the time constants or mixes of a module are parts of the same recurrence, as `D` and `dt_bias`."""
    recurrences: dict[str, Role] = {}
    for facts, found in zip(tensors, verdicts, strict=True):
        if found[0].role in (Role.STATE_SPACE, Role.TIME_MIX) and recurrences.get(_owner(facts)) is not Role.TIME_MIX:
            recurrences[_owner(facts)] = found[0].role
    settled = []
    for facts, found in zip(tensors, verdicts, strict=True):
        role = recurrences.get(_owner(facts))
        belongs = role is not None and not facts.sites[0].bases and found[0].role in _PARTS_OF_RECURRENCES
        settled.append((replace(found[0], role=role), *found[1:]) if role is not None and belongs else found)
    return settled


def _owner(facts: TensorFacts) -> str:
    return facts.name.rpartition(".")[0]


def _verdicts(facts: TensorFacts, vocabularies: AbstractSet[int]) -> tuple[Verdict, ...]:
    return agreeing([_at(site, facts, vocabularies) for site in facts.sites])


def _at(site: Site, facts: TensorFacts, vocabularies: AbstractSet[int]) -> Verdict:
    used, typed = by_use(facts), by_torch_type(site, facts)
    if used is not None:
        used = replace(used, evidence=f"`{site.attribute}` of {site.owner}; {used.evidence}")
    verdict = _together(used, typed) or by_name(site, facts) or by_shape(facts)
    if not site.owner:
        verdict = replace(verdict, evidence=f"{verdict.evidence} (weak: nothing but name and shape is known)")
    verdict = kind_of_table(verdict, site, facts)
    return kind_of_matrix(verdict, site, facts, vocabularies) if verdict.role is Role.LINEAR else verdict


def _together(used: Verdict | None, typed: Verdict | None) -> Verdict | None:
    """Use goes before type. Where they agree, type has the more exact word for it; where not, the evidence says so."""
    if used is None or typed is None:
        return used or typed
    if typed.role is Role.EMBEDDING and used.role in _TABLES:
        return used
    traced = used.evidence.partition("; ")[2]
    if (used.role in DECAYING) == (typed.role in DECAYING) or {used.role, typed.role} <= _ADDED:
        return replace(typed, evidence=f"{typed.evidence}; {traced}", strength=used.strength)
    evidence = f"{typed.evidence} and so {typed.role}, but {traced}"
    return replace(used, evidence=evidence, contested=True)


def _with_frozen(facts: TensorFacts, verdicts: tuple[Verdict, ...]) -> tuple[Verdict, ...]:
    if facts.trainable:
        return verdicts
    why = f"holds {facts.dtype}" if "int" in facts.dtype else "`requires_grad` is False"
    return (Verdict(Role.FROZEN, f"{why}: no optimizer moves it", Strength.TYPE), *verdicts)
