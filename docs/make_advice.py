"""Write the tables and draw the pictures of advice.md: from the laws and the database, each run of it left out once."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from figures import line_chart, table, write_block

from weightdecay.advisor.advising import advise
from weightdecay.advisor.wording import as_text
from weightdecay.laws import (
    INDEPENDENT,
    NANOCHAT_TOKENS,
    SAME_MEMORY,
    SAME_TIMESCALE,
    SQRT_WIDTH,
    Law,
    Rate,
    carried,
    nanochat_weight_decay,
    optimal_batch_tokens,
    optimal_timescale,
)
from weightdecay.recipes.published.nearest import SYSTEMS, Planned, neighbours
from weightdecay.recipes.published.runs import PublishedRun, published_runs
from weightdecay.schedules import Constant, Cosine, Linear, Schedule
from weightdecay.timescale import origins

PAGE = "advice.md"
_COPIED = 0.1  # what is taken where nobody asks
_EXACT = 1e-9  # relative: two λ that differ by rounding alone are one


@dataclass(frozen=True)
class LeftOut:
    """How runs fare in the range that the others give.

    Attributes:
        inside: how many lie in it, of `runs`.
        width: high/low, in the middle and at most.
        outside: names of those that do not.
        right: of how many the median is their own λ.
    """

    runs: int
    inside: int
    width: tuple[float, float]
    outside: tuple[str, ...]
    right: int


def left_out(optimizer: str, *, whole_system: bool) -> LeftOut:
    """Each run of an optimizer against the range of its nearest others.

    Args:
        whole_system: whether the other sizes of its system are left out with it.
    """
    pool = [run for run in published_runs() if run.optimizer == optimizer]
    widths, outside, right = [], [], 0
    for run in pool:
        others = [one for one in pool if one is not run and not (whole_system and one.system == run.system)]
        near = neighbours(Planned(run.used, run.tokens, run.lr, optimizer), others)
        if not near.low * (1 - _EXACT) <= run.decoupled <= near.high * (1 + _EXACT):
            outside.append(run.name)
        widths.append(near.high / near.low)
        right += math.isclose(near.median, run.decoupled)
    return LeftOut(len(pool), len(pool) - len(outside), (statistics.median(widths), max(widths)), tuple(outside), right)


def _kept(
    value: Callable[[PublishedRun], float], into: Callable[[float, PublishedRun], float]
) -> tuple[int, float, float]:
    """Another quantity than λ, of the seven nearest systems: how many runs lie inside, the width, and the error."""
    pool = [run for run in published_runs() if run.optimizer == "adamw"]
    inside, widths, errors = 0, [], []
    for run in pool:
        others = [one for one in pool if one.system != run.system]
        near = neighbours(Planned(run.used, run.tokens, run.lr), others).runs[:SYSTEMS]
        found = [into(value(one), run) for one in near]
        inside += min(found) * (1 - _EXACT) <= run.decoupled <= max(found) * (1 + _EXACT)
        widths.append(max(found) / min(found))
        errors.append(abs(math.log(statistics.median_low(found) / run.decoupled)))
    return inside, statistics.median(widths), math.exp(statistics.mean(errors))


def leave_one_out() -> str:
    """The table of the ranges."""
    rows = []
    for optimizer, whole in (("adamw", False), ("adamw", True), ("muon", False), ("muon", True)):
        found = left_out(optimizer, whole_system=whole)
        middle, most = found.width
        rows.append(
            [
                f"{optimizer}, {'its whole system' if whole else 'the run'} left out",
                f"{found.inside} of {found.runs}",
                f"×{middle:.3g}",
                f"×{most:.3g}",
                f"{found.right} of {found.runs}",
                ", ".join(f"`{name}`" for name in found.outside) or "none",
            ]
        )
    pool = [run for run in published_runs() if run.optimizer == "adamw"]
    copied = sum(math.isclose(run.decoupled, _COPIED) for run in pool)
    rows.append([f"adamw, a copied {_COPIED:g} for all", "", "", "", f"{copied} of {len(pool)}", ""])
    return table(["", "inside the range", "its width, median", "widest", "median is its own λ", "outside"], rows)


def what_is_kept() -> str:
    """The table of what else could be taken from the nearest runs."""
    kinds: list[tuple[str, Callable[[PublishedRun], float], Callable[[float, PublishedRun], float]]] = [
        ("λ itself", lambda run: run.decoupled, lambda value, _: value),
        ("ηλ, the decay per step", lambda run: run.decay_per_step, lambda value, run: value / run.lr),
        (
            "τ = 1/(ηλT), the timescale",
            lambda run: run.timescale,
            lambda value, run: 1 / (run.lr * run.steps * value),
        ),
    ]
    rows = []
    for name, value, into in kinds:
        inside, width, error = _kept(value, into)
        runs = sum(run.optimizer == "adamw" for run in published_runs())
        rows.append([name, f"{inside} of {runs}", f"×{width:.3g}", f"×{error:.3g}"])
    return table(["taken from the seven nearest systems", "inside", "width, median", "median's mean error"], rows)


def database() -> str:
    """Every run."""
    header = ["run", "λ", "rule", "η", "B", "D", "N", "without embeddings", "D/N", "τ", "exempt", "read"]
    rows = [
        [
            f"`{run.name}`",
            f"{run.weight_decay:.4g}",
            run.rule if run.optimizer == "adamw" else f"{run.rule}, {run.optimizer}",
            f"{run.lr:.3g}",
            _size(run.batch_tokens),
            _size(run.tokens),
            _size(run.parameters),
            _size(run.active),
            f"{run.tokens_per_parameter:,.3g}",
            f"{run.timescale:.2g}",
            run.exempt,
            run.tag,
        ]
        for run in published_runs()
    ]
    return table(header, rows)


def sources() -> str:
    """Where each was read."""
    lines = []
    for run in published_runs():
        note = f" — {run.note}" if run.note else ""
        lines.append(f"- `{run.name}` [{run.tag}]: {run.source}{note}")
    return "\n".join(lines)


def _size(number: float) -> str:
    size, unit = next(pair for pair in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")) if number >= pair[0])
    return f"{number / size:.3g}{unit}"


def _logs(values: Iterable[float]) -> list[float]:
    return [math.log10(value) for value in values]


def _decades(low: int, high: int) -> dict[float, str]:
    return {float(power): f"{10.0**power:g}" for power in range(low, high + 1)}


def the_law() -> None:
    """τ_opt over tokens per parameter, and where published runs are."""
    ratios = [10 ** (step / 20) for step in range(0, 101)]
    inside = [ratio for ratio in ratios if 20 <= ratio <= 1280]
    runs = [run for run in published_runs() if run.optimizer == "adamw"]
    kinds = {"published, µP": [run for run in runs if run.parametrization == "mup"],
             "published, standard": [run for run in runs if run.parametrization != "mup"]}  # fmt: skip
    line_chart(
        "advice_law",
        {
            "held at its edge": (_logs(ratios), _logs(map(optimal_timescale, ratios))),
            "the law, fitted": (_logs(inside), _logs(map(optimal_timescale, inside))),
        },
        points={
            name: (_logs(run.tokens_per_parameter for run in some), _logs(run.timescale for run in some))
            for name, some in kinds.items()
        },
        title="Timescale over tokens per parameter: the law and the published runs",
        across="tokens per parameter without embeddings; τ = 1/(ηλT), as a part of the run",
        x_ticks=_decades(0, 5),
        y_ticks=_decades(-2, 1),
    )


def the_habit() -> None:
    """λ over η: what was used."""
    runs = [run for run in published_runs() if run.optimizer in ("adamw", "muon")]
    line_chart(
        "advice_habit",
        {},
        points={
            name: (_logs(run.lr for run in runs if run.optimizer == kind),
                   _logs(run.decoupled for run in runs if run.optimizer == kind))
            for name, kind in (("AdamW", "adamw"), ("Muon", "muon"))
        },
        title="Weight decay over learning rate in the database",
        across="peak learning rate of the matrices; λ, decoupled",
        x_ticks=_decades(-5, -1),
        y_ticks=_decades(-3, 1),
    )  # fmt: skip


def the_origins() -> None:
    """Where the final weights are from: the share of the last part of the run."""
    steps, curves = 4_000, {}
    percents = {float(part): f"{part}" for part in range(0, 101, 20)}
    shapes: Sequence[tuple[str, Callable[[float], Schedule]]] = [
        ("constant", Constant),
        ("linear to zero", lambda peak: Linear(peak, 0.0, steps)),
        ("cosine to a tenth", lambda peak: Cosine(peak, peak / 10, steps)),
    ]
    for total in (2, 10):
        for name, shape in shapes:
            found = origins(shape(total / steps), 1.0, steps)
            shares, parts = [], []
            for part in range(0, 101, 2):
                shares.append(float(found.coefficients[steps - steps * part // 100 :].sum()) if part else 0.0)
                parts.append(float(part))
            curves[f"{name}, ηλT = {total}"] = (parts, [100 * share for share in shares])
    line_chart(
        "advice_origins", curves, title="Where the final weights are from",
        across="last part of the run in %; its share of the final weights in %, from the exact c_i",
        x_ticks=percents, y_ticks=percents,
    )  # fmt: skip


def the_carriers() -> None:
    """What each law makes of λ₀ = 0.1 when one thing is multiplied."""
    there = Rate(lr=1e-3, steps=10_000, batch_tokens=1e6, width=1024)
    factors = [2 ** (step / 8) for step in range(33)]
    kinds: list[tuple[str, Law, Callable[[float], Rate]]] = [
        (f"{SAME_TIMESCALE.name}: B × k", SAME_TIMESCALE, lambda k: Rate(1e-3, 10_000 / k, 1e6 * k, 1024)),
        (f"{SAME_MEMORY.name}: D × k", SAME_MEMORY, lambda k: Rate(1e-3, 10_000 * k, 1e6, 1024)),
        (f"{SAME_TIMESCALE.name}: D × k", SAME_TIMESCALE, lambda k: Rate(1e-3, 10_000 * k, 1e6, 1024)),
        (f"{INDEPENDENT.name}: η / k", INDEPENDENT, lambda k: Rate(1e-3 / k, 10_000, 1e6, 1024)),
        (f"{SQRT_WIDTH.name}: d × k", SQRT_WIDTH, lambda k: Rate(1e-3, 10_000, 1e6, round(1024 * k))),
    ]
    line_chart(
        "advice_carried",
        {
            name: (
                [math.log2(k) for k in factors],
                [math.log2(carried(0.1, there, here(k))[law.name][1] / 0.1) for k in factors],
            )
            for name, law, here in kinds
        },
        title="What a change does to λ, law by law",
        across="what is multiplied, k; λ/λ₀",
        x_ticks={power: f"×{2**power}" for power in range(5)},
        y_ticks={power: f"×{2.0**power:g}" for power in range(-4, 5)},
    )


def nanochats() -> None:
    """λ and the batch by nanochat's formulas."""
    tokens = [10 ** (8 + step / 10) for step in range(41)]
    line_chart(
        "advice_nanochat",
        {
            "λ at B = 2¹⁷": (_logs(tokens), _logs(nanochat_weight_decay(2**17, one) for one in tokens)),
            "λ at B = 2¹⁹": (_logs(tokens), _logs(nanochat_weight_decay(2**19, one) for one in tokens)),
            "λ at B = 2²¹": (_logs(tokens), _logs(nanochat_weight_decay(2**21, one) for one in tokens)),
            "B_opt / 2¹⁹": (_logs(tokens), _logs(optimal_batch_tokens(one) / 2**19 for one in tokens)),
        },
        title="nanochat's weight decay and batch over tokens",
        across=f"tokens of the run (D_ref is {NANOCHAT_TOKENS / 1e9:.3g} billion); λ, and B_opt in units of 2¹⁹",
        x_ticks={float(power): f"10^{power}" for power in range(8, 13)},
        y_ticks=_decades(-4, 2),
    )


def example() -> str:
    """What the command prints for the run at the head of the page."""
    advice = advise(params=124e6, tokens=2.5e9, batch_tokens=0.5e6, lr=6e-4)
    return f"```\n{as_text(advice)}\n```"


BLOCKS = {
    "example": example,
    "left out": leave_one_out,
    "what is kept": what_is_kept,
    "database": database,
    "sources": sources,
}


def main() -> None:
    for name, block in BLOCKS.items():
        write_block(PAGE, name, block())
    for picture in (the_law, the_habit, the_origins, the_carriers, nanochats):
        picture()


if __name__ == "__main__":
    main()
