"""Plans of other people's models, against labels that were read from their sources.

`make test-all` installs the packages into an environment of their own; models of those that are missing are skipped.
"""

from __future__ import annotations

from functools import cache

import pytest

from tests.zoo.judging import Outcome, batch_of, outcome
from tests.zoo.model import Model
from tests.zoo.models import MODELS

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
def outcome_of(model: Model, given: bool) -> Outcome:
    return outcome(model, given=given)


def test_its_labels_name_every_tensor_and_its_batch_goes_through(model: Model) -> None:
    built, batch = model.build(), batch_of(model)
    assert model.labels(built)
    built(**batch) if isinstance(batch, dict) else built(*batch) if isinstance(batch, tuple) else built(batch)


@_GIVEN
def test_no_tensor_is_wrong_by_its_shape_alone(model: Model, given: bool) -> None:
    assert not [str(tensor) for tensor in outcome_of(model, given).tensors if tensor.silently_wrong]


@_GIVEN
def test_a_plan_changes_no_bit_of_it_and_takes_seconds(model: Model, given: bool) -> None:
    found = outcome_of(model, given)
    assert not found.changed
    assert found.seconds < LONGEST_S


@pytest.mark.parametrize(("given", "least"), [(False, 0.97), (True, 0.99)], ids=["guessed", "given"])
def test_nearly_all_models_are_planned_wholly_right(given: bool, least: float) -> None:
    if not HERE:
        pytest.skip("none of the packages is installed: make test-all")
    wrong = {model.name: mistakes for model in HERE if (mistakes := outcome_of(model, given).mistakes)}
    said = "\n".join(f"{name}: {why}" for name, why in wrong.items())
    assert len(HERE) - len(wrong) >= least * len(HERE), said
