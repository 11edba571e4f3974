"""Plans of other people's models from what was recorded of them, where their packages are not installed."""

from __future__ import annotations

import pytest

from tests.zoo.judging import Judged, judge
from tests.zoo.models import MODELS
from tests.zoo.skeletons import Skeleton, read
from weightdecay.planning.plan import plan_tensors

_GIVEN = pytest.mark.parametrize("given", [False, True], ids=["guessed", "given"])


def verdicts(skeleton: Skeleton, given: bool) -> list[Judged]:
    tensors = skeleton.tensors(given)
    labels = {facts.name: label for facts, label in zip(tensors, skeleton.labels, strict=True)}
    return judge(plan_tensors(tensors, unknown="exempt"), labels)


def test_the_record_holds_every_model_and_these_are_many_of_many_packages() -> None:
    assert [skeleton.name for skeleton in read()] == [model.name for model in MODELS]
    assert len(read()) >= 60
    assert len({skeleton.package for skeleton in read()}) >= 25


@pytest.mark.parametrize(("given", "least"), [(False, 0.97), (True, 0.99)], ids=["guessed", "given"])
def test_nearly_all_recorded_models_are_planned_wholly_right(given: bool, least: float) -> None:
    wrong = {
        skeleton.name: mistakes
        for skeleton in read()
        if (mistakes := [str(one) for one in verdicts(skeleton, given) if not one.right])
        or (given and (mistakes := [skeleton.fault] if skeleton.fault else []))
    }
    said = "\n".join(f"{name}: {why}" for name, why in wrong.items())
    assert len(read()) - len(wrong) >= least * len(read()), said


@_GIVEN
def test_no_recorded_tensor_is_wrong_by_its_shape_alone(given: bool) -> None:
    silent = {
        skeleton.name: mistakes
        for skeleton in read()
        if (mistakes := [str(one) for one in verdicts(skeleton, given) if one.silently_wrong])
    }
    assert not silent
