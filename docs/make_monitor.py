"""Draw the pictures of docs/monitor.md, each by the monitor itself on noise, and from two real runs if they are given.

python docs/make_monitor.py                       what noise shows (a minute)
python docs/make_monitor.py CONSTANT COSINE       and two run directories of gpt3:nano, as the page says how to make
"""

from __future__ import annotations

import functools
import json
import math
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from figures import line_chart, table, write_block
from torch import nn

import weightdecay
from weightdecay import Monitor
from weightdecay.equilibrium import adamw_equilibrium, lion_equilibrium

Row = dict[str, Any]
PAGE = "monitor.md"
STEPS = 800


def seen(
    make: Callable[[Any], Any],
    *,
    std: float,
    steps: int = STEPS,
    noise: float = 1.0,
    lr: Callable[[int], float] | None = None,
    shape: tuple[int, int] = (64, 128),
    **options: Any,
) -> list[Row]:
    """The rows of one matrix on gradients of pure noise."""
    torch.manual_seed(0)
    model = nn.Linear(shape[1], shape[0], bias=False)
    nn.init.normal_(model.weight, std=std)
    optimizer = make(model.parameters())
    with Monitor(model, optimizer, interval=5, **options) as monitor:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] if lr is None else lr(step)
            model.weight.grad = noise * torch.randn_like(model.weight)
            optimizer.step()
    return [row for row in monitor.rows if row["kind"] == "decay"]


def curve(rows: list[Row], key: str, scale: float = 1.0) -> tuple[list[float], list[float]]:
    told = [row for row in rows if row[key] is not None]
    return [row["step"] for row in told], [scale * row[key] for row in told]


def ticks(*values: float) -> dict[float, str]:
    return {value: f"{value:,g}" for value in values}


def adamw(lr: float, λ: float) -> Callable[[Any], Any]:
    return lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=λ)


def draw_equilibrium() -> None:
    """From above and from below to one norm, along the path that the recursion says."""
    settled = adamw_equilibrium(1e-2, 1e-2, 0.9).rms
    high, low = (seen(adamw(1e-2, 1.0), std=times * settled, steps=400) for times in (3.0, 0.2))
    line_chart(
        "monitor-equilibrium",
        {
            "began at 3 times": curve(high, "weight_rms"), "began at 1/5": curve(low, "weight_rms"),
            "expected": curve(high, "expected_rms"), "expected, from 1/5": curve(low, "expected_rms"),
            "equilibrium": curve(low, "equilibrium_rms"),
        },
        title="The norm under AdamW on noise: it comes to the same from anywhere", across="step",
        x_ticks=ticks(0, 100, 200, 300, 400), y_ticks=ticks(0, 0.05, 0.1, 0.15, 0.2),
    )  # fmt: skip


def draw_speeds() -> None:
    """Radians a step by the gradients' size: decoupled decay turns all alike, L2 each at its own speed."""
    sizes = (0.1, 0.3, 1.0, 3.0, 10.0)
    coupled, decoupled, theory = [], [], []
    for size in sizes:
        l2 = seen(lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1), std=math.sqrt(size / 20), noise=size)
        plain = seen(adamw(1e-2, 0.1), std=0.22, noise=size)
        coupled.append(sum(row["angle"] for row in l2[-40:]) / 40)
        decoupled.append(sum(row["angle"] for row in plain[-40:]) / 40)
        theory.append(l2[-1]["equilibrium_angle"])
    across = [math.log10(size) for size in sizes]
    line_chart(
        "monitor-speeds",
        {"Adam with L2": (across, coupled), "its formula": (across, theory), "AdamW": (across, decoupled)},
        title="How far a matrix turns in a step, by the size of its gradients",
        across="standard deviation of the gradients",
        x_ticks={math.log10(size): f"{size:g}" for size in sizes}, y_ticks=ticks(0, 0.01, 0.02, 0.03, 0.04),
    )  # fmt: skip


def draw_lion() -> None:
    """Lion's norm beside the exact formula and the one for small decays."""
    decays, measured, exact, small = (1e-3, 3e-3, 1e-2, 3e-2), [], [], []
    for a in decays:
        predicted = lion_equilibrium(1e-3, a, 0.9, 0.99)
        rows = seen(functools.partial(weightdecay.Lion, lr=1e-3, weight_decay=1e3 * a), std=predicted.rms)
        measured.append(math.sqrt(sum(row["weight_rms"] ** 2 for row in rows[-40:]) / 40))
        exact.append(predicted.rms)
        momentum = (1 - 0.9) ** 2 + 0.9**2 * (1 - 0.99) / (1 + 0.99)
        small.append(1e-3 / (math.sqrt(math.pi / 2) * math.sqrt(2 * a) * math.sqrt(momentum)))
    across = [math.log10(a) for a in decays]
    line_chart(
        "monitor-lion",
        {"seen": (across, measured), "exact": (across, exact), "for small ηλ": (across, small)},
        title="Lion's norm at equilibrium", across="decay per step",
        x_ticks={math.log10(a): f"{a:g}" for a in decays}, y_ticks=ticks(0, 0.05, 0.1, 0.15, 0.2),
    )  # fmt: skip


