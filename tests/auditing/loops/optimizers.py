"""Healthy: one optimizer after the other, as people configure them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import schedulefree
import torch
from examples.museum.exhibit import Loop
from examples.museum.language_model import two_groups

import weightdecay
from tests.auditing.loops.parts import ConvNet, adamw, picture_loss, seeded, train


def sgd_with_its_own_l2_and_momentum() -> Loop:
    model = seeded(ConvNet)
    groups = weightdecay.plan(model, weight_decay=5e-4).param_groups(lr=0.1)
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    train(model, optimizer, loss=picture_loss)
    return Loop(model, optimizer, {})


def sgd_with_nesterov_asked_by_a_policy() -> Loop:
    model = seeded(ConvNet)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    train(model, optimizer, loss=picture_loss)
    return Loop(model, optimizer, {"policy": "torch"})


def plain_sgd() -> Loop:
    model = seeded()
    optimizer = torch.optim.SGD(two_groups(model.parameters(), 1e-2), lr=0.1)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 1e-2})


def adam_with_l2_that_is_wanted() -> Loop:
    model = seeded()
    optimizer = torch.optim.Adam(two_groups(model.parameters(), 1e-2), lr=1e-3)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 1e-2, "rule": "l2"})


def adam_that_says_it_decouples() -> Loop:
    model = seeded()
    groups = two_groups(model.parameters(), 0.1)
    optimizer = torch.optim.Adam(groups, lr=1e-3, decoupled_weight_decay=True)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def nadam_decoupled() -> Loop:
    model = seeded()
    groups = two_groups(model.parameters(), 0.1)
    optimizer = torch.optim.NAdam(groups, lr=1e-3, decoupled_weight_decay=True)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def radam_decoupled() -> Loop:
    model = seeded()
    groups = two_groups(model.parameters(), 0.1)
    optimizer = torch.optim.RAdam(groups, lr=1e-3, decoupled_weight_decay=True)
    train(model, optimizer, steps=8)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def adafactor_of_torch() -> Loop:
    model = seeded()
    optimizer = torch.optim.Adafactor(two_groups(model.parameters(), 0.1), lr=1e-2)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def adafactor_of_ours() -> Loop:
    model = seeded()
    optimizer = weightdecay.Adafactor(weightdecay.plan(model, weight_decay=0.1), lr=1e-2)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def schedule_free() -> Loop:
    model = seeded()
    optimizer = schedulefree.AdamWScheduleFree(two_groups(model.parameters(), 0.1), lr=1e-3, warmup_steps=10)
    optimizer.train()
    train(model, optimizer, steps=12)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def schedule_free_sgd() -> Loop:
    model = seeded()
    optimizer = schedulefree.SGDScheduleFree(two_groups(model.parameters(), 1e-2), lr=0.5)
    optimizer.train()
    train(model, optimizer, steps=6)
    return Loop(model, optimizer, {"weight_decay": 1e-2})


def tensor_lr() -> Loop:
    model = seeded()
    optimizer = adamw(model, lr=torch.tensor(1e-3), foreach=False)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def fused() -> Loop:
    model = seeded()
    optimizer = adamw(model, fused=True)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def foreach() -> Loop:
    model = seeded()
    optimizer = adamw(model, foreach=True, amsgrad=True)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def maximize_in_a_loop() -> Loop:
    model = seeded()
    optimizer = adamw(model, maximize=True, foreach=False)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def muon_for_matrices_and_adamw_for_the_rest() -> Loop:
    model = seeded()
    hidden = [p for p in model.blocks.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not other for other in hidden)]
    optimizers = [
        torch.optim.Muon(hidden, lr=2e-2, weight_decay=0.1),
        torch.optim.AdamW(two_groups(rest, 0.01), lr=3e-4),
    ]
    train(model, *optimizers)
    return Loop(model, optimizers, {})


def ours_with_muon_by_role() -> Loop:
    model = seeded()
    optimizer = weightdecay.Muon(weightdecay.plan(model, weight_decay=0.1), lr=2e-2)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


def controlled_to_be_independent() -> Loop:
    model = seeded()
    optimizer = torch.optim.AdamW(weightdecay.plan(model, weight_decay=1e-4).param_groups(lr=1e-3))
    weightdecay.control(optimizer, rule="independent", peak_lr=1e-3)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 1e-4, "rule": "independent"})


def _of_ours(kind: Any, **settings: Any) -> Callable[[], Loop]:
    def loop() -> Loop:
        model = seeded().to(torch.bfloat16 if "rounding" in settings else torch.float32)
        # `fixed` takes λ itself at each step: as much as the others at lr 1e-3 and λ 0.1.
        weight_decay = {"fixed": 1e-4, "independent": 1e-4, "lr_squared": 100.0}.get(settings.get("rule", ""), 0.1)
        peak = {"peak_lr": 1e-3} if settings.get("rule") in ("independent", "corrected") else {}
        plan = weightdecay.plan(model, weight_decay=weight_decay)
        optimizer = kind(plan, lr=1e-3, **peak, **settings)
        train(model, optimizer)
        return Loop(model, optimizer, {"weight_decay": weight_decay})

    loop.__name__ = f"our_{kind.__name__}_" + "_".join(map(str, settings.values()))
    return loop


RULES = ("decoupled", "independent", "fixed", "lr_squared", "corrected", "cautious")

LOOPS: list[Callable[[], Loop]] = [
    sgd_with_its_own_l2_and_momentum,
    sgd_with_nesterov_asked_by_a_policy,
    plain_sgd,
    adam_with_l2_that_is_wanted,
    adam_that_says_it_decouples,
    nadam_decoupled,
    radam_decoupled,
    adafactor_of_torch,
    adafactor_of_ours,
    schedule_free,
    schedule_free_sgd,
    tensor_lr,
    fused,
    foreach,
    maximize_in_a_loop,
    muon_for_matrices_and_adamw_for_the_rest,
    ours_with_muon_by_role,
    controlled_to_be_independent,
    *(_of_ours(weightdecay.AdamW, rule=rule) for rule in RULES),
    *(_of_ours(weightdecay.AdamW, rounding=rounding) for rounding in ("master", "kahan", "stochastic")),
    *(_of_ours(weightdecay.Lion, rule=rule) for rule in ("decoupled", "cautious")),
    *(_of_ours(weightdecay.SGDW, rule=rule) for rule in ("decoupled", "fixed")),
]
