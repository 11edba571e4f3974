"""The verdicts on every architecture of transformers 5.23 that builds from a small configuration, as recorded."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cache

import pytest

from tests.planning.skeletons import Skeleton, read
from weightdecay.planning.evidence.tensors import Site, TensorFacts
from weightdecay.planning.plan import plan_tensors
from weightdecay.planning.planned import PlannedTensor
from weightdecay.planning.policies.emulated import EMULATED
from weightdecay.planning.roles.roles import Role


@cache
def skeletons(kind: str) -> tuple[Skeleton, ...]:
    return tuple(read(kind))


@cache
def verdicts(kind: str) -> tuple[tuple[PlannedTensor, ...], ...]:
    return tuple(tuple(plan_tensors(model.tensors, unknown="exempt")) for model in skeletons(kind))


def wrong(model: Skeleton, lines: tuple[PlannedTensor, ...]) -> list[str]:
    return [
        line.name
        for line, label in zip(lines, model.labels, strict=True)
        if label != "disputed" and line.decays != (label == "decays")
    ]


@pytest.mark.parametrize(("kind", "models"), [("causal", 170), ("other", 300)])
def test_the_verdicts_are_the_ones_read_from_the_sources(kind: str, models: int) -> None:
    assert len(skeletons(kind)) >= models
    mistakes = {m.name: wrong(m, lines) for m, lines in zip(skeletons(kind), verdicts(kind), strict=True)}
    assert not {name: names for name, names in mistakes.items() if names}


@pytest.mark.parametrize("kind", ["causal", "other"])
def test_hardly_any_tensor_is_unknown(kind: str) -> None:
    lines = [line for plan in verdicts(kind) for line in plan]
    assert sum(Role.UNKNOWN in line.roles for line in lines) <= 0.0005 * len(lines)


@pytest.mark.parametrize("kind", ["causal", "other"])
def test_the_emulated_rule_of_transformers_is_its_trainers_on_every_tensor(kind: str) -> None:
    for model in skeletons(kind):
        emulated = [EMULATED["transformers"].decide(facts, ()).multiplier == 1.0 for facts in model.tensors]
        assert emulated == list(model.trainer_decays), model.name


def nonsense(text: str) -> str:
    return "q" + "".join("ghjkmnprtvwxyzbc"[int(digit, 16)] for digit in hashlib.md5(text.encode()).hexdigest()[:7])


def renamed(facts: TensorFacts) -> TensorFacts:
    """Every class that is not torch's, every module and every parameter of such a class under another name."""

    def site(old: Site) -> Site:
        attribute = old.attribute if old.bases else nonsense(old.attribute)
        path = [part if part.isdigit() else nonsense(part) for part in old.name.split(".")[:-1]]
        owner = old.owner if old.owner in old.bases else nonsense(old.owner)
        return replace(old, name=".".join([*path, attribute]), attribute=attribute, owner=owner)

    return replace(facts, sites=tuple(map(site, facts.sites)))


@pytest.mark.parametrize("share", [5, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize(("traced", "least"), [(True, 0.998), (False, 0.994)])
def test_no_list_was_memorised_verdicts_survive_renaming_everything(traced: bool, least: float, share: int) -> None:
    """Of every fifth architecture, or of all."""
    same, total = 0, 0
    plans = [pair for kind in ("causal", "other") for pair in zip(skeletons(kind), verdicts(kind), strict=True)]
    for model, before in plans[::share]:
        strangers = [replace(renamed(facts), uses=facts.uses if traced else None) for facts in model.tensors]
        after = plan_tensors(strangers, unknown="exempt")
        same += sum(line.decays == other.decays for line, other in zip(before, after, strict=True))
        total += len(before)
    assert same >= least * total


def test_a_bare_state_dict_of_names_and_shapes_is_still_judged_well() -> None:
    right, total = 0, 0
    for model in skeletons("causal"):
        bare = [
            replace(f, uses=None, sites=tuple(Site(s.name, s.attribute, "") for s in f.sites)) for f in model.tensors
        ]
        lines = tuple(plan_tensors(bare, unknown="exempt"))
        total += len(lines)
        right += len(lines) - len(wrong(model, lines))
    assert right >= 0.99 * total