def draw_schedule() -> None:
    """A cosine to zero: where the schedule leads, and what the last step's numbers alone would say."""
    steps = 1_000
    rows = seen(
        adamw(1e-2, 1.0), std=0.2, steps=steps, lr=lambda step: 5e-3 * (1 + math.cos(math.pi * step / steps)) + 1e-5
    )
    line_chart(
        "monitor-schedule",
        {
            "seen": curve(rows, "weight_rms"), "expected": curve(rows, "expected_rms"),
            "of constant numbers": curve(rows, "equilibrium_rms"),
        },
        title="The norm under a cosine to zero", across="step",
        x_ticks=ticks(0, 250, 500, 750, 1000), y_ticks=ticks(0, 0.05, 0.1, 0.15, 0.2),
    )  # fmt: skip


def draw_bound() -> None:
    """Muon's largest singular value, and what it cannot exceed."""
    rows = seen(
        lambda p: torch.optim.Muon(p, lr=0.02, weight_decay=1.0, adjust_lr_fn="match_rms_adamw"), std=0.3, steps=300
    )
    line_chart(
        "monitor-bound",
        {"largest singular value": curve(rows, "sigma_max"), "its bound": curve(rows, "sigma_bound")},
        title="Muon on noise: the spectral norm stays under its bound", across="step",
        x_ticks=ticks(0, 100, 200, 300), y_ticks=ticks(0, 2, 4, 6),
    )  # fmt: skip


def draw_lost() -> None:
    """What a step takes of a bfloat16 weight, with and without a master."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    decays = [10**power for power in (-5, -4.5, -4, -3.5, -3, -2.75, -2.5, -2.25, -2, -1.5)]
    for rounding in ("nearest", "master"):
        shares = []
        for a in decays:
            torch.manual_seed(0)
            w = nn.Parameter((0.02 * torch.randn(64, 128)).bfloat16())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", weightdecay.PrecisionWarning)
                optimizer = weightdecay.AdamW([w], lr=1e-3, weight_decay=a / 1e-3, rounding=rounding)
            with Monitor(nn.ParameterList([w]), optimizer, interval=1) as monitor:
                w.grad = torch.randn_like(w)
                optimizer.step()
            shares.append(monitor.rows[0]["decay_realised"] / a)
        curves[f"rounding '{rounding}'"] = ([math.log10(a) for a in decays], shares)
    line_chart(
        "monitor-lost", curves, title="Realised over requested decay of bfloat16 weights", across="decay per step",
        x_ticks={power: f"1e{power}" for power in (-5, -4, -3, -2)} | {-1.5: "0.03"},
        y_ticks=ticks(0, 0.25, 0.5, 0.75, 1, 1.25),
    )  # fmt: skip


def draw_memory() -> None:
    """What is left of an update after so many steps."""
    steps = list(range(0, 2_001, 20))
    curves = {
        f"ηλ = {a:g}": ([float(step) for step in steps], [(1 - a) ** step for step in steps])
        for a in (3e-4, 1e-3, 3e-3)
    }
    line_chart(
        "monitor-memory", curves, title="What is left of an update, by the decay per step", across="steps since",
        x_ticks=ticks(0, 500, 1000, 1500, 2000), y_ticks=ticks(0, 0.25, 0.5, 0.75, 1),
    )  # fmt: skip


def rows_of(run: str) -> list[Row]:
    lines = (Path(run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == "decay" and row["hidden"]]


def draw_runs(constant: str, cosine: str) -> None:
    """Two real runs: each hidden matrix over its last quarter, beside theory."""
    cells = []
    for name, run in (("constant", constant), ("cosine", cosine)):
        rows = rows_of(run)
        last = [row for row in rows if row["step"] > 0.75 * rows[-1]["step"]]
        by_name: dict[str, list[Row]] = defaultdict(list)
        for row in last:
            by_name[row["name"]].append(row)
        for by in ("expected", "equilibrium"):
            ratios = sorted(
                sum(row["angle"] for row in ones) / sum(row[f"{by}_angle"] for row in ones) for ones in by_name.values()
            )
            near = sum(abs(ratio - 1) <= 0.25 for ratio in ratios)
            norms = sorted(
                math.sqrt(sum(row["weight_rms"] ** 2 for row in ones) / sum(row[f"{by}_rms"] ** 2 for row in ones))
                for ones in by_name.values()
            )
            words = "the whole schedule" if by == "expected" else "the present numbers"
            cells.append([
                f"{name}, by {words}", f"{near} of {len(ratios)}", f"{ratios[0]:.2f} to {ratios[-1]:.2f}",
                f"{norms[0]:.2f} to {norms[-1]:.2f}",
            ])  # fmt: skip
    write_block(PAGE, "runs", table(["learning rate, theory", "within 25 %", "angle/theory", "norm/theory"], cells))

    rows, curves = rows_of(cosine), {}
    steps = sorted({row["step"] for row in rows})
    for key, label in (("angle", "seen"), ("expected_angle", "expected"), ("equilibrium_angle", "of constant numbers")):
        means = [
            sum(r[key] for r in rows if r["step"] == step) / sum(r["step"] == step for r in rows) for step in steps
        ]
        curves[label] = ([float(step) for step in steps], means)
    line_chart(
        "monitor-nano", curves, title="gpt3:nano under a cosine: mean angle of its hidden matrices", across="step",
        x_ticks=ticks(0, 500, 1000, 1500, 2000), y_ticks=ticks(0, 0.005, 0.01, 0.015, 0.02, 0.025),
    )  # fmt: skip


def main() -> None:
    for draw in (draw_equilibrium, draw_speeds, draw_lion, draw_schedule, draw_bound, draw_lost, draw_memory):
        draw()
    if len(sys.argv) == 3:
        draw_runs(*sys.argv[1:])


if __name__ == "__main__":
    main()
