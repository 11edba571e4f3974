"""weightdecay: train GPTs with the right weights decaying by the right amount, and prove that they did.

The public names are imported on first use, so that `import weightdecay` (and `weightdecay --help`) loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# public name -> the module that defines it
_PUBLIC: dict[str, str] = {
    "DecayPlan": "weightdecay.planning.decay_plan",
    "plan": "weightdecay.planning.plan",
    "PlannedTensor": "weightdecay.planning.decay_plan",
    "Override": "weightdecay.planning.policies",
    "Role": "weightdecay.planning.roles",
    "Adafactor": "weightdecay.optim.adafactor",
    "AdamL2": "weightdecay.optim.adamw",
    "AdamW": "weightdecay.optim.adamw",
    "clipped_step": "weightdecay.optim.clipping",
    "control": "weightdecay.optim.controller",
    "convert": "weightdecay.optim.convert",
    "Lion": "weightdecay.optim.lion",
    "Muon": "weightdecay.optim.muon",
    "penalty": "weightdecay.optim.penalty",
    "SGDW": "weightdecay.optim.sgdw",
    "load_state_by_name": "weightdecay.optim.state",
    "settings_by_name": "weightdecay.optim.state",
    "state_by_name": "weightdecay.optim.state",
    "ModelConfig": "weightdecay.models.config",
    "GPT": "weightdecay.models.decoder",
    "Objective": "weightdecay.models.objective",
    "Recipe": "weightdecay.recipes.schema",
    "recipe": "weightdecay.recipes.schema",
    "TrainConfig": "weightdecay.recipes.settings",
    "Run": "weightdecay.runs",
    "export": "weightdecay.training.exporting",
    "train": "weightdecay.training.trainer",
}

__all__ = ["__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'weightdecay' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
