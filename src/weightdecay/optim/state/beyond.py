"""What an optimizer's own `state_dict` holds beside groups and state, such as the chances that HeavyBall's SOAP counts.

Some optimizers keep how far they have come in attributes, and hand it on through a `state_dict` of their own or a hook
on it. It belongs to no parameter and to no group, so it travels with the settings and goes back the way it came.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from weightdecay.errors import OptimizerError
from weightdecay.optim.state.values import decoded, encoded

_TORCHS_OWN = ("state", "param_groups")
_CPU = torch.device("cpu")


def beyond(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """It as JSON that keeps types; empty for torch's optimizers and ours.

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
        held = {key: _joined(value, saved[key]) for key, value in _of(optimizer).items() if key in saved}
        optimizer.load_state_dict({**optimizer.state_dict(), **held})


def _of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {key: value for key, value in optimizer.state_dict().items() if key not in _TORCHS_OWN}


def _plain(value: Any, where: str) -> Any:
    if type(value) is not dict:
        return encoded(value, where, _CPU)
    if any(not isinstance(key, str) for key in value):
        raise OptimizerError(f"{where} goes by the places of tensors, not by names: save its state_dict() instead")
    # Bytes are somebody's pickle, which a file of settings must never bring to be unpickled: the optimizer's own stay.
    items = {key: item for key, item in value.items() if not isinstance(item, bytes)}
    return {"dict": [[key, _plain(item, f"{where}.{key}")] for key, item in items.items()]}


def _joined(own: Any, saved: Any) -> Any:
    """The saved value, in which the optimizer's own stands where the file has none."""
    if type(own) is dict and isinstance(saved, Mapping) and "dict" in saved:
        return own | {key: _joined(own.get(key), item) for key, item in saved["dict"]}
    return decoded(saved, own, _CPU)
