"""Learning rate and weight decay as functions of the step: `from weightdecay.schedules import Cosine, Warmup`."""

from weightdecay.optim.schedules import (
    Constant,
    Cosine,
    InverseSqrt,
    Linear,
    OneOverT,
    Piecewise,
    Schedule,
    Warmup,
    WarmupStableDecay,
    schedule,
)

__all__ = [
    "Constant",
    "Cosine",
    "InverseSqrt",
    "Linear",
    "OneOverT",
    "Piecewise",
    "Schedule",
    "Warmup",
    "WarmupStableDecay",
    "schedule",
]
