"""A plan for people: the table grouped by pattern, and one tensor's story."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from weightdecay.planning.plan import DecayPlan, PlannedTensor

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
