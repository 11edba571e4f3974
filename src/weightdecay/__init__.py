"""weightdecay: train GPTs with the right weights decaying by the right amount, and prove that they did.

The public names are imported on first use, so that `import weightdecay` (and `weightdecay --help`) loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# public name -> the module that defines it
_PUBLIC: dict[str, str] = {
    "plan": "weightdecay.planning.plan",
    "DecayPlan": "weightdecay.planning.plan",
    "PlannedTensor": "weightdecay.planning.plan",
    "Override": "weightdecay.planning.policies",
    "Role": "weightdecay.planning.roles",
    "AdamW": "weightdecay.optim.adamw",
    "AdamL2": "weightdecay.optim.adamw",
    "Lion": "weightdecay.optim.lion",
    "SGDW": "weightdecay.optim.sgdw",
    "Adafactor": "weightdecay.optim.adafactor",
    "Muon": "weightdecay.optim.muon",
    "clipped_step": "weightdecay.optim.clipping",
    "control": "weightdecay.optim.controller",
    "convert": "weightdecay.optim.convert",
    "penalty": "weightdecay.optim.penalty",
    "load_state_by_name": "weightdecay.optim.state",
    "settings_by_name": "weightdecay.optim.state",
    "state_by_name": "weightdecay.optim.state",
}

__all__ = ["__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'weightdecay' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
