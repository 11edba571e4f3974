"""Write the tables and the picture of rules.md from what our optimizers do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from figures import line_chart, table, write_block
from torch import Tensor, nn

from weightdecay.optim.adamw import AdamL2, AdamW
from weightdecay.optim.convert import convert
from weightdecay.optim.penalty import penalty
from weightdecay.optim.sgdw import SGDW
from weightdecay.rules import RULES
from weightdecay.schedules import schedule

LR, STEPS, WARMUP, LAMBDA = 6e-4, 20_000, 1_000, 0.1
RATES = schedule("cosine", peak=LR, steps=STEPS, warmup_steps=WARMUP)
LABELS = {"decoupled": "decoupled, independent", "fixed": "fixed", "corrected": "corrected, lr_squared"}
SCALAR = [name for name, rule in RULES.items() if rule.is_scalar]


def shrink(rule: str, weight_decay: float) -> float:
    """What a real optimizer leaves of a weight of 1 without gradients."""
    p = nn.Parameter(torch.ones(1, dtype=torch.float64))
    p.grad = torch.zeros_like(p)
    optimizer = SGDW([p], lr=LR, weight_decay=weight_decay, rule=RULES[rule])
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATES(step)
        optimizer.step()
    return float(p.detach())


def rules_of_one_run() -> None:
    """Every scalar rule with the λ that torch's 0.1 becomes in it."""
    rows, curves = [], {}
    for name in SCALAR:
        found = convert(LAMBDA, source="torch", target=name, lr=LR, schedule=RATES, steps=STEPS)
        at = [RULES[name].decay_per_step(RATES(step), float(found), LR) for step in range(STEPS)]
        shown = [at[WARMUP // 2], at[WARMUP], at[STEPS // 2], at[STEPS - STEPS // 20]]
        rows.append(
            [f"`{name}`", f"{float(found):.3g}", *(f"{a:.2e}" for a in shown), f"{math.fsum(at):.3f}",
             f"{shrink(name, float(found)):.4f}", "exact" if found.exact else f"{found.error:.0%} elsewhere"]
        )  # fmt: skip
        if label := LABELS.get(name):  # rules of one shape share a curve
            curves[label] = (list(range(0, STEPS, 50)), [1e5 * a for a in at[::50]])
    header = ["rule", "λ", f"a at step {WARMUP // 2}", f"at {WARMUP:,}", f"at {STEPS // 2:,}",
              f"at {STEPS - STEPS // 20:,}", "Σ a", "left of a weight", "against `torch`"]  # fmt: skip
    write_block("rules.md", "one run", table(header, rows))
    line_chart(
        "rules", curves, title="Decay per step of each rule over one run", across="step; decay per step in 10⁻⁵",
        x_ticks={step: f"{step:,}" for step in range(0, STEPS + 1, 5_000)},
        y_ticks={0: "0", 2: "2", 4: "4", 6: "6", 8: "8", 10: "10"},
    )  # fmt: skip


def three_ways() -> None:
    """λ as a term of the loss, in the gradient, and decoupled, for SGD and for Adam."""
    ways: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
        "SGD": (lambda g: SGDW(g, lr=0.05, rule="l2"), lambda g: SGDW(g, lr=0.05)),
        "SGD, momentum 0.9": (
            lambda g: SGDW(g, lr=0.05, momentum=0.9, rule="l2"), lambda g: SGDW(g, lr=0.05, momentum=0.9)),
        "Adam": (lambda g: AdamL2(g, lr=0.05), lambda g: AdamW(g, lr=0.05)),
    }  # fmt: skip
    rows = []
    for name, (coupled, decoupled) in ways.items():
        reference = trained(coupled, term=True)
        distances = [float((trained(way) - reference).norm() / reference.norm()) for way in (coupled, decoupled)]
        rows.append([name, *(f"{d:.1e}" for d in distances)])
    header = ["optimizer", "‖l2 − loss term‖ / ‖w‖", "‖decoupled − loss term‖ / ‖w‖"]
    write_block("rules.md", "three ways", table(header, rows))


def trained(optimizer_of: Callable[[Any], Any], *, term: bool = False) -> Tensor:
    """All weights of a small network after 200 steps."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    inputs = torch.randn(64, 8, dtype=torch.float64)
    targets = torch.randn(64, 4, dtype=torch.float64)
    decaying = torch.optim.SGD(net.parameters(), lr=0.0, weight_decay=0.1)  # says the λ of each tensor
    optimizer = optimizer_of([{"params": list(net.parameters()), "weight_decay": 0.0 if term else 0.1}])
    for _ in range(200):
        loss = (net(inputs) - targets).square().mean()
        optimizer.zero_grad()
        (loss + penalty(decaying) if term else loss).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def where_they_end() -> None:
    """f = ½h(w − a)² under λ = 1 and an lr that falls to 0: what each optimizer minimises in the end."""
    problems = [(5.0, 1.0), (0.5, 1.0), (-5.0, 0.01)]
    rows = []
    for name, cls in (("AdamW", AdamW), ("AdamL2", AdamL2), ("SGDW", SGDW)):
        rows.append([name, *(f"{w:.4f}" for w in ends(cls, problems))])
    rows.append(["clip(a, ±1/λ)", *(f"{max(-1.0, min(1.0, a)):.4f}" for a, _ in problems)])
    rows.append(["h·a/(h + λ)", *(f"{h * a / (h + 1):.4f}" for a, h in problems)])
    write_block("rules.md", "where they end", table(["", *(f"a = {a:g}, h = {h:g}" for a, h in problems)], rows))


def ends(cls: Any, problems: list[tuple[float, float]]) -> Iterator[float]:
    target, curvature = torch.tensor(problems, dtype=torch.float64).unbind(1)
    p = nn.Parameter(torch.zeros(len(problems), dtype=torch.float64))
    optimizer = cls([p], lr=1e-2, weight_decay=1.0)
    for step in range(20_000):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 20_000)
        p.grad = curvature * (p.detach() - target)
        optimizer.step()
    return (float(w) for w in p.detach())


if __name__ == "__main__":
    torch.set_num_threads(1)
    rules_of_one_run()
    three_ways()
    where_they_end()
