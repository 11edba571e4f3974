"""What the marks on a tensor come to, together: λ and η as they are, or as shares of the run's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from weightdecay.planning.evidence.marks import Mark


@dataclass(frozen=True)
class AuthorRates:
    """What an author wants for one tensor.

    Attributes:
        weight_decay, lr: as they are; None where no mark gives them.
        share, lr_share: of the run's; None where no mark gives them.
        on_decay, on_lr: the marks that say so.
    """

    weight_decay: float | None = None
    share: float | None = None
    lr: float | None = None
    lr_share: float | None = None
    on_decay: tuple[Mark, ...] = ()
    on_lr: tuple[Mark, ...] = ()

    def multiplier(self, weight_decay: float) -> float:
        """The share of the run's λ; a decay of its own is a share of that, too."""
        if self.weight_decay is None:
            return self.share or 0.0
        return share_of(self.weight_decay, weight_decay)


NOTHING = AuthorRates()  # of a tensor without marks, as most are


def share_of(own: float, runs: float) -> float:
    """What share of the run's rate a rate of its own is; of 0 none is, so there any counts as a whole one."""
    share = own / runs if runs else math.inf
    return share if math.isfinite(share) else float(own > 0.0)


def author_rates(marks: Sequence[Mark]) -> AuthorRates:
    """All marks of a tensor as one; where they contradict each other the first is taken, see `contradictions`."""
    on_decay = tuple(mark for mark in marks if mark.weight_decay is not None or mark.share is not None)
    on_lr = tuple(mark for mark in marks if mark.lr is not None or mark.lr_share is not None)
    decay = next((mark for mark in on_decay if mark.weight_decay is not None), on_decay[0] if on_decay else None)
    rate = next((mark for mark in on_lr if mark.lr is not None), on_lr[0] if on_lr else None)
    return AuthorRates(
        weight_decay=decay.weight_decay if decay else None,
        share=decay.share if decay and decay.weight_decay is None else None,
        lr=rate.lr if rate else None,
        lr_share=rate.lr_share if rate and rate.lr is None else None,
        on_decay=on_decay,
        on_lr=on_lr,
    )


def contradictions(rates: AuthorRates, weight_decay: float, *, decay: bool, lr: bool) -> list[str]:
    """Where an author says two things of one tensor, in words.

    Args:
        weight_decay: the run's λ, by which a share and a number may come to the same.
        decay, lr: whether it matters: an override may have settled it.
    """
    said_λ = [
        (mark.where, (mark.share or 0.0) * weight_decay if mark.weight_decay is None else mark.weight_decay)
        for mark in rates.on_decay
    ]
    # Of η the plan knows no number, so that an own one and a share of the run's cannot agree.
    said_η = [
        (mark.where, f"{mark.lr:g}" if mark.lr is not None else f"{mark.lr_share:g} of η") for mark in rates.on_lr
    ]
    faults = []
    if decay and any(not math.isclose(λ, said_λ[0][1], rel_tol=1e-9) for _, λ in said_λ):
        faults.append(", ".join(f"{where} says λ {λ:g}" for where, λ in said_λ))
    if lr and len({η for _, η in said_η}) > 1:
        faults.append(", ".join(f"{where} says lr {η}" for where, η in said_η))
    return faults
