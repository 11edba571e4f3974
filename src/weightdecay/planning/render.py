"""A plan for people: the table grouped by pattern, one tensor's story, and two plans beside each other."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from weightdecay.planning.comparison import diff
from weightdecay.planning.evidence_summary import rests_on
from weightdecay.planning.patterns import alike, pattern_of
from weightdecay.planning.planned import Plan, PlannedTensor
from weightdecay.planning.policies.opinions import Opinion, consequence, opinion
from weightdecay.planning.roles.roles import NormPlace, Role

# columns below which there is no room for these beside the rest
_ROOM_FOR = {"why": 110, "shape": 72, "n": 48}
_WIDTHS = {"n": 4, "shape": 11, "role": 16, "λ": 5, "lr": 6, "why": 30}  # what each takes at least
_SHORT_PLACES = {NormPlace.QUERY_KEY: "q/k"}


@dataclass(frozen=True)
class Row:
    """Tensors that differ in nothing but the indices in their names."""

    pattern: str
    tensors: tuple[PlannedTensor, ...]


def grouped(tensors: Iterable[PlannedTensor]) -> list[Row]:
    """Rows by name pattern, in order of first appearance: `layers.{0-31}.mlp.up_proj.weight`."""
    groups = alike(
        tensors,
        lambda t: t.name,
        lambda t: (t.shape, _role(t), _look_at(t), t.multiplier, t.weight_decay, t.lr_multiplier, t.lr),
    )
    return [Row(pattern_of([tensor.name for tensor in group]), tuple(group)) for group in groups]


def _role(tensor: PlannedTensor) -> str:
    """The role as tables show it: with where a gain's norm stands."""
    return " + ".join(_with_place(role, tensor.norm) for role in tensor.roles)


def _look_at(tensor: PlannedTensor) -> str:
    """Why a reader should look at this verdict; empty where there is no reason to."""
    return "(contested)" if tensor.contested else "(by shape alone)" if tensor.by_shape else ""


def _with_place(role: Role, norm: NormPlace | None) -> str:
    if role is not Role.NORM_GAIN or norm is None or norm is NormPlace.OTHER:
        return str(role)
    return f"{role} ({_SHORT_PLACES.get(norm, norm.removesuffix(' norm'))})"


def _grid(title: str, *headings: str) -> Table:
    grid = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in headings:
        grid.add_column(
            Text(heading), justify="right" if heading in ("n", "λ", "lr") else "left", overflow="fold",
            no_wrap=heading in ("tensor", "λ"), min_width=16 if heading == "role" else None,
        )  # fmt: skip
    return grid


def _name_width(width: int, columns: Sequence[str]) -> int:
    """Columns of the screen for names: what the others leave, within reason; or they would be squeezed to nothing."""
    others = sum(_WIDTHS[column] + 2 for column in columns if column != "tensor")
    return min(max(width - others, 12), 48)


def _broken(name: str, width: int) -> str:
    """A name that is too long, in several lines, broken where its parts begin, and within one that is longer still."""
    lines = [name]
    while len(lines[-1]) > width:
        cut = lines[-1].rfind(".", 3, width)
        cut = cut if cut > 0 else width
        lines[-1:] = [lines[-1][:cut], f"  {lines[-1][cut:]}"]
    return "\n".join(lines)


@dataclass(frozen=True)
class PlanTable:
    """The plan as rich prints it, a row per pattern, with what it rests on; a narrow screen says what it leaves out."""

    plan: Plan

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        own_rates = any(tensor.lr_multiplier != 1.0 or tensor.lr is not None for tensor in self.plan)
        missing = [column for column, needed in _ROOM_FOR.items() if width < needed]
        columns = ["tensor", "n", "shape", "role", "λ", *(["lr"] if own_rates else []), "why"]
        columns = [column for column in columns if column not in missing]

        grid = _grid(f"decay plan: policy {self.plan.policy}, λ = {self.plan.weight_decay:g}", *columns)
        for row in grouped(self.plan):
            cells = _cells(row, _name_width(width, columns))
            grid.add_row(*(cells[column] for column in columns))
        yield grid
        if missing:
            left_out = " and ".join(f"'{column}' (from {_ROOM_FOR[column]} on)" for column in missing)
            yield Text(f"{width} columns have no room for {left_out}", style="dim")
        yield Text(rests_on(self.plan), style="dim")


def _cells(row: Row, name_width: int) -> dict[str, Text]:
    """What is said of a row, by column."""
    first = row.tensors[0]
    flag = _look_at(first)
    rate = f"{first.lr:g}" if first.lr is not None else f"×{first.lr_multiplier:g}" if first.lr_multiplier != 1 else ""
    return {
        "tensor": Text(_broken(row.pattern, name_width)),
        "n": Text(str(len(row.tensors)) if len(row.tensors) > 1 else "", style="dim"),
        "shape": Text(_shape(first), style="dim"),
        # in a line of its own, so that a narrow column does not tear it
        "role": Text("\n".join(filter(None, (_role(first), flag))), style="yellow" if flag else ""),
        "λ": Text(f"{first.weight_decay:g}", style="bold" if first.decays else "dim"),
        "lr": Text(rate),
        "why": Text(first.why, style="dim"),
    }


