"""From facts to verdicts: the evidence in order of strength, and all jobs of a tied tensor."""

from __future__ import annotations

from collections.abc import Sequence

from weightdecay.planning.roles import Role, Strength, Verdict
from weightdecay.planning.structure import by_name, by_shape, by_torch_type
from weightdecay.planning.tensors import Site, TensorFacts


def classify(tensors: Sequence[TensorFacts]) -> list[tuple[Verdict, ...]]:
    """The verdicts on each tensor, one per job; a frozen tensor's first verdict says that it is frozen."""
    return [_with_frozen(facts, _verdicts(facts)) for facts in tensors]


def _verdicts(facts: TensorFacts) -> tuple[Verdict, ...]:
    found = [_at(site, facts) for site in facts.sites]
    return tuple({verdict.role: verdict for verdict in reversed(found)}.values())[::-1]


def _at(site: Site, facts: TensorFacts) -> Verdict:
    return by_torch_type(site, facts) or by_name(site, facts) or by_shape(facts)


def _with_frozen(facts: TensorFacts, verdicts: tuple[Verdict, ...]) -> tuple[Verdict, ...]:
    if facts.trainable:
        return verdicts
    why = f"holds {facts.dtype}" if "int" in facts.dtype else "`requires_grad` is False"
    return (Verdict(Role.FROZEN, f"{why}: no optimizer moves it", Strength.TYPE), *verdicts)
