"""From facts to verdicts: the evidence in order of strength, and all jobs of a tied tensor."""

from __future__ import annotations

from collections.abc import Sequence

from weightdecay.planning.jobs import agreeing, by_use, embedding_role
from weightdecay.planning.roles import Role, Strength, Verdict
from weightdecay.planning.structure import by_name, by_shape, by_torch_type
from weightdecay.planning.tensors import Site, TensorFacts


def classify(tensors: Sequence[TensorFacts]) -> list[tuple[Verdict, ...]]:
    """The verdicts on each tensor, one per job; a frozen tensor's first verdict says that it is frozen."""
    return [_with_frozen(facts, _verdicts(facts)) for facts in tensors]


def _verdicts(facts: TensorFacts) -> tuple[Verdict, ...]:
    return agreeing([_at(site, facts) for site in facts.sites])


def _at(site: Site, facts: TensorFacts) -> Verdict:
    typed = by_torch_type(site, facts)
    if typed is not None:
        return (embedding_role(facts) if typed.role is Role.EMBEDDING else None) or typed
    return by_use(facts) or by_name(site, facts) or by_shape(facts)


def _with_frozen(facts: TensorFacts, verdicts: tuple[Verdict, ...]) -> tuple[Verdict, ...]:
    if facts.trainable:
        return verdicts
    why = f"holds {facts.dtype}" if "int" in facts.dtype else "`requires_grad` is False"
    return (Verdict(Role.FROZEN, f"{why}: no optimizer moves it", Strength.TYPE), *verdicts)
