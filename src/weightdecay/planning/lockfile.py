"""A plan as a file that a repository commits."""

from __future__ import annotations

from pathlib import Path

from weightdecay.errors import CheckFailedError
from weightdecay.planning.decay_plan import DecayPlan
from weightdecay.planning.lock_format import lock_text
from weightdecay.planning.planned import Plan


def write_lock(plan: Plan, path: Path) -> None:
    """Write the plan's lock.

    Raises:
        CheckFailedError: the plan is incomplete, so that another machine may come to another one.
    """
    if plan.incomplete:
        raise CheckFailedError(f"an incomplete plan makes no lock: {plan.incomplete}")
    path.write_text(lock_text(plan), encoding="utf-8")


def read_lock(path: Path) -> DecayPlan:
    """`DecayPlan.read`."""
    return DecayPlan.read(path)


def check_lock(plan: DecayPlan, path: Path) -> None:
    """Whether a plan is the one in a lock.

    Raises:
        CheckFailedError: it is not, with what changed; or the plan, or the one in the lock, is incomplete.
    """
    locked = DecayPlan.read(path)
    for which, incomplete in (("this plan", plan.incomplete), (f"the plan in {path}", locked.incomplete)):
        if incomplete:
            raise CheckFailedError(f"{which} is incomplete and cannot be compared: {incomplete}")
    if changes := locked.diff(plan):
        raise CheckFailedError(f"the plan is not the one in {path}:\n{changes}\nIf meant, lock it anew")
