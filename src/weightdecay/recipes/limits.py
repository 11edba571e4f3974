"""Which values a setting may have, beyond its type."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from weightdecay.errors import did_you_mean
from weightdecay.recipes.moving import moving_faults

OPTIMIZERS = ("adafactor", "adam_l2", "adamw", "lion", "muon", "sgdw")

_CHOICES = {
    "data.encoding_errors": ("strict", "replace"),
    "optimizer.name": OPTIMIZERS,
    "optimizer.muon_scale": ("match_rms_adamw", "original"),
    "schedule.shape": ("constant", "cosine", "inverse_sqrt", "linear", "stages", "warmup_stable_decay"),
    "optimizer.muon_orthogonalisation": ("newton_schulz", "polar_express"),
    "schedule.weight_decay_shape": ("constant", "cosine", "linear"),
    "schedule.weight_decay_moves": ("all", "muon"),
    "run.batch_ramp_shape": ("linear", "steps"),
    "run.dtype": ("bfloat16", "float32"),
    "run.on_nonfinite": ("skip", "stop"),
}
# low ≤ value < high, in words: and the keys that it holds for, section by section.
_RANGES: dict[tuple[float, float, str], dict[str, str]] = {
    (0.0, math.inf, "at least 0"): {
        "optimizer": "lr eps grad_clip",
        "schedule": "final_fraction weight_decay_final_fraction warmup_steps warmup_tokens decay_tokens hold_steps "
        "momentum_rise_steps",
        "run": "steps tokens batch_ramp_increment micro_batch_tokens seed log_every eval_every checkpoint_every",
    },
    (0.0, math.inf, "at least 0, or auto"): {"optimizer": "weight_decay"},
    (1.0, math.inf, "at least 1"): {"run": "batch_tokens eval_tokens keep nproc"},
    (0.0, 1.0, "from 0 to below 1"): {
        "optimizer": "beta1 beta2 momentum muon_beta2",
        "schedule": "warmup_fraction hold_fraction momentum_start momentum_final",
    },
    (0.0, 1.0 + 1e-9, "from 0 to 1"): {"schedule": "decay_fraction"},
    (-math.inf, 0.0, "below 0"): {"optimizer": "beta2_decay"},
}


def out_of_range(read: Mapping[str, Any]) -> list[str]:
    """What is wrong with `section.key` values of the right type."""
    faults = [
        f"{key} = '{read[key]}': {did_you_mean(read[key], choices)}"
        for key, choices in _CHOICES.items()
        if key in read and read[key] not in choices
    ]
    for (low, high, words), keys in _RANGES.items():
        for key in (f"{section}.{name}" for section, names in keys.items() for name in names.split()):
            auto = key == "optimizer.weight_decay" and math.isnan(read.get(key, low))
            if key in read and not auto and not (low <= read[key] < high):
                faults.append(f"{key} = {read[key]:g}: must be {words}")
    warmups = [name for name in ("warmup_steps", "warmup_tokens", "warmup_fraction") if read.get(f"schedule.{name}")]
    if len(warmups) > 1:
        faults.append("one warm-up length, not " + " and ".join(f"schedule.{name}" for name in warmups))
    if read.get("run.steps") and read.get("run.tokens"):
        faults.append("the run's length twice: give either --steps or --tokens")
    return faults + moving_faults(read)