def _shape(tensor: PlannedTensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"


def table_text(plan: Plan, width: int = 140) -> str:
    """The table and the totals as plain text."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(PlanTable(plan))
    console.print(Text(str(plan.summary())))
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]


def story(tensor: PlannedTensor) -> str:
    """One tensor's "why", a few lines."""
    reason = tensor.reason
    if tensor.ruling is not None and tensor.why in tensor.evidence:  # what stands above already
        reason = f"{tensor.ruling}, which {'decays' if tensor.decays else 'does not decay'}"
    said = {
        "also": ", ".join(tensor.aliases),
        "role": " ".join(filter(None, (_role(tensor), _look_at(tensor)))),
        "evidence": tensor.evidence,
        "lr": f"{tensor.lr:g}, whatever the run's" if tensor.lr is not None else _share(tensor.lr_multiplier),
        "decision": f"λ = {tensor.weight_decay:g}: {reason}",
    }
    lines = [f"  {f'{what}:':<10} {words}" for what, words in said.items() if words]
    return "\n".join([f"{tensor.name}  {'×'.join(map(str, tensor.shape)) or 'a single number'}", *lines])


def _share(lr_multiplier: float) -> str:
    return "" if lr_multiplier == 1.0 else f"{lr_multiplier:g} of the run's"


def story_document(tensor: PlannedTensor) -> dict[str, Any]:
    """The same for machines."""
    return {
        "name": tensor.name,
        "aliases": list(tensor.aliases),
        "shape": list(tensor.shape),
        "roles": [role.value for role in tensor.roles],
        "norm": tensor.norm.value if tensor.norm else None,
        "evidence": tensor.evidence,
        "strength": tensor.strength.name.lower() if tensor.strength else None,
        "by_shape": tensor.by_shape,
        "contested": tensor.contested,
        "decays": tensor.decays,
        "multiplier": tensor.multiplier,
        "weight_decay": tensor.weight_decay,
        "lr_multiplier": tensor.lr_multiplier,
        "lr": tensor.lr,
        "given": tensor.given,
        "reason": tensor.reason,
    }


# --- two plans


def comparison(ours: Plan, theirs: Plan) -> Group:
    """Where two plans differ, a row per pattern, and below what it means, once per role or place of a norm."""
    differing = _differing(ours, theirs)
    if not differing:
        return Group(Text(f"{theirs.policy} does with every tensor what {ours.policy} does"), Text(rests_on(ours)))
    grid = _grid(
        f"where {theirs.policy} differs from {ours.policy}", "tensor", "n", "shape", "role", ours.policy, theirs.policy
    )
    for row in differing:
        first = row.tensors[0]
        both = [Text(_lambda(plan.get(first.name))) for plan in (ours, theirs)]
        cells = _cells(row, 31)
        grid.add_row(*(cells[column] for column in ("tensor", "n", "shape", "role")), *both)
    meanings = [Text(f"{about}: {meant}") for about, meant in _meanings(ours, theirs).items()]
    return Group(grid, *meanings, Text(rests_on(ours), style="dim"))


def _meanings(ours: Plan, theirs: Plan) -> dict[str, Opinion | str]:
    """Why it matters, or who is for which, of each role (and place of a norm) that one side decays and one does not."""
    found: dict[str, Opinion | str] = {}
    for first, other in _opposed(ours, theirs):
        norm = first.norm or other.norm
        meant = opinion(first.role, norm) or consequence(first.role)
        if meant:
            found.setdefault(_with_place(first.role, norm), meant)
    return found


def _opposed(ours: Plan, theirs: Plan) -> Iterator[tuple[PlannedTensor, PlannedTensor]]:
    for difference in diff(ours, theirs):
        one, other = difference.ours, difference.theirs
        if one is not None and other is not None and one.decays != other.decays:
            yield one, other


def comparison_document(ours: Plan, theirs: Plan) -> dict[str, Any]:
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
            for difference in diff(ours, theirs)
        ],
        "opinions": [
            {"about": about, "decay": meant.decays, "no_decay": meant.exempts}
            for about, meant in _meanings(ours, theirs).items()
            if isinstance(meant, Opinion)
        ],
    }


def _differing(ours: Plan, theirs: Plan) -> list[Row]:
    names = {difference.name for difference in diff(ours, theirs)}
    return grouped([tensor for tensor in ours if tensor.name in names] + [t for t in theirs if t.name not in ours])


def _lambda(tensor: PlannedTensor | None) -> str:
    return "not there" if tensor is None else f"{tensor.weight_decay:g}"
