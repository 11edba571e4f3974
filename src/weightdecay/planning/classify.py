"""From facts to verdicts: the evidence in order of strength, and all jobs of a tied tensor."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

from weightdecay.planning.jobs import agreeing, by_use, embedding_role
from weightdecay.planning.roles import DECAYING, Role, Strength, Verdict
from weightdecay.planning.structure import by_name, by_shape, by_torch_type, kind_of_matrix
from weightdecay.planning.tensors import Site, TensorFacts


def classify(tensors: Sequence[TensorFacts]) -> list[tuple[Verdict, ...]]:
    """The verdicts on each tensor, one per job; a frozen tensor's first verdict says that it is frozen."""
    vocabularies = {facts.shape[0] for facts in tensors for site in facts.sites if "Embedding" in site.bases}
    return [_with_frozen(facts, _verdicts(facts, vocabularies)) for facts in tensors]


def _verdicts(facts: TensorFacts, vocabularies: AbstractSet[int]) -> tuple[Verdict, ...]:
    return agreeing([_at(site, facts, vocabularies) for site in facts.sites])


def _at(site: Site, facts: TensorFacts, vocabularies: AbstractSet[int]) -> Verdict:
    typed, used = by_torch_type(site, facts), by_use(facts)
    if typed is not None and typed.role is Role.EMBEDDING:
        return embedding_role(facts) or typed
    if typed is not None:
        agrees = used is not None and (used.role in DECAYING) == (typed.role in DECAYING)
        verdict = replace(typed, evidence=f"{typed.evidence}; {used.evidence}") if used and agrees else typed
    elif used is not None:
        verdict = replace(used, evidence=f"`{site.attribute}` of {site.owner}; {used.evidence}")
    else:
        verdict = by_name(site, facts) or by_shape(facts)
    if not site.owner:
        verdict = replace(verdict, evidence=f"{verdict.evidence} (weak: nothing but name and shape is known)")
    return kind_of_matrix(verdict, site, facts, vocabularies) if verdict.role is Role.LINEAR else verdict


def _with_frozen(facts: TensorFacts, verdicts: tuple[Verdict, ...]) -> tuple[Verdict, ...]:
    if facts.trainable:
        return verdicts
    why = f"holds {facts.dtype}" if "int" in facts.dtype else "`requires_grad` is False"
    return (Verdict(Role.FROZEN, f"{why}: no optimizer moves it", Strength.TYPE), *verdicts)
