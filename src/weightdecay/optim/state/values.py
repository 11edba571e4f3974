"""What an optimizer holds beside its tensors' state, as strict JSON.

Settings are to be compared, progress is to be had again with its type. Some optimizers keep how far they have come in
attributes, such as the chances that HeavyBall's SOAP counts, and hand it on through a `state_dict` of their own or a
hook on it. It belongs to no parameter and to no group, so it travels with the settings and goes back the way it came.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from weightdecay.errors import OptimizerError
from weightdecay.optim.roundings import Rounding, dtype_name
from weightdecay.rules import Rule, plain_rule

_CPU = torch.device("cpu")

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
            "dtype": dtype_name(value.dtype),
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


def decoded(value: Any, present: Any, weights: torch.device, where: str) -> Any:
    """The value of what `encoded` made; of a plain setting in the type that is there now.

    Args:
        present: what the group holds now.
        weights: where the group's weights are.
        where: what it is, for the error where `encoded` did not make it.
    """
    try:
        return _decoded(value, present, weights)
    except Exception as error:  # whatever stands there, in a file of anybody's
        raise OptimizerError(f"{where} was saved as {value!r:.80}, which is no value: it is damaged") from error


def _decoded(value: Any, present: Any, weights: torch.device) -> Any:
    if isinstance(present, Tensor) and isinstance(value, list | int | float):
        given = torch.as_tensor(value, dtype=present.dtype, device=present.device)
        return given.expand_as(present).clone()
    if isinstance(value, list):
        items = [_decoded(item, None, weights) for item in value]
        return tuple(items) if isinstance(present, tuple) else items
    if isinstance(value, Mapping):
        tag = next(iter(value), "")
        if tag == "tensor":
            return _tensor(value, present, weights)
        if tag == "float":
            return float(value["float"])
        if tag == "tuple":
            return tuple(_decoded(item, None, weights) for item in value["tuple"])
        if tag == "dict":
            return {_decoded(key, None, weights): _decoded(item, None, weights) for key, item in value["dict"]}
        return dict(value)  # saved as a setting, when it had not moved
    return value


def _tensor(value: Mapping[str, Any], present: Any, weights: torch.device) -> Tensor:
    numbers = [float(item["float"]) if isinstance(item, Mapping) else item for item in value["tensor"]]
    device = weights if value["device"] == "weights" else torch.device(value["device"])
    if isinstance(present, Tensor):
        device = present.device
    made = torch.tensor(numbers, dtype=getattr(torch, value["dtype"]), device=device)
    return made.reshape(value["shape"])


# --- beside groups and state


def beyond(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What its `state_dict` holds besides, as JSON that keeps types; empty for torch's optimizers and ours.

    Raises:
        OptimizerError: it goes by the place of tensors, or holds what cannot be saved.
    """
    is_torchs = type(optimizer).state_dict is torch.optim.Optimizer.state_dict
    # Hooks on it are torch's private name; there is no public one.
    if is_torchs and not getattr(optimizer, "_optimizer_state_dict_post_hooks", None):
        return {}
    held = _of(optimizer)
    return {key: _plain(value, f"{type(optimizer).__name__}'s state_dict: {key}") for key, value in held.items()}


def restore(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Hand it to the optimizer's own `load_state_dict`, together with the state and groups that it has."""
    if saved:
        held = {key: _joined(value, saved[key], key) for key, value in _of(optimizer).items() if key in saved}
        optimizer.load_state_dict({**optimizer.state_dict(), **held})


def _of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {key: value for key, value in optimizer.state_dict().items() if key not in ("state", "param_groups")}


def _plain(value: Any, where: str) -> Any:
    if type(value) is not dict:
        return encoded(value, where, _CPU)
    if any(not isinstance(key, str) for key in value):
        raise OptimizerError(f"{where} goes by the places of tensors, not by names: save its state_dict() instead")
    # Bytes are somebody's pickle, which a file of settings must never bring to be unpickled: the optimizer's own stay.
    items = {key: item for key, item in value.items() if not isinstance(item, bytes)}
    return {"dict": [[key, _plain(item, f"{where}.{key}")] for key, item in items.items()]}


def _joined(own: Any, saved: Any, where: str) -> Any:
    """The saved value, in which the optimizer's own stands where the file has none."""
    if type(own) is dict and isinstance(saved, Mapping) and "dict" in saved:
        return own | {key: _joined(own.get(key), item, f"{where}.{key}") for key, item in saved["dict"]}
    return decoded(saved, own, _CPU, where)
