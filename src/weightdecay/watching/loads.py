"""λ that a load has put into the groups of an optimizer, in the place of what was asked for."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

from weightdecay.amounts import number
from weightdecay.watching.tracebacks import unseen


class Loads:
    """Remembers of each optimizer λ as its groups had it before a load, and after."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[weakref.ref[Any], list[float | None], list[float | None]]] = {}

    def watching(self, load: Callable[..., Any]) -> Callable[..., Any]:
        """An optimizer's `load_state_dict` that is looked at."""

        @unseen
        @functools.wraps(load)
        def watched(optimizer: Any, *arguments: Any, **named: Any) -> Any:
            before = _weight_decays(optimizer)
            result = load(optimizer, *arguments, **named)
            self._seen[id(optimizer)] = (weakref.ref(optimizer), before, _weight_decays(optimizer))
            return result

        return watched

    def changed(self, optimizer: Any) -> dict[int, float]:
        """λ before the last load, of groups that have since had the loaded one and not that; by the group's place."""
        owner, before, loaded = self._seen.get(id(optimizer), (None, [], []))
        if owner is None or owner() is not optimizer:
            return {}
        now = _weight_decays(optimizer)
        return {
            place: asked
            for place, (asked, found, own) in enumerate(zip(before, loaded, now, strict=False))
            # A schedule of λ has moved on since.
            if asked is not None and asked != found and found == own
        }


def _weight_decays(optimizer: Any) -> list[float | None]:
    return [number(group.get("weight_decay")) for group in getattr(optimizer, "param_groups", [])]
