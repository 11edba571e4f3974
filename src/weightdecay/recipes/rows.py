"""Rows of the settings that are lists of tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Interval

from weightdecay.declared.fields import CLOSED, Count, Number, Text
from weightdecay.planning.roles.roles import Role

Share = Annotated[Number, Interval(ge=0, lt=1)]
AtLeast0 = Annotated[Number, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class OfSomeTensors:
    """Something that holds for some tensors."""

    __pydantic_config__ = CLOSED

    pattern: Text
    """Regular expression that is found in their names; the first row whose pattern is decides."""


@dataclass(frozen=True, kw_only=True)
class Factor(OfSomeTensors):
    """A factor for some tensors."""

    factor: AtLeast0
    """What their share is multiplied by."""


@dataclass(frozen=True, kw_only=True)
class Beta(OfSomeTensors):
    """A β for some tensors."""

    beta: Share
    """Their β."""


@dataclass(frozen=True, kw_only=True)
class Stack(OfSomeTensors):
    """Tensors that are several matrices, one above the other."""

    matrices: Annotated[Count, Ge(1)]
    """How many they are."""


@dataclass(frozen=True, kw_only=True)
class RoleOf(OfSomeTensors):
    """What some tensors are for."""

    role: Role
    """What they are taken for, in place of what is seen."""


@dataclass(frozen=True, kw_only=True)
class RuleOf(OfSomeTensors):
    """What λ means for some tensors."""

    rule: Text
    """The rule of their decay."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A piece of the learning rate's way, from where the one before it ended."""

    __pydantic_config__ = CLOSED

    shape: Literal["constant", "cosine", "linear"]
    """Along which line."""
    to: AtLeast0
    """Where it ends, as a fraction of the peak."""
    over_tokens: AtLeast0
    """How long it is."""


@dataclass(frozen=True, kw_only=True)
class GradClipChange:
    """Another largest norm of the gradient."""

    __pydantic_config__ = CLOSED

    tokens: AtLeast0
    """From the first step that has so many tokens behind it."""
    grad_clip: AtLeast0
    """The norm; 0 does not clip."""


@dataclass(frozen=True, kw_only=True)
class RampPoint:
    """A batch that the run grows to."""

    __pydantic_config__ = CLOSED

    tokens: AtLeast0
    """Once so many tokens were seen."""
    batch_tokens: Annotated[Count, Ge(1)]
    """How large the batch then is."""
