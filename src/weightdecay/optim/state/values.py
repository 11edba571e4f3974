"""What groups hold, as strict JSON: settings to be compared, and progress to be had again with its type."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from weightdecay.errors import OptimizerError
from weightdecay.optim.roundings import Rounding
from weightdecay.rules import Rule, plain_rule

# --- settings


def plain_setting(value: Any) -> Any:
    """A setting as JSON has it; what JSON cannot hold is named by its type, like `<function>`."""
    if isinstance(value, Rule):
        return plain_rule(value)
    if isinstance(value, Rounding):
        return value.name
    if isinstance(value, Tensor):
        return plain_setting(value.item() if value.numel() == 1 else value.tolist())
    if isinstance(value, list | tuple):
        return [plain_setting(item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain_setting(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(float(value))}  # JSON has no NaN and no infinity
    return value if value is None or isinstance(value, str | int | float | bool) else f"<{type(value).__name__}>"


def names_a_type(value: Any) -> bool:
    """Whether a plain setting is only the name of what it was."""
    return isinstance(value, str) and value.startswith("<") and value.endswith(">")


# --- progress


def encoded(value: Any, where: str, weights: torch.device) -> Any:
    """A value as JSON that keeps its type.

    Args:
        where: what it is, for the error.
        weights: where the group's weights are; a tensor that is there will be with the weights again.

    Raises:
        OptimizerError: it holds something that is neither tensor nor number nor text.
    """
    if value is None or type(value) in (str, int, bool):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, Tensor) and not value.is_complex():
        beside = value.device.type == weights.type
        return {
            "tensor": [plain_setting(item) for item in value.detach().flatten().tolist()],
            "shape": list(value.shape),
            "dtype": str(value.dtype).removeprefix("torch."),
            "device": "weights" if beside else value.device.type,
        }
    if type(value) is list:
        return [encoded(item, f"{where}[{index}]", weights) for index, item in enumerate(value)]
    if type(value) is tuple:
        return {"tuple": [encoded(item, f"{where}[{index}]", weights) for index, item in enumerate(value)]}
    if type(value) is dict:
        pairs = [
            (encoded(key, where, weights), encoded(item, f"{where}[{key!r}]", weights)) for key, item in value.items()
        ]
        return {"dict": [list(pair) for pair in pairs]}
    raise OptimizerError(
        f"{where} changes with the steps and is a {type(value).__name__}: only numbers, tensors and text can be saved"
    )


def decoded(value: Any, present: Any, weights: torch.device) -> Any:
    """The value of what `encoded` made; of a plain setting in the type that is there now.

    Args:
        present: what the group holds now.
        weights: where the group's weights are.
    """
    if isinstance(present, Tensor) and isinstance(value, list | int | float):
        given = torch.as_tensor(value, dtype=present.dtype, device=present.device)
        return given.expand_as(present).clone()
    if isinstance(value, list):
        items = [decoded(item, None, weights) for item in value]
        return tuple(items) if isinstance(present, tuple) else items
    if isinstance(value, Mapping):
        tag = next(iter(value), "")
        if tag == "tensor":
            return _tensor(value, present, weights)
        if tag == "float":
            return float(value["float"])
        if tag == "tuple":
            return tuple(decoded(item, None, weights) for item in value["tuple"])
        if tag == "dict":
            return {decoded(key, None, weights): decoded(item, None, weights) for key, item in value["dict"]}
        return dict(value)  # saved as a setting, when it had not moved
    return value


def _tensor(value: Mapping[str, Any], present: Any, weights: torch.device) -> Tensor:
    numbers = [float(item["float"]) if isinstance(item, Mapping) else item for item in value["tensor"]]
    device = weights if value["device"] == "weights" else torch.device(value["device"])
    if isinstance(present, Tensor):
        device = present.device
    made = torch.tensor(numbers, dtype=getattr(torch, value["dtype"]), device=device)
    return made.reshape(value["shape"])
