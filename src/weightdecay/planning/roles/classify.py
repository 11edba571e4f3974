"""From facts to verdicts: the evidence in order of strength, and all jobs of a tied tensor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from weightdecay.planning.evidence.tensors import Site, TensorFacts
from weightdecay.planning.evidence.uses import AROUND_NORM, ATTENDED, Use
from weightdecay.planning.patterns import INDEX
from weightdecay.planning.roles.from_name import by_names
from weightdecay.planning.roles.from_type import by_types
from weightdecay.planning.roles.from_use import by_use, norm_place
from weightdecay.planning.roles.roles import (
    DECAYING,
    BySister,
    ByType,
    ByUse,
    Fixed,
    NormPlace,
    Role,
    Strength,
    Verdict,
)

_ADDED = frozenset({Role.BIAS, Role.POSITION_EMBEDDING, Role.RELATIVE_POSITION})  # sums look alike
_TABLES = frozenset({Role.POSITION_EMBEDDING, Role.RELATIVE_POSITION, Role.LEARNED_TOKEN})
_PARTS_OF_RECURRENCES = frozenset({Role.STATE_SPACE, Role.SCALE, Role.BIAS})

Verdicts = tuple[Verdict, ...]


def classify(tensors: Sequence[TensorFacts]) -> list[Verdicts]:
    """The verdicts on each tensor, one per job; one that training does not move is said to be so first."""
    verdicts = _by_evidence(tensors)
    owners = [facts.name.rpartition(".")[0] for facts in tensors]
    verdicts = _with_neighbours(tensors, owners, verdicts)
    verdicts = _with_sisters(tensors, verdicts)
    verdicts = _with_final_norm(tensors, verdicts)
    return [_with_fixed(facts, found) for facts, found in zip(tensors, verdicts, strict=True)]


def _by_evidence(tensors: Sequence[TensorFacts]) -> list[Verdicts]:
    """Each kind of evidence in turn: use goes before type, type before name, and name before shape."""
    used = [by_use(facts) for facts in tensors]
    norms = [norm_place(facts) for facts in tensors]
    typed = [by_types(facts) for facts in tensors]
    known = [
        [_by_use_or_type(site, use, kind) for site, kind in zip(facts.sites, kinds, strict=True)]
        for facts, use, kinds in zip(tensors, used, typed, strict=True)
    ]
    named = by_names(tensors, known)
    return [_of_tensor(facts, norm, verdicts) for facts, norm, verdicts in zip(tensors, norms, named, strict=True)]


def _of_tensor(facts: TensorFacts, norm: NormPlace | None, verdicts: Sequence[Verdict]) -> Verdicts:
    """Each role once, the first verdict kept, with what holds for all verdicts on the tensor."""
    found: dict[Role, Verdict] = {}
    for site, verdict in zip(facts.sites, verdicts, strict=True):
        if verdict.role is Role.NORM_GAIN:
            verdict = replace(verdict, norm=norm or _norm_by_type(site))
        if not site.owner or (facts.untold and verdict.strength < Strength.TRACED):
            untold = facts.untold if verdict.strength < Strength.TRACED else ""
            verdict = replace(verdict, is_bare=not site.owner, untold=untold)
        found.setdefault(verdict.role, verdict)
    return tuple(found.values())


def _by_use_or_type(site: Site, used: tuple[Role, Use] | None, typed: ByType | None) -> Verdict | None:
    """Where both speak and agree, type has the more exact word; where they do not, use decides and is contested."""
    if used is None:
        return None if typed is None else Verdict(typed.role, Strength.TYPE, typed)

    role, use = used
    seen = ByUse(site.attribute, site.owner, use)
    if typed is None or (typed.role is Role.EMBEDDING and role in _TABLES):
        return Verdict(role, Strength.TRACED, seen)
    # Of what opinions differ on anyhow, the author's choice of a linear layer is one; and one that scores what the
    # input gave does what a query does.
    if typed.role is Role.LINEAR and (role is Role.RELATIVE_POSITION or use.operation == ATTENDED):
        return Verdict(typed.role, Strength.TRACED, replace(seen, typed=typed))
    if (typed.role in DECAYING) == (role in DECAYING) or {role, typed.role} <= _ADDED:
        return Verdict(typed.role, Strength.TRACED, replace(seen, typed=typed))
    return Verdict(role, Strength.TRACED, seen, contested_by=typed)


def _norm_by_type(site: Site) -> NormPlace | None:
    if "GroupNorm" in site.bases:
        return NormPlace.GROUP
    return NormPlace.BATCH if any("BatchNorm" in base for base in site.bases) else None


def _with_neighbours(
    tensors: Sequence[TensorFacts], owners: Sequence[str], verdicts: Sequence[Verdicts]
) -> list[Verdicts]:
    """Vectors beside the time constants or mixes of a module are parts of the same recurrence, as `D` and `dt_bias`."""
    recurrences: dict[str, Role] = {}
    for owner, found in zip(owners, verdicts, strict=True):
        if found[0].role in (Role.STATE_SPACE, Role.TIME_MIX) and recurrences.get(owner) is not Role.TIME_MIX:
            recurrences[owner] = found[0].role

    settled = []
    for facts, owner, found in zip(tensors, owners, verdicts, strict=True):
        role = recurrences.get(owner)
        belongs = role is not None and not facts.sites[0].bases and found[0].role in _PARTS_OF_RECURRENCES
        settled.append((replace(found[0], role=role), *found[1:]) if role is not None and belongs else found)
    return settled


def _with_sisters(tensors: Sequence[TensorFacts], verdicts: Sequence[Verdicts]) -> list[Verdicts]:
    """The same attribute of the same class does the same everywhere: what is known of one is known of all.

    Where names or shapes alone would tell sisters apart, nobody knows, and all of them are unknown.
    """
    sisters: dict[object, list[int]] = defaultdict(list)
    for number, facts in enumerate(tensors):
        site = facts.sites[0]
        if site.owner and not site.is_torchs:
            sisters[site.owner, site.attribute, site.original, len(facts.shape)].append(number)

    settled = list(verdicts)
    for numbers in sisters.values():
        best = max(numbers, key=lambda number: verdicts[number][0].strength)
        known = verdicts[best][0]
        weak = [number for number in numbers if verdicts[number][0].strength < Strength.TYPE]
        if known.strength >= Strength.TYPE and known.role is not Role.UNKNOWN:
            for number in weak:
                told = BySister(tensors[best].name, known.source)
                settled[number] = (replace(known, source=told, untold=verdicts[number][0].untold),)
        elif len({verdicts[number][0].role in DECAYING for number in weak}) > 1:
            for number in weak:
                settled[number] = (replace(verdicts[number][0], role=Role.UNKNOWN),)
    return settled


def _with_final_norm(tensors: Sequence[TensorFacts], verdicts: Sequence[Verdicts]) -> list[Verdicts]:
    """The norm that a whole forward came to last, if it is the only one of its name: those of blocks have sisters."""
    alike: dict[str, int] = defaultdict(int)
    for facts in tensors:
        alike[INDEX.sub("#", facts.name)] += 1
    return [
        (replace(found[0], norm=NormPlace.FINAL), *found[1:])
        if found[0].norm not in (None, NormPlace.GROUP, NormPlace.BATCH)
        and alike[INDEX.sub("#", facts.name)] == 1
        and any(use.operation == AROUND_NORM and use.slot == "order" for use in facts.uses or ())
        else found
        for facts, found in zip(tensors, verdicts, strict=True)
    ]


def _with_fixed(facts: TensorFacts, verdicts: Verdicts) -> Verdicts:
    if not facts.trainable:
        why = f"holds {facts.dtype}" if "int" in facts.dtype else "`requires_grad` is False"
        return (Verdict(Role.FROZEN, Strength.TYPE, Fixed(f"{why}: no optimizer moves it")), *verdicts)
    if facts.unreached:
        return (Verdict(Role.UNREACHED, Strength.TRACED, Fixed(facts.unreached)), *verdicts)
    return verdicts
