"""Advice for people: what was used, what the law says, what can be carried over, what λ amounts to, what to mind."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from weightdecay.advisor.advice import Advice, Memory, Range
from weightdecay.declared.values import quantity
from weightdecay.laws import BATCH, FITTED_TOKENS_PER_PARAMETER, NANOCHAT, POWER_LINES, TAGS, Law
from weightdecay.recipes.published.runs import PublishedRun

_WIDTH = 110
_ROOM_FOR_TABLES = 100  # columns


def as_text(advice: Advice, width: int = _WIDTH) -> str:
    """The whole advice, without colours."""
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(Shown(advice))
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().split("\n"))


@dataclass(frozen=True)
class Shown:
    """The whole advice, for a terminal of any width: tables where there is room for them, else a line an entry."""

    advice: Advice

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        advice, wide = self.advice, options.max_width >= _ROOM_FOR_TABLES
        yield Text(_planned(advice))
        for title, body in (
            (_used_title(advice), _used(advice, wide)),
            (_law_title(advice), _law(advice)),
            ("carried over from other runs", _carried(advice, wide)),
            ("what these λ amount to here", _amounts(advice, wide)),
            ("mind", _lines([*advice.warnings, *advice.always])),
        ):
            yield Text("")
            yield Text(title, style="bold")
            yield from (Padding(part, (0, 0, 0, 2)) for part in body)
        yield Text("")
        yield Text(_tags(advice), style="dim")


def _planned(advice: Advice) -> str:
    run = advice.planned
    without = advice.law.parameters_without
    whose = (
        "without embeddings" if advice.law.embeddings_given else "without embeddings, if those are as large as there"
    )
    epochs = f"{run.epochs:g} epoch{'' if run.epochs == 1 else 's'}"
    return (
        f"a run of {quantity(run.params)} parameters ({_span(without, quantity)} {whose}), {quantity(run.tokens)} "
        f"tokens in {run.steps:,} steps of {quantity(run.batch_tokens)}, lr {run.lr:g}, {run.optimizer}, {epochs}"
    )


def _used_title(advice: Advice) -> str:
    near = advice.near
    tags = ", ".join(sorted({run.tag for run in near.runs}))
    return (
        f"λ = {near.low:.3g} to {near.high:.3g}: the {len(near.runs)} nearest published systems used it, "
        f"{near.median:.3g} in the middle [{tags}]"
    )


def _used(advice: Advice, wide: bool) -> Iterator[RenderableType]:
    columns = ("run", "λ", "rule", "lr", "batch", "tokens", "D/N", "τ", "exempt", "read")
    yield from _rows(columns, [_row(run) for run in advice.near.runs], wide)
    yield Text(
        "λ as torch.optim.AdamW means it, the decay per step over η; D/N tokens per parameter without embeddings; τ "
        "the timescale 1/(ηλT) as a part of the run"
    )


def _row(run: PublishedRun) -> Sequence[str]:
    return (
        run.name,
        f"{run.decoupled:.3g}",
        run.rule if run.rule == "decoupled" else f"{run.rule} {run.weight_decay:.3g}",
        f"{run.lr:.2g}",
        quantity(run.batch_tokens),
        quantity(run.tokens),
        f"{run.tokens_per_parameter:,.0f}",
        f"{run.timescale:.2g}",
        run.exempt,
        f"[{run.tag}]",
    )


def _law_title(advice: Advice) -> str:
    law = advice.law
    if law.weight_decay is not None:
        return f"λ = {law.weight_decay:.4g} by the law, which holds here [{POWER_LINES.tag}]"
    return "the law does not hold here"


def _law(advice: Advice) -> Iterator[RenderableType]:
    law = advice.law
    yield Text(f"{POWER_LINES.equation}; {POWER_LINES.source} [{POWER_LINES.tag}]")
    yield from _lines(law.reasons)
    low, high = FITTED_TOKENS_PER_PARAMETER
    inside = low <= advice.planned.tokens_per_parameter <= high
    held = "" if inside else f"; held at the edge of the fit, or {law.continued:.3g} with the line continued beyond it"
    say = "which N it counts is not settled" if law.applies else "as one voice among others"
    share = "" if law.embeddings_given else " (their share as in the nearest runs: --embeddings N settles it)"
    yield Text(
        f"{say}: {law.all_counted:.3g} with all parameters, {_span(law.without_embeddings)} without "
        f"embeddings{share}{held}"
    )


def _carried(advice: Advice, wide: bool) -> Iterator[RenderableType]:
    rows = [_law_row(one.law, _usable(one.weight_decay, advice)) for one in advice.carried]
    rows.append(_law_row(NANOCHAT, f"{advice.nanochat:.3g}"))
    run = advice.carried[0].run
    yield from _rows(("law", "λ", "equation", "source", "holds for"), rows, wide)
    width = "" if advice.planned.width else "; √width needs --width"
    yield Text(f"λ₀ = {run.decoupled:.3g}, η₀, T₀, B₀ of {run.name}, the nearest run{width}")
    yield Text(
        f"B_opt = {quantity(advice.batch_tokens)} tokens: {BATCH.equation}; {BATCH.source} [{BATCH.tag}]; {BATCH.holds}"
    )


def _usable(weight_decay: float, advice: Advice) -> str:
    """A λ; that a step under it would remove more than the whole weight is said."""
    over = weight_decay * advice.planned.lr > 1
    return f"{weight_decay:.3g}{', over 1/η: none' if over else ''}"


def _law_row(law: Law, value: str) -> Sequence[str]:
    return law.name, value, law.equation, f"{law.source} [{law.tag}]", law.holds


def _amounts(advice: Advice, wide: bool) -> Iterator[RenderableType]:
    columns = ("λ", "timescale 1/(ηλ)", "of the run", "half-life", "Σ ηλ", "95 % from")
    yield from _rows(columns, [_memory_row(memory) for memory in advice.memories], wide)
    unknown = advice.planned.schedule == "unknown"
    schedule = "unknown (--schedule), so at a constant lr" if unknown else advice.planned.schedule
    yield Text(
        "95 % from: 95 % of the final weights come from the last X % of the run, by the exact c_i = a_i·Π(1 − a_j) of "
        f"all later steps j [C]; schedule: {schedule}, without its warm-up"
    )


def _memory_row(memory: Memory) -> Sequence[str]:
    never = f"never: {100 * memory.start:.0f} % is the start's"
    last = never if memory.last_part is None else f"the last {memory.last_part:.1%}"
    return (
        f"{memory.weight_decay:.3g}",
        f"{memory.steps:,.0f} steps, {quantity(memory.tokens)} tokens, {memory.epochs:.3g} epochs",
        f"{memory.part:.3g}",
        f"{quantity(memory.half_life_tokens)} tokens",
        f"{memory.total:.3g}",
        last,
    )


def _tags(advice: Advice) -> str:
    used = {run.tag for run in advice.near.runs} | {one.law.tag for one in advice.carried}
    used |= {law.tag for law in (POWER_LINES, NANOCHAT, BATCH)} | {"A", "C", "D"}
    return "; ".join(f"[{tag}] {words}" for tag, words in TAGS.items() if tag in used)


def _rows(columns: Sequence[str], rows: Sequence[Sequence[str]], wide: bool) -> Iterator[RenderableType]:
    """A table; where there is no room for one, each row as a sentence that begins with its first cell."""
    if not wide:
        yield from _lines([f"{row[0]}: {', '.join(map(_named, columns[1:], row[1:]))}" for row in rows])
        return
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    yield table


def _named(column: str, cell: str) -> str:
    return f"{column} {cell}"


def _lines(said: Sequence[str]) -> Iterator[RenderableType]:
    for words in said:
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_row(Text("–"), Text(words))
        yield grid


def _span(found: Range, spelt: Callable[[float], str] = "{:.3g}".format) -> str:
    low, high = spelt(found.low), spelt(found.high)
    return low if low == high else f"{low} to {high}"
