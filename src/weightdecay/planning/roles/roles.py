"""What a tensor can be for, and a verdict: a role with the evidence for it, as data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Literal

from weightdecay.planning.evidence.uses import Use


class Role(StrEnum):
    """What a tensor is for; docs/plan.md has the normative table of which roles decay."""

    LINEAR = "linear weight"
    OUTPUT_HEAD = "output head"
    EMBEDDING = "embedding"
    POSITION_EMBEDDING = "position embedding"
    CONVOLUTION = "convolution"
    EXPERT_STACK = "expert stack"
    ROUTER = "router weight"
    LORA_A = "LoRA A"
    LORA_B = "LoRA B"
    WEIGHT_NORM_DIRECTION = "weight-norm direction"
    ATTENTION_IN_PROJECTION = "attention in-projection"
    RECURRENT = "recurrent gate matrix"
    NORM_GAIN = "norm gain"
    BIAS = "bias"
    SCALE = "scale or gate"
    STATE_SPACE = "state-space parameter"
    TIME_MIX = "time mix or decay"
    WEIGHT_NORM_GAIN = "weight-norm gain"
    SINUSOIDAL_TABLE = "sinusoidal table"
    FROZEN = "frozen"
    UNREACHED = "no gradient"
    LEARNED_TOKEN = "learned token"
    RELATIVE_POSITION = "relative-position table"
    UNKNOWN = "unknown"


# matrices, tables and stacks: what the default policy decays
DECAYING = frozenset(
    {
        Role.LINEAR,
        Role.OUTPUT_HEAD,
        Role.EMBEDDING,
        Role.POSITION_EMBEDDING,
        Role.CONVOLUTION,
        Role.EXPERT_STACK,
        Role.ROUTER,
        Role.LORA_A,
        Role.LORA_B,
        Role.WEIGHT_NORM_DIRECTION,
        Role.ATTENTION_IN_PROJECTION,
        Role.RECURRENT,
    }
)
# whether these should decay, opinions differ
DISPUTED = frozenset({Role.LEARNED_TOKEN, Role.RELATIVE_POSITION})
# what training does not move, or what nothing is known of: no policy decays it unasked
NEVER = frozenset({Role.FROZEN, Role.UNREACHED, Role.UNKNOWN})


class NormPlace(StrEnum):
    """Where the norm of a gain stands: opinions differ by place on whether it should decay."""

    INPUT = "input norm"
    OUTPUT = "output norm"
    STREAM = "stream norm"
    QUERY_KEY = "query/key norm"
    FINAL = "final norm"
    GROUP = "group norm"
    BATCH = "batch norm"
    OTHER = "other norm"


class Strength(IntEnum):
    """How far evidence can be trusted, weakest first."""

    SHAPE = 1
    NAME = 2
    TYPE = 3
    TRACED = 4


@dataclass(frozen=True)
class ByType:
    """The owner is torch's own, or inherits from it: `kind` is the torch.nn class."""

    attribute: str
    owner: str
    kind: str
    role: Role


@dataclass(frozen=True)
class ByUse:
    """A forward was seen to use it so; `typed` is what its owner's type says, where that says the same."""

    attribute: str
    owner: str
    use: Use
    typed: ByType | None = None


NameHow = Literal["habit", "norm", "sinusoidal", "path", "misfit"]


@dataclass(frozen=True)
class ByName:
    """The habits of naming: of attributes, of a norm's vector, of sinusoidal tables, of paths in a bare state dict.

    "misfit": the name is one of scales or biases, but its shape is no such thing's.
    """

    name: str
    owner: str
    shape: tuple[int, ...]
    how: NameHow = "habit"


@dataclass(frozen=True)
class ByShape:
    """Nothing but the shape."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class BySister:
    """The same attribute of another module of the same class, of which more is known."""

    sister: str
    source: Source


@dataclass(frozen=True)
class Fixed:
    """No optimizer moves it, and why: it asks for no gradient, holds integers, or no gradient was seen to reach it."""

    why: str


@dataclass(frozen=True)
class Given:
    """A user's override says so."""

    pattern: str
    reason: str = ""


Source = ByUse | ByType | ByName | ByShape | BySister | Fixed | Given


@dataclass(frozen=True)
class Verdict:
    """One job of one tensor, and what that rests on.

    Attributes:
        role: what it is for.
        strength: how far the evidence can be trusted.
        source: the evidence.
        contested_by: what the torch type of its owner makes one expect instead, where it is used otherwise.
        settled_by: what chose among roles that the evidence cannot tell apart: ("named", name), ("tied", "") …
        norm: of a gain, where its norm stands, as far as a trace showed it.
        is_bare: nothing but names and shapes was there to judge by.
        untold: why the user's batch could not show more.
    """

    role: Role
    strength: Strength
    source: Source
    contested_by: ByType | None = None
    settled_by: tuple[str, str] | None = None
    norm: NormPlace | None = None
    is_bare: bool = False
    untold: str = ""

    @property
    def contested(self) -> bool:
        return self.contested_by is not None
