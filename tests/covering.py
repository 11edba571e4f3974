"""Selections of a product of cases that leave nobody out."""

from __future__ import annotations

import itertools
from typing import Any

import pytest


def covering(*axes: list[Any]) -> list[Any]:
    """All combinations for `pytest.mark.parametrize`; each member of each axis is in one that is not `long`."""
    length = max(len(axis) for axis in axes)
    always = {tuple(place % len(axis) for axis in axes) for place in range(length)}
    places = itertools.product(*(range(len(axis)) for axis in axes))
    return [
        pytest.param(
            *(axis[at] for axis, at in zip(axes, place, strict=True)),
            marks=() if place in always else pytest.mark.long,
        )
        for place in places
    ]
