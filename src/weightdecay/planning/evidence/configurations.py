"""A model's configuration, of whatever library: what it is called, and its values as a mapping."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

# diffusers shows `config` as a property of what it keeps here
_ATTRIBUTES = ("config", "_internal_dict", "cfg", "args", "hparams")


def configuration_of(model: nn.Module) -> Any | None:
    """What a model keeps as its configuration; no property of the user's model is read."""
    for name in _ATTRIBUTES:
        config = vars(model).get(name)
        if config is not None and as_mapping(config):
            return config
    return None


def as_mapping(config: Any) -> dict[str, Any]:
    """A configuration's values by name; none if it is nothing that holds values by name."""
    if isinstance(config, Mapping):
        return dict(config)
    if hasattr(config, "to_dict"):
        return dict(config.to_dict())
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {}
