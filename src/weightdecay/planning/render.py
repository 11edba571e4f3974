"""A plan for people: the table grouped by pattern, and one tensor's story."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from weightdecay.planning.decay_plan import DecayPlan, PlannedTensor
from weightdecay.planning.patterns import INDEX, pattern_of
from weightdecay.planning.roles.roles import DECAYING, Role

_WIDTH_FOR_REASONS = 110  # columns below which there is no room for a reason beside the rest
_NAME_WIDTH = {True: 48, False: 31}  # columns for names beside reasons, and in a narrow table


@dataclass(frozen=True)
class Row:
    """Tensors that differ in nothing but the indices in their names."""

    pattern: str
    tensors: tuple[PlannedTensor, ...]


def grouped(tensors: Iterable[PlannedTensor]) -> list[Row]:
    """Rows by name pattern, in order of first appearance: `layers.{0-31}.mlp.up_proj.weight`."""
    alike: dict[tuple[object, ...], list[PlannedTensor]] = {}
    for tensor in tensors:
        template = INDEX.sub("#", tensor.name)
        key = (template, tensor.shape, tensor.roles, tensor.multiplier, tensor.contested)
        alike.setdefault(key, []).append(tensor)
    return [Row(pattern_of([tensor.name for tensor in group]), tuple(group)) for group in alike.values()]


def _grid(title: str, *headings: str) -> Table:
    grid = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in headings:
        grid.add_column(
            Text(heading), justify="right" if heading in ("n", "λ") else "left", overflow="fold",
            no_wrap=heading == "tensor",
        )  # fmt: skip
    return grid


def _broken(name: str, width: int) -> str:
    """A name that is too long, in two lines, broken where one of its parts begins."""
    if len(name) <= width:
        return name
    cut = name.rfind(".", 0, width)
    return name if cut < 1 else f"{name[:cut]}\n  {name[cut:]}"


def _first_cells(row: Row, width: int) -> list[Text]:
    """What is said of a row in every table: names, how many, shape, role."""
    first = row.tensors[0]
    role = " + ".join(first.roles) + (" (contested)" if first.contested else "")
    count = str(len(row.tensors)) if len(row.tensors) > 1 else ""
    shape = "×".join(map(str, first.shape)) or "scalar"
    return [Text(_broken(row.pattern, width)), Text(count, style="dim"), Text(shape, style="dim"), Text(role)]


@dataclass(frozen=True)
class PlanTable:
    """The plan as rich prints it, a row per pattern; on a narrow screen without the reasons."""

    plan: DecayPlan

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        reasons = options.max_width >= _WIDTH_FOR_REASONS
        title = f"decay plan: policy {self.plan.policy}, λ = {self.plan.weight_decay:g}"
        grid = _grid(title, "tensor", "n", "shape", "role", "λ", *(["why"] if reasons else []))
        for row in grouped(self.plan):
            first = row.tensors[0]
            decay = Text(f"{first.weight_decay:g}", style="bold" if first.decays else "dim")
            why = Text(first.reason.removeprefix(f"{first.role}: "), style="dim")
            grid.add_row(*_first_cells(row, _NAME_WIDTH[reasons]), decay, *([why] if reasons else []))
        yield grid


def table_text(plan: DecayPlan, width: int = 140) -> str:
    """The table and the totals as plain text."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(PlanTable(plan))
    console.print(Text(str(plan.summary())))
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]


def story(tensor: PlannedTensor) -> str:
    """One tensor's "why", a few lines."""
    reason = tensor.reason
    role, _, rest = reason.partition(": ")
    if role in tensor.roles and rest in tensor.evidence:  # what stands above already
        reason = f"{role}, which {'decays' if tensor.decays else 'does not decay'}"
    lines = [
        f"{tensor.name}  {'×'.join(map(str, tensor.shape)) or 'a single number'}",
        f"  role:      {' + '.join(tensor.roles)}{' (contested)' if tensor.contested else ''}",
        f"  evidence:  {tensor.evidence}",
        f"  decision:  λ = {tensor.weight_decay:g}: {reason}",
    ]
    if tensor.aliases:
        lines.insert(1, f"  also:      {', '.join(tensor.aliases)}")
    return "\n".join(lines)


def story_document(tensor: PlannedTensor) -> dict[str, Any]:
    """The same for machines."""
    return {
        "name": tensor.name,
        "aliases": list(tensor.aliases),
        "shape": list(tensor.shape),
        "roles": [role.value for role in tensor.roles],
        "evidence": tensor.evidence,
        "contested": tensor.contested,
        "decays": tensor.decays,
        "multiplier": tensor.multiplier,
        "weight_decay": tensor.weight_decay,
        "reason": tensor.reason,
    }


# why a wrong verdict matters, by role: shown where two plans differ
_CONSEQUENCES = {
    Role.NORM_GAIN: "decay pulls a gain to 0 (one stored as 1 + w to 1), against what training sets it to",
    Role.BIAS: "a bias has no scale to keep small; decay only shifts what the layer can express",
    Role.SCALE: "decay closes the gate or shrinks the scale however the loss wants it",
    Role.STATE_SPACE: "decay moves the time constants: exp(A_log) goes to 1 and memory with it",
    Role.TIME_MIX: "decay pulls the mix to one side and the time constants to a fixed value",
    Role.WEIGHT_NORM_GAIN: "the gain is the layer's only scale",
    Role.LEARNED_TOKEN: "opinions differ; decay shrinks a token that many positions share",
    Role.RELATIVE_POSITION: "opinions differ; decay flattens the learned preference for distances",
}
_WITHOUT_DECAY = "without decay its norm grows and its effective learning rate falls through training"


def comparison(ours: DecayPlan, theirs: DecayPlan) -> Group:
    """Where two plans differ, a row per pattern, and below what it means, once per role."""
    differing = _differing(ours, theirs)
    if not differing:
        return Group(Text(f"{theirs.policy} does with every tensor what {ours.policy} does"))
    grid = _grid(
        f"where {theirs.policy} differs from {ours.policy}", "tensor", "n", "shape", "role", ours.policy, theirs.policy
    )
    consequences: dict[str, str] = {}
    for row in differing:
        first, other = row.tensors[0], theirs.get(row.tensors[0].name)
        grid.add_row(*_first_cells(row, _NAME_WIDTH[False]), Text(_lambda(first)), Text(_lambda(other)))
        if other is not None and first.decays != other.decays:
            consequences[first.role] = _WITHOUT_DECAY if first.role in DECAYING else _CONSEQUENCES.get(first.role, "")
    lines = [Text(f"{role}: {consequence}") for role, consequence in consequences.items() if consequence]
    return Group(grid, *lines)


def comparison_document(ours: DecayPlan, theirs: DecayPlan) -> dict[str, Any]:
    """The same for machines, tensor by tensor."""
    return {
        "ours": ours.policy,
        "theirs": theirs.policy,
        "tensors": len(ours),
        "differences": [
            {
                "name": difference.name,
                "ours": None if difference.ours is None else story_document(difference.ours),
                "theirs": None if difference.theirs is None else story_document(difference.theirs),
                "changes": list(difference.changes),
            }
            for difference in ours.diff(theirs)
        ],
    }


def _differing(ours: DecayPlan, theirs: DecayPlan) -> list[Row]:
    names = {difference.name for difference in ours.diff(theirs)}
    return grouped([tensor for tensor in ours if tensor.name in names] + [t for t in theirs if t.name not in ours])


def _lambda(tensor: PlannedTensor | None) -> str:
    return "not there" if tensor is None else f"{tensor.weight_decay:g}"
