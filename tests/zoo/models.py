"""All models of the zoo, and those whose packages are installed here."""

from __future__ import annotations

from tests.zoo import (
    adapters,
    diffusion,
    flows,
    graphs,
    language,
    mixers,
    pictures,
    science,
    unets,
    vision,
)
from tests.zoo.model import Model

FAMILIES = (language, mixers, vision, pictures, adapters, diffusion, unets, graphs, flows, science)
MODELS: tuple[Model, ...] = tuple(model for family in FAMILIES for model in family.MODELS)
