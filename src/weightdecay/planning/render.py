"""A plan for people: the table grouped by pattern, and one tensor's story."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from weightdecay.planning.plan import DecayPlan, PlannedTensor
from weightdecay.planning.roles import DECAYING, Role

_INDEX = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)|(?<=\.)\d+$")


@dataclass(frozen=True)
class Row:
    """Tensors that differ in nothing but the indices in their names."""

    pattern: str
    tensors: tuple[PlannedTensor, ...]


def grouped(tensors: Iterable[PlannedTensor]) -> list[Row]:
    """Rows by name pattern, in order of first appearance: `layers.{0-31}.mlp.up_proj.weight`."""
    alike: dict[tuple[object, ...], list[PlannedTensor]] = {}
    for tensor in tensors:
        template = _INDEX.sub("#", tensor.name)
        alike.setdefault((template, tensor.shape, tensor.roles, tensor.multiplier), []).append(tensor)
    return [Row(_pattern([tensor.name for tensor in group]), tuple(group)) for group in alike.values()]


def _pattern(names: list[str]) -> str:
    columns = list(zip(*(_INDEX.findall(name) for name in names), strict=True))
    ranges = iter([_range({int(index) for index in column}) for column in columns])
    return _INDEX.sub(lambda _: next(ranges), names[0])


def _range(indices: set[int]) -> str:
    """`7`, `{0-31}` or `{0-2,5,7-9}`."""
    spans: list[list[int]] = []
    for index in sorted(indices):
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    text = ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in spans)
    return text if len(indices) == 1 else f"{{{text}}}"


def table(plan: DecayPlan) -> Table:
    """The plan as a rich table, a row per pattern."""
    grid = Table(title=Text(f"decay plan: policy {plan.policy}, λ = {plan.weight_decay:g}"), title_justify="left")
    for heading in ("tensor", "shape", "role", "λ", "why"):
        grid.add_column(heading, justify="right" if heading == "λ" else "left", overflow="fold")
    for row in grouped(plan):
        first = row.tensors[0]
        count = f" ×{len(row.tensors)}" if len(row.tensors) > 1 else ""
        grid.add_row(
            Text(row.pattern + count),
            Text("×".join(map(str, first.shape)) or "scalar"),
            Text(" + ".join(first.roles)),
            Text(f"{first.weight_decay:g}", style="bold" if first.decays else "dim"),
            Text(first.reason.removeprefix(f"{first.role}: "), style="dim"),
        )
    return grid


def table_text(plan: DecayPlan, width: int = 160) -> str:
    """The table and the totals as plain text."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table(plan))
    console.print(Text(str(plan.summary())))
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]


def story(tensor: PlannedTensor) -> str:
    """One tensor's "why", a few lines."""
    lines = [
        f"{tensor.name}  {'×'.join(map(str, tensor.shape)) or 'a single number'}",
        f"  role:      {' + '.join(tensor.roles)}",
        f"  evidence:  {tensor.evidence}",
        f"  decision:  λ = {tensor.weight_decay:g}, {tensor.reason}",
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


def comparison(ours: DecayPlan, theirs: DecayPlan) -> Table:
    """Where two plans differ, a row per pattern, with what it means."""
    differing = _differing(ours, theirs)
    title = f"where {theirs.policy} differs from {ours.policy}" + ("" if differing else ": nowhere")
    grid = Table(title=Text(title), title_justify="left")
    for heading in ("tensor", "shape", "role", ours.policy, theirs.policy, "why it matters"):
        grid.add_column(heading, overflow="fold")
    for row in differing:
        first, other = row.tensors[0], theirs.get(row.tensors[0].name)
        count = f" ×{len(row.tensors)}" if len(row.tensors) > 1 else ""
        grid.add_row(
            Text(row.pattern + count),
            Text("×".join(map(str, first.shape)) or "scalar"),
            Text(" + ".join(first.roles)),
            Text(_lambda(first)),
            Text(_lambda(other)),
            Text(_consequence(first, other), style="dim"),
        )
    return grid


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


def _consequence(ours: PlannedTensor, theirs: PlannedTensor | None) -> str:
    if theirs is None or ours.decays == theirs.decays:
        return ""
    return _WITHOUT_DECAY if ours.role in DECAYING else _CONSEQUENCES.get(ours.role, "")
