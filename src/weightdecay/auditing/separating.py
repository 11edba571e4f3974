"""Which tensors of an optimizer can be stepped one by one, seen on a few of the smallest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from weightdecay.auditing.measuring import local
from weightdecay.auditing.sharding import CommunicatesError, agreed
from weightdecay.auditing.stepping import Bench, Place

# A step with hooks that reach a whole trainer takes longer to put back than a whole copy takes room.
_OBJECTS = 20_000
_SMALL = 1 << 20  # elements that are stepped together though none of them is as large


@dataclass(frozen=True)
class Ways:
    """How an optimizer is stepped.

    Attributes:
        apart: tensor by tensor; else all at once.
        why: why not, if so.
        saves: whether whatever can be reached is saved before each step.
        sample: the places on which forms are seen.
        is_still: a step changes no tensor, though they have gradients.
    """

    apart: bool
    why: str
    saves: bool
    sample: list[Place] = field(default_factory=list)
    is_still: bool = False


def ways_of(optimizer: Any, places: Sequence[Place]) -> Ways:
    """Try a few small tensors, together and one by one.

    Raises:
        Exception: whatever its step raises on all tensors.
    """
    sample = _some_of_each_group(places)
    is_still = False
    try:
        blind, why, is_still = _tried(optimizer, _smallest(places))
    except CommunicatesError:
        raise
    except Exception as error:  # others' code, which may keep something for each tensor beside its groups
        # Nobody knows yet whether its writes can be seen.
        with Bench(optimizer, _unique(places), saves=True) as bench, bench.stepped():
            blind = bench.is_blind()
        why = f"it steps no part of its tensors ({type(error).__name__}: {error})"
    why = agreed_on(why, places)
    tensors = [place.tensor for place in places]
    return Ways(not why, why, agreed(blind, tensors), sample, not agreed(not is_still, tensors))


def _tried(optimizer: Any, some: Sequence[Place]) -> tuple[bool, str, bool]:
    """Whether writes go unseen, why tensors cannot be stepped one by one ("" if they can), and whether none moves."""
    with Bench(optimizer, some, saves=True, gradients="drawn") as bench:
        with bench.stepped():
            together = [local(place.tensor).clone() for place in some]
            blind = bench.is_blind()
        is_still = all(torch.equal(bench.weights(place), after) for place, after in zip(some, together, strict=True))
        if bench.strays():
            return blind, "a step reaches tensors that are not in the groups", is_still
        if bench.reached > _OBJECTS:
            return blind, f"{bench.reached} objects hang on it", is_still
    for place, after in zip(some, together, strict=True):
        with Bench(optimizer, [place], saves=blind, gradients="drawn") as bench, bench.stepped():
            if not _alike(bench.weights(place), local(place.tensor), after):
                return blind, "its step makes tensors depend on each other", is_still
    return blind, "", is_still


def agreed_on(why: str, places: Sequence[Place]) -> str:
    """The reason, or that of another process."""
    together = agreed(bool(why), (place.tensor for place in places))
    return why or ("another process cannot step them one by one" if together else "")


def units(places: Sequence[Place], *, apart: bool) -> list[list[Place]]:
    """Places that are stepped together: all, or as many as are no larger than the largest tensor."""
    if not apart:
        first = _unique(places)
        return [first, *([place] for place in places if place not in first)]
    most = max([_SMALL, *(place.tensor.numel() for place in places)])
    made: list[list[Place]] = []
    size, ids = 0, set[int]()
    for place in places:
        elements = place.tensor.numel()
        if not made or size + elements > most or id(place.tensor) in ids:
            made.append([])
            size, ids = 0, set()
        made[-1].append(place)
        size += elements
        ids.add(id(place.tensor))
    return made


def _alike(w: Tensor, one: Tensor, other: Tensor) -> bool:
    """Whether two steps from w are the same but for rounding."""
    if not w.numel():
        return True
    moved = max(float((one.double() - w.double()).abs().max()), float((other.double() - w.double()).abs().max()))
    apart = (one.double() - other.double()).abs()
    floor = 2 * torch.finfo(one.dtype).eps * torch.maximum(one.abs(), other.abs()).double()
    return bool((apart <= 1e-3 * moved + floor).all())


def _unique(places: Sequence[Place]) -> list[Place]:
    found: dict[int, Place] = {}
    for place in places:
        found.setdefault(id(place.tensor), place)
    return list(found.values())


def _smallest(places: Sequence[Place], count: int = 4) -> list[Place]:
    """Some of the smallest tensors, of each group two."""
    chosen: list[Place] = []
    for group in sorted({place.group for place in places})[:count]:
        own = [place for place in _unique(places) if place.group == group and place.tensor.numel()]
        chosen += sorted(own, key=lambda place: place.tensor.numel())[:2]
    return _unique(chosen)


def _some_of_each_group(places: Sequence[Place], count: int = 3) -> list[Place]:
    """Of each group the smallest tensors that tell something; gains, which may all be 1, tell less than matrices."""
    chosen: dict[int, list[Place]] = {}
    for place in sorted(places, key=lambda place: (_tells_less(place.tensor), place.tensor.numel())):
        own = chosen.setdefault(place.group, [])
        if own and (len(own) == count or _tells_less(place.tensor)):
            continue
        # The part that lies here may be empty, or 0; all processes look at the same tensors.
        if place.tensor.numel() and agreed(bool(local(place.tensor).any()), [place.tensor]):
            own.append(place)
    return [place for own in chosen.values() for place in own]


def _tells_less(p: Tensor) -> bool:
    return p.ndim < 2 or not 64 <= p.numel() <= _SMALL
