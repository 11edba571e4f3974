"""Optimizers that decay some tensors of a group and not others: every way in which they may know which."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tests.probing.optimizers import Plain

Exempt = Sequence[nn.Parameter]


class Sort(enum.Enum):
    GAIN = 1
    WEIGHT = 2


class NoDecay(nn.Parameter):
    """A class by itself says it."""


class Tells(Plain):
    """AdamW's decay, times what it is told of each tensor: a function of itself, the tensor, its place and group."""

    rate: Callable[[Any, Tensor, int, dict[str, Any]], float] = staticmethod(lambda *_: 1.0)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        place = 0
        for group in self.param_groups:
            for within, p in enumerate(group["params"]):
                rate = type(self).rate(self, p, within if group.get("by_group") else place, group)
                p.mul_(1 - rate * group["lr"] * group["weight_decay"]).sub_(p.grad.sign(), alpha=float(group["lr"]))
                place += 1


class Way(NamedTuple):
    """How it is told which are exempt: what is prepared, and the rate that follows from it."""

    prepare: Callable[[Any, list[nn.Parameter], Exempt], None]
    rate: Callable[[Any, Any, int, dict[str, Any]], float]

    def make(self, params: list[nn.Parameter], exempt: Exempt) -> Plain:
        optimizer: Any = type("Tells", (Tells,), {"rate": staticmethod(self.rate)})(params, lr=0.1, weight_decay=0.1)
        self.prepare(optimizer, params, exempt)
        return optimizer  # type: ignore[no-any-return]


def _is_in(p: Any, exempt: Any) -> bool:
    return any(p is one for one in exempt)


def _hang(key: str, of_exempt: Any, of_others: Any = None) -> Callable[[Any, list[nn.Parameter], Exempt], None]:
    def prepare(_: Any, params: list[nn.Parameter], exempt: Exempt) -> None:
        for p in params:
            value = of_exempt if _is_in(p, exempt) else of_others
            if value is not None:
                setattr(p, key, value)

    return prepare


def _keep(make: Callable[[list[nn.Parameter], Exempt], Any]) -> Callable[[Any, list[nn.Parameter], Exempt], None]:
    return lambda optimizer, params, exempt: setattr(optimizer, "kept", make(params, exempt))


def _in_group(make: Callable[[list[nn.Parameter], Exempt], Any]) -> Callable[[Any, list[nn.Parameter], Exempt], None]:
    return lambda optimizer, params, exempt: optimizer.param_groups[0].update(kept=make(params, exempt), by_group=True)


def _in_state(key: str, of_exempt: Any, of_others: Any = None) -> Callable[[Any, list[nn.Parameter], Exempt], None]:
    def prepare(optimizer: Any, params: list[nn.Parameter], exempt: Exempt) -> None:
        for p in params:
            value = of_exempt if _is_in(p, exempt) else of_others
            if value is not None:
                optimizer.state[p][key] = value

    return prepare


def _as_class(_: Any, __: list[nn.Parameter], exempt: Exempt) -> None:
    for p in exempt:
        p.__class__ = NoDecay


def _filter(optimizer: Any, _: list[nn.Parameter], exempt: Exempt) -> None:
    optimizer.kept = lambda p: not _is_in(p, exempt)


def _filter_by_id(optimizer: Any, _: list[nn.Parameter], exempt: Exempt) -> None:
    ids = {id(p) for p in exempt}
    optimizer.kept = lambda p, skip=ids: id(p) not in skip


def flags(params: list[nn.Parameter], exempt: Exempt) -> list[bool]:
    return [not _is_in(p, exempt) for p in params]


