"""The studies that are known here, each a value in its own file; one more is one more file and a line below."""

from __future__ import annotations

from collections.abc import Mapping

from weightdecay.errors import ConfigError, did_you_mean
from weightdecay.studies.catalogue.decoupling import DECOUPLING
from weightdecay.studies.catalogue.downstream import DOWNSTREAM
from weightdecay.studies.catalogue.equilibrium import EQUILIBRIUM
from weightdecay.studies.catalogue.memorization import MEMORIZATION
from weightdecay.studies.catalogue.schedule import SCHEDULE
from weightdecay.studies.catalogue.selective import SELECTIVE
from weightdecay.studies.catalogue.strength import DEMO, LAMBDA
from weightdecay.studies.catalogue.timescale import TIMESCALE
from weightdecay.studies.design import Study

_ALL = (LAMBDA, DECOUPLING, SELECTIVE, EQUILIBRIUM, TIMESCALE, SCHEDULE, MEMORIZATION, DOWNSTREAM, DEMO)


def studies() -> Mapping[str, Study]:
    """By name."""
    return {study.name: study for study in _ALL}


def study(name: str) -> Study:
    """One of them.

    Raises:
        ConfigError: there is none of that name.
    """
    known = studies()
    if name not in known:
        raise ConfigError(f"no study '{name}': {did_you_mean(name, known)}")
    return known[name]
