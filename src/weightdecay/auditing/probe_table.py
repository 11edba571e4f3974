"""A probe for people: tensors whose decay is alike in one line, and a line for each optimizer."""

from __future__ import annotations

import io
from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from weightdecay.auditing.probed import Probe, ProbedOptimizer, ProbedTensor
from weightdecay.planning.patterns import alike, pattern_of

_WIDTH = 110
# Digits that are shown; tensors that differ in later ones are in one line.
_DIGITS = 3


def probe_text(probe: Probe) -> str:
    """The table, as plain text."""
    out = io.StringIO()
    console = Console(file=out, width=_WIDTH, color_system=None, highlight=False)
    console.print(_table(probe))
    for line in _lines(probe):
        console.print(Text(line))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _table(probe: Probe) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("tensor", "n", "dtype", "asked by its group", "decay per step", "of it by λ", "how"):
        is_number = heading not in ("tensor", "dtype", "how")
        table.add_column(Text(heading), justify="right" if is_number else "left", overflow="fold")
    for group in alike(probe.tensors, _name, _shown):
        first = group[0]
        table.add_row(
            *map(Text, (pattern_of([_name(tensor) for tensor in group]), str(len(group)), *_shown(first)[2:]))
        )
    return table


def _name(tensor: ProbedTensor) -> str:
    return tensor.name or f"(of no module, {'×'.join(map(str, tensor.shape))})"


def _shown(tensor: ProbedTensor) -> tuple[str, ...]:
    """What a line says of a tensor, beside its name; the first two parts only tell lines apart."""
    return (
        f"{tensor.optimizer}.{tensor.group}",
        "×".join(map(str, tensor.shape)),
        tensor.dtype,
        _number(tensor.requested),
        _number(tensor.realised),
        _number(tensor.from_weight_decay) if tensor.from_elsewhere else "",
        _how(tensor),
    )


def _number(value: float | None) -> str:
    return "?" if value is None else "0" if not value else f"{value:.{_DIGITS}g}"


def _how(tensor: ProbedTensor) -> str:
    if tensor.opaque:
        return "could not be seen"
    words = [
        "λ is not read" if not tensor.reads_weight_decay else "through the gradient" if tensor.coupled else "",
        f"{tensor.order} the update" if tensor.order else "",
        f"{tensor.share:.0%} of ‖w‖² by a mask" if tensor.share < 1 else "",
        f"towards {tensor.target}" if tensor.target != "zero" else "",
        f"{tensor.idle_rows} idle rows" if tensor.idle_rows else "",
        "w = 0" if not tensor.weight_norm else "",
        "no gradient" if not tensor.has_gradient else "",
    ]
    return ", ".join(word for word in words if word)


def _lines(probe: Probe) -> Iterator[str]:
    for index, optimizer in enumerate(probe.optimizers):
        yield f"optimizer {index}: {_said(optimizer)}"


def _said(optimizer: ProbedOptimizer) -> str:
    on = {"step": "its own step on the real tensors, some at a time", "whole step": "its own step on all real tensors"}
    how = on.get(optimizer.seen_on, "a small copy of it")
    why = f" ({optimizer.why})" if optimizer.why else ""
    hooks = f"; beside it ran: {', '.join(optimizer.hooks)}" if optimizer.hooks else ""
    norm = "; it keeps the norm of its weights" if optimizer.normalises else ""
    held = f"{optimizer.copied_bytes / 2**20:.1f} MiB held, {optimizer.elapsed_s:.2f} s"
    return f"{optimizer.kind}, seen on {how}{why}; {held}{hooks}{norm}"
