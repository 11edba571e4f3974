"""The trackers that are known here, by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from weightdecay.errors import ConfigError, did_you_mean
from weightdecay.runs import Tracker

TRACKERS = ("tensorboard", "trackio", "wandb")


def tracker_faults(name: str) -> list[str]:
    """What is wrong with a tracker's name."""
    return [] if name in TRACKERS else [f"{name}: {did_you_mean(name, TRACKERS)}"]


def tracker(name: str) -> Tracker:
    """A tracker by its name.

    Raises:
        ConfigError: there is none of that name.
        MissingExtraError: what it writes with is not installed.
    """
    if name == "tensorboard":
        from weightdecay.integrations.tensorboard import TensorBoard

        return TensorBoard()
    if name == "wandb":
        from weightdecay.integrations.wandb import WandB

        return WandB()
    if name == "trackio":
        from weightdecay.integrations.trackio import Trackio

        return Trackio()
    raise ConfigError(f"tracker {tracker_faults(name)[0]}")


def trackers_of(given: str | Tracker | Iterable[str | Tracker]) -> list[Tracker]:
    """Trackers that were given by name or made already, one or several.

    Raises:
        ConfigError: some are neither; all are named.
    """
    alone = isinstance(given, str) or hasattr(given, "row")
    listed: list[Any] = [given] if alone else list(given)  # type: ignore[arg-type]  # it is not alone
    faults = [f"tracker {fault}" for one in listed if isinstance(one, str) for fault in tracker_faults(one)]
    faults += [
        f"tracker {one!r} has no `row`: give a name or what `weightdecay.Tracker` describes"
        for one in listed
        if not isinstance(one, str) and not callable(getattr(one, "row", None))
    ]
    if faults:
        raise ConfigError(faults)
    return [tracker(one) if isinstance(one, str) else one for one in listed]
