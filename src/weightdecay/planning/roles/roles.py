"""The jobs a tensor can have, and a verdict that names one with its evidence."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum


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


class Strength(IntEnum):
    """How far evidence can be trusted, weakest first."""

    SHAPE = 1
    NAME = 2
    TYPE = 3
    TRACED = 4


@dataclass(frozen=True)
class Verdict:
    """One job of one tensor. `evidence` is for people: it says what was seen.

    `contested` where a tensor is used otherwise than the torch type of its owner makes one expect.
    """

    role: Role
    evidence: str
    strength: Strength
    contested: bool = False