WAYS = {
    "attribute True": Way(_hang("no_decay", True), lambda _, p, __, ___: not getattr(p, "no_decay", False)),
    "attribute True or False": Way(_hang("no_decay", True, False), lambda _, p, __, ___: not p.no_decay),
    "attribute number": Way(_hang("lr_scale", 0.1, 1.0), lambda _, p, __, ___: p.lr_scale),
    "attribute word": Way(_hang("sort", "gain", "weight"), lambda _, p, __, ___: p.sort != "gain"),
    "attribute enum": Way(_hang("sort", Sort.GAIN, Sort.WEIGHT), lambda _, p, __, ___: p.sort is Sort.WEIGHT),
    "attribute list": Way(_hang("tags", ["gain"], ["weight"]), lambda _, p, __, ___: "gain" not in p.tags),
    "attribute dict": Way(_hang("meta", {"decay": 0}, {"decay": 1}), lambda _, p, __, ___: p.meta["decay"]),
    "attribute set": Way(_hang("tags", {"gain"}, set()), lambda _, p, __, ___: "gain" not in p.tags),
    "attribute object": Way(
        _hang("meta", SimpleNamespace(decay=0.0), SimpleNamespace(decay=1.0)), lambda _, p, __, ___: p.meta.decay
    ),
    "attribute scalar tensor": Way(
        _hang("scale", torch.tensor(0.0), torch.tensor(1.0)), lambda _, p, __, ___: float(p.scale)
    ),
    "attribute function": Way(_hang("rate", lambda: 0.0, lambda: 1.0), lambda _, p, __, ___: p.rate()),
    "class": Way(_as_class, lambda _, p, __, ___: not isinstance(p, NoDecay)),
    "state True": Way(_in_state("no_decay", True), lambda o, p, __, ___: not o.state[p].get("no_decay")),
    "state number": Way(_in_state("scale", 0.1, 1.0), lambda o, p, __, ___: o.state[p]["scale"]),
    "state scalar tensor": Way(
        _in_state("scale", torch.tensor(0.0), torch.tensor(1.0)), lambda o, p, __, ___: float(o.state[p]["scale"])
    ),
    "state in state": Way(
        _in_state("own", {"decay": False}, {"decay": True}), lambda o, p, __, ___: o.state[p]["own"]["decay"]
    ),
    "id set": Way(_keep(lambda _, e: {id(p) for p in e}), lambda o, p, __, ___: id(p) not in o.kept),
    "id frozenset": Way(_keep(lambda _, e: frozenset(id(p) for p in e)), lambda o, p, __, ___: id(p) not in o.kept),
    "id list": Way(_keep(lambda _, e: [id(p) for p in e]), lambda o, p, __, ___: id(p) not in o.kept),
    "id": Way(_keep(lambda _, e: id(e[0]) if len(e) else 0), lambda o, p, __, ___: id(p) != o.kept),
    "dict by id": Way(
        _keep(lambda ps, e: {id(p): 0.0 if _is_in(p, e) else 1.0 for p in ps}), lambda o, p, __, ___: o.kept[id(p)]
    ),
    "dict of dicts by id": Way(
        _keep(lambda ps, e: {id(p): {"decay": not _is_in(p, e), "sum": torch.zeros_like(p)} for p in ps}),
        lambda o, p, __, ___: o.kept[id(p)]["decay"],
    ),
    "id set in a dict": Way(
        _keep(lambda _, e: {"skip": {id(p) for p in e}}), lambda o, p, __, ___: id(p) not in o.kept["skip"]
    ),
    "id set in an object": Way(
        _keep(lambda _, e: SimpleNamespace(skip={id(p) for p in e})), lambda o, p, __, ___: id(p) not in o.kept.skip
    ),
    "set of tensors": Way(_keep(lambda _, e: set(e)), lambda o, p, __, ___: p not in o.kept),
    "list of tensors": Way(_keep(lambda _, e: list(e)), lambda o, p, __, ___: not _is_in(p, o.kept)),
    "deque of tensors": Way(_keep(lambda _, e: deque(e)), lambda o, p, __, ___: not _is_in(p, o.kept)),
    "tensor": Way(_keep(lambda _, e: e[0] if len(e) else None), lambda o, p, __, ___: p is not o.kept),
    "dict by tensor": Way(
        _keep(lambda ps, e: {p: 0.0 if _is_in(p, e) else 1.0 for p in ps}), lambda o, p, __, ___: o.kept[p]
    ),
    "filter": Way(_filter, lambda o, p, __, ___: o.kept(p)),
    "filter by id": Way(_filter_by_id, lambda o, p, __, ___: o.kept(p)),
    "list of flags": Way(_keep(flags), lambda o, _, i, ___: o.kept[i]),
    "tuple of flags": Way(_keep(lambda ps, e: tuple(flags(ps, e))), lambda o, _, i, ___: o.kept[i]),
    "row of flags": Way(_keep(lambda ps, e: torch.tensor(flags(ps, e))), lambda o, _, i, ___: bool(o.kept[i])),
    "array of flags": Way(_keep(lambda ps, e: np.array(flags(ps, e))), lambda o, _, i, ___: bool(o.kept[i])),
    "flags by place": Way(_keep(lambda ps, e: dict(enumerate(flags(ps, e)))), lambda o, _, i, ___: o.kept[i]),
    "list of dicts": Way(
        _keep(lambda ps, e: [{"p": p, "decay": flag} for p, flag in zip(ps, flags(ps, e), strict=True)]),
        lambda o, _, i, ___: o.kept[i]["decay"],
    ),
    "list of pairs": Way(
        _keep(lambda ps, e: list(zip(ps, flags(ps, e), strict=True))),
        lambda o, p, _, ___: next(flag for own, flag in o.kept if own is p),
    ),
    "flags in the group": Way(_in_group(flags), lambda _, __, i, group: group["kept"][i]),
    "id set in the group": Way(_in_group(lambda _, e: {id(p) for p in e}), lambda _, p, __, g: id(p) not in g["kept"]),
    "flags by group": Way(_keep(lambda ps, e: [flags(ps, e)]), lambda o, _, i, ___: o.kept[0][i]),
}
