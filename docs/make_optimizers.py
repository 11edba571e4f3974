"""Write the tables of optimizers.md: what a step of every optimizer class here does, and what `control` says.

Run in `.venv-packages`, which has all packages; one that is missing keeps its block. Names of packages as arguments
write theirs alone.
"""

from __future__ import annotations

import re
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from figures import table, write_block
from optimizer_classes import PACKAGES, Kind, installed, kinds, version
from torch import Tensor, nn

import weightdecay
from weightdecay.errors import OptimizerError
from weightdecay.probing.probe import GroupReport, StepReport, probe_step

HEADER = ("class", "λ enters", "own decay is lr·λ", "direction reads weights", "`control`", "masks")
# As long as control looks on.
WATCHED = 300
OWN, BESIDE = "exact, by its own λ", "exact, beside its step"

# Some step matrices alone, some want them beside vectors.
SHAPES: tuple[tuple[tuple[int, ...], ...], ...] = (((6, 8), (8,)), ((6, 8),))


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        control: what `control(rule="fixed")` does; it stands for all scalar rules.
        masks: whether a masked rule is served, too.
    """

    title: str
    enters: str = "—"
    is_lr_times_lambda: str = "—"
    reads_weights: str = "—"
    control: str = "—"
    masks: str = "—"

    @property
    def cells(self) -> list[str]:
        return [self.title, self.enters, self.is_lr_times_lambda, self.reads_weights, self.control, self.masks]


def made(kind: Kind, shapes: Sequence[tuple[int, ...]]) -> Any:
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    return kind.make([{"params": params, "weight_decay": 0.1}])


def row(kind: Kind) -> Row:
    """What is seen of a class on the first set of shapes that it steps."""
    found = Row(f"`{kind.title}`")
    for shapes in SHAPES:
        try:
            optimizer = made(kind, shapes)
        except Exception as error:  # whatever its constructor asks for that is not here
            found = Row(f"`{kind.title}`", control=f"not made here: {short(str(error))}")
            continue
        if not hasattr(optimizer, "param_groups"):
            return Row(f"`{kind.title}`", control="not an optimizer of groups: it keeps them in the one that it wraps")
        report = probe_step(optimizer)
        controlled, masks = served(made(kind, shapes), report)
        own, reads = (shown(report, key) for key in ("own_decay_is_lr_times_lambda", "reads_weights"))
        found = Row(f"`{kind.title}`", enters(report), own, reads, controlled, masks)
        if not opaque(report):
            break
    return found


def enters(report: StepReport) -> str:
    if reason := opaque(report):
        return f"opaque: {short(reason)}"
    return ", ".join(sorted({form(group) for group in report.groups}))


def form(group: GroupReport) -> str:
    """How λ enters one group's steps, in words."""
    if group.form == "other":
        entangled = group.reads_weights or group.branches_on_weight_decay or group.moves_zeros
        said = "otherwise" if entangled else "otherwise, and can be taken out"
    elif not group.reads_weight_decay:
        said = "not at all"
    elif group.form == "decoupled" and group.through_gradient:
        said = "decoupled and coupled, which are the same in it"
    else:
        said = f"{group.form}, {group.order or 'beside'} the step" if group.form == "decoupled" else group.form
    return f"{said}; takes {group.hidden_decay:.1g} off at λ = 0, too" if group.hidden_decay > 1e-9 else said


def shown(report: StepReport, key: str) -> str:
    if opaque(report):
        return "—"
    return " and ".join(sorted({"yes" if getattr(group, key) else "no" for group in report.groups}, reverse=True))


def opaque(report: StepReport) -> str:
    return report.opaque or next((group.opaque for group in report.groups if group.opaque), "")


def served(optimizer: Any, report: StepReport) -> tuple[str, str]:
    """What `control` says of a scalar rule, and whether a mask is served."""
    try:
        weightdecay.control(optimizer, rule="fixed")
    except OptimizerError as error:
        return f"refused: {short(str(error))}", "no"
    for number in range(WATCHED):
        try:
            step(optimizer)
        except OptimizerError as error:
            before = f"stopped before step {number + 1}" if number else "refused before a step"
            return f"{before}: {short(str(error))}", "no"
    by_itself = all(group.own_decay_is_lr_times_lambda and not group.through_gradient for group in report.groups)
    masked = not any(group.reads_weights for group in report.groups)
    return (OWN if by_itself else BESIDE), "yes" if masked else "no"


def step(optimizer: Any) -> None:
    """One step: with gradients, or, where it says that it wants those, with a closure or sparse gradients."""
    params = [p for group in optimizer.param_groups for p in group["params"]]

    def closure() -> Tensor:
        for p in params:
            p.grad = torch.ones_like(p)
        return torch.tensor(1.0)

    try:
        closure()
        optimizer.step()
    except OptimizerError:
        raise
    except Exception as error:  # whatever others' code raises; a step that fails is no fault of control's
        wanted = str(error).lower()
        if "closure" in wanted:
            optimizer.step(closure)
        elif "sparse" in wanted:
            for p in params:
                p.grad = torch.ones_like(p).to_sparse(1)
            optimizer.step()


def short(reason: str) -> str:
    """The first clause of an error, without the name and the group that it begins with."""
    line = re.sub(
        r"^(\w+, (group \d+|[\w(), ]+\(\))|group \d+ of \w+)( \('[^']*'\))?: ",
        "",
        " ".join(reason.split("\n")[0].split()),
    )
    ends = [found.start() for found in re.finditer(r": |; |, and |, so that ", line)]
    outside = [end for end in ends if line.count("(", 0, end) == line.count(")", 0, end)]
    return textwrap.shorten(line[: min(outside, default=len(line))], 170, placeholder=" …").replace("|", "\\|")


def rows(package: str) -> list[Row]:
    """A row for each class, and one for each other setting under which something else is said."""
    found: list[Row] = []
    # All of HeavyBall's have the same flags, which do the same in each: 40 rows would become 113.
    for kind in kinds(package, variants=package != "heavyball"):
        one = row(kind)
        plain = next((known for known in found if known.title == f"`{kind.name}`"), None)
        if plain is None or one.cells[1:] != plain.cells[1:]:
            found.append(one)
    return found


def counts(found: Sequence[Row]) -> str:
    """Such as "12 exact by their own λ, 3 refused"."""
    tally = Counter(one.control.partition(":")[0] for one in found)
    return ", ".join(f"{number} {what}" for what, number in sorted(tally.items()))


def write(package: str) -> None:
    found = rows(package)
    text = table(HEADER, [one.cells for one in found]).replace("---:", "---")  # words, no numbers
    heading = f"`{package}`, {PACKAGES[package]} {version(package)}, {len(found)} rows: {counts(found)}."
    write_block("optimizers.md", package, f"{heading}\n\n{text}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    # What others compile takes minutes, and computes the same.
    torch.compiler.set_stance("force_eager")
    warnings.simplefilter("ignore")
    for name in sys.argv[1:] or PACKAGES:
        if installed(name):
            write(name)
