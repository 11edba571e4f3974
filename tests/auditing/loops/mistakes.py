"""Wrong in one way each: small mistakes in steps, groups and classes."""

from __future__ import annotations

from typing import Any

import torch
from examples.museum.adam import Optimizer, adam
from examples.museum.exhibit import Loop
from examples.museum.language_model import two_groups

import weightdecay
from tests.auditing.loops.hostile import ASKED, MATRICES
from tests.auditing.loops.parts import ConvNet, Hostile, adamw, picture_loss, seeded, train


class ByTheLastRate(Optimizer):
    """A variable that a loop over groups has left behind."""

    def change(self, p: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        lr = self.param_groups[-1]["lr"]
        p.mul_(1 - lr * group["weight_decay"]).sub_(group["lr"] * adam(state, p.grad))


class TimesTen(Optimizer):
    def change(self, p: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        p.mul_(1 - 10 * group["lr"] * group["weight_decay"]).sub_(group["lr"] * adam(state, p.grad))


class AThird(Optimizer):
    def change(self, p: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        p.mul_(1 - group["lr"] * group["weight_decay"] / 3).sub_(group["lr"] * adam(state, p.grad))


class TwoAxesOnly(Optimizer):
    """Decays linear layers, and forgets the kernels of convolutions."""

    def change(self, p: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        if p.ndim == 2:
            p.mul_(1 - group["lr"] * group["weight_decay"])
        p.sub_(group["lr"] * adam(state, p.grad))


class AdamW(torch.optim.Adam):
    """The name alone."""


def stepped(kind: type[Optimizer]) -> Loop:
    model = seeded()
    optimizer = kind(two_groups(model.parameters(), 0.1), lr=1e-3)
    train(model, optimizer)
    return Loop(model, optimizer, ASKED)


def ten_times_too_much() -> Loop:
    return stepped(TimesTen)


def a_third_of_it() -> Loop:
    return stepped(AThird)


def kernels_are_forgotten() -> Loop:
    model = seeded(ConvNet)
    optimizer = TwoAxesOnly(weightdecay.plan(model, weight_decay=0.1).param_groups(lr=1e-3), lr=1e-3)
    train(model, optimizer, loss=picture_loss)
    return Loop(model, optimizer, ASKED)


def an_adamw_that_is_adam() -> Loop:
    model = seeded()
    optimizer = AdamW(two_groups(model.parameters(), 0.1), lr=1e-3)
    train(model, optimizer)
    return Loop(model, optimizer, ASKED)


def an_sgd_beside_that_only_decays() -> Loop:
    model = seeded()
    optimizers = [adamw(model, weight_decay=0.0), torch.optim.SGD(two_groups(model.parameters(), 0.1), lr=1e-3)]
    train(model, *optimizers)
    return Loop(model, optimizers, ASKED)


def rate_of_the_last_group_for_all() -> Loop:
    model = seeded()
    rest = [p for p in model.parameters() if p is not model.head.weight]
    groups = [*two_groups(rest, 0.1), {"params": [model.head.weight], "weight_decay": 0.1, "lr": 1e-2}]
    optimizer = ByTheLastRate(groups, lr=1e-3)
    train(model, optimizer)
    return Loop(model, optimizer, ASKED)


def weight_decay_under_a_name_that_nobody_reads() -> Loop:
    model = seeded()
    groups = [{"params": group["params"], "wd": group["weight_decay"]} for group in two_groups(model.parameters(), 0.1)]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.0)
    train(model, optimizer)
    return Loop(model, optimizer, ASKED)


def float16_weights() -> Loop:
    model = seeded().half()
    optimizer = adamw(model, eps=1e-4)
    train(model, optimizer)
    return Loop(model, optimizer, ASKED)


LOOPS: list[Hostile] = [
    Hostile(ten_times_too_much, "decays-twice", "error", MATRICES),
    Hostile(a_third_of_it, "not-decaying", "error", MATRICES),
    Hostile(kernels_are_forgotten, "not-decaying", "error", ("stem.weight", "body.weight")),
    Hostile(an_adamw_that_is_adam, "coupled", "warning", MATRICES),
    Hostile(an_sgd_beside_that_only_decays, "doubled", "error", MATRICES),
    Hostile(rate_of_the_last_group_for_all, "wrong-scale", "error", ("tokens.weight", "blocks.0.up.weight")),
    Hostile(weight_decay_under_a_name_that_nobody_reads, "ignored-key", "error", MATRICES),
    Hostile(float16_weights, "lost-to-rounding", "error", MATRICES),
]
