"""What is seen of a group in one precision, and what holds in all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightdecay.probing.report import Form, GroupReport


@dataclass(frozen=True)
class Seen:
    """What is seen of a group in one precision, as in its report."""

    index: int
    ways: frozenset[str] | None = None
    idle_steps: int = 0
    decay_per_step: float = 0.0
    hidden_decay: float = 0.0
    reads_lr: bool = False
    reads_weights: bool = False
    branches: bool = False
    moves_zeros: bool = False
    decays_apart: bool = False
    heeds_zeros: bool = False
    opaque: str = ""


def merged_reports(reports: Sequence[Seen]) -> GroupReport:
    """What holds in each precision; numbers are the finest's, which comes first."""
    fine = reports[0]
    if opaque := next((report.opaque for report in reports if report.opaque), ""):
        return GroupReport(fine.index, "", opaque=opaque)
    # In low precision a decay may be rounded away, and there it says nothing that λ changes nothing.
    telling = [report.ways for report in reports if report.ways is not None]
    ways = frozenset.intersection(*telling) if telling else frozenset()
    place = next((way for way in ("before", "after", "beside", "at its own rate") if way in ways), None)
    form: Form = "decoupled" if place else "coupled" if "coupled" in ways else "other" if telling else "none"
    return GroupReport(
        fine.index,
        "",
        form=form,
        order="before" if place == "before" else "after" if place == "after" else None,
        decay_per_step=fine.decay_per_step,
        hidden_decay=fine.hidden_decay,
        reads_weight_decay=bool(telling),
        idle_steps=fine.idle_steps,
        reads_lr=any(report.reads_lr for report in reports),
        own_decay_is_lr_times_lambda=bool(place) and "lr·λ" in ways,
        through_gradient="coupled" in ways,
        reads_weights=any(report.reads_weights for report in reports),
        branches_on_weight_decay=any(report.branches for report in reports),
        moves_zeros=any(report.moves_zeros for report in reports),
        decays_apart=fine.decays_apart,
        heeds_zeros=fine.heeds_zeros,
    )
