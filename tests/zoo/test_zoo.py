"""Plans of other people's models, against labels that were read from their sources.

`make test-all` installs the packages into an environment of their own; models of those that are missing are skipped.
"""

from __future__ import annotations

import time
from functools import cache

import pytest

from tests.zoo.judging import Judged, batch_of, planned, verdicts
from tests.zoo.model import Model
from tests.zoo.models import MODELS
from tests.zoo.states import changed, state_of
from weightdecay.errors import PlanError

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]

LONGEST_S = 15.0
_GIVEN = pytest.mark.parametrize("given", [False, True], ids=["guessed", "given"])
HERE = [model for model in MODELS if model.installed]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "model" in metafunc.fixturenames:
        missing = {
            model.package: pytest.mark.skip(reason=f"{model.package} is not installed: make test-all")
            for model in MODELS
            if not model.installed
        }
        found = [pytest.param(m, id=m.name, marks=missing.get(m.package, ())) for m in MODELS]
        metafunc.parametrize("model", found)


@cache
def verdicts_of(model: Model, given: bool) -> list[Judged] | PlanError:
    return verdicts(model, given=given)


def told(model: Model, given: bool) -> list[Judged]:
    found = verdicts_of(model, given)
    if isinstance(found, PlanError):
        pytest.fail(f"{model.name}: {found}")
    return found


def is_right(model: Model, given: bool) -> bool:
    found = verdicts_of(model, given)
    return not isinstance(found, PlanError) and all(tensor.right for tensor in found)


def test_its_labels_name_every_tensor_and_its_batch_goes_through(model: Model) -> None:
    built, batch = model.build(), batch_of(model)
    assert model.labels(built)
    built(**batch) if isinstance(batch, dict) else built(*batch) if isinstance(batch, tuple) else built(batch)


@_GIVEN
def test_no_tensor_is_wrong_by_its_shape_alone(model: Model, given: bool) -> None:
    assert not [str(tensor) for tensor in told(model, given) if tensor.silently_wrong]


@_GIVEN
def test_a_plan_changes_no_bit_of_it_and_takes_seconds(model: Model, given: bool) -> None:
    built = model.build()
    batch = batch_of(model) if given else None
    before, started = state_of(built), time.process_time()
    planned(built, batch)
    seconds = time.process_time() - started
    assert not changed(before, state_of(built))
    assert seconds < LONGEST_S


@pytest.mark.parametrize(("given", "least"), [(False, 0.97), (True, 0.99)], ids=["guessed", "given"])
def test_nearly_all_models_are_planned_wholly_right(given: bool, least: float) -> None:
    if not HERE:
        pytest.skip("none of the packages is installed: make test-all")
    wrong = {
        model.name: str(found) if isinstance(found, PlanError) else [str(one) for one in found if not one.right]
        for model in HERE
        if not is_right(model, given)
        for found in [verdicts_of(model, given)]
    }
    assert len(HERE) - len(wrong) >= least * len(HERE), "\n".join(f"{name}: {why}" for name, why in wrong.items())
