"""`Monitor`: hooks on an optimizer's steps, rows of what was seen, and alarms.

    from weightdecay import Monitor

    monitor = Monitor(model, optimizer, steps=10_000, batch_tokens=500_000)
    optimizer.step()  # and so on: it counts them by itself
    print(monitor.alarms)
    monitor.close()

What is measured stands in `measuring.py`, what theory expects in `theory.py`, what raises an alarm in `alarms.py`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from torch import nn

from weightdecay.errors import ConfigError
from weightdecay.monitoring.alarms import Alarm, Judge
from weightdecay.monitoring.hooking import StepHooks, groups_by_hand, optimizers_of
from weightdecay.monitoring.observer import Observer
from weightdecay.monitoring.rows import Row, role_row, rounded
from weightdecay.planning.planned import Plan

EVERY = 20
"""Steps from one that is due to the next."""
KEPT_ROWS = 10_000


class TakesRows(Protocol):
    """What rows are sent to as they come; each of `weightdecay.Tracker` is one."""

    def row(self, row: Row) -> None: ...


class Monitor:
    """Norms, rotation and realised decay of a training, beside what theory predicts; hooks itself on.

    Nothing of the training changes: no weight, no gradient, no random number. In each step that is due some tensors are
    compared with a copy from before it, as many as `budget_bytes` holds, in turn; every rank has the same rows.

    Args:
        model: any module, bare or wrapped; it gives names and roles.
        optimizer: torch's, ours, another's, or something around one; or several of them.
        interval: a step is due where it divides its number.
        budget_bytes: of weights that are held at once, None for an eighth of them, from 4 to 64 MiB; of a tensor that
            is larger evenly spread blocks are looked at.
        plan: a decay plan, for its roles; without one, what modules and names tell.
        steps: length of the run; without it nobody can say whether its decay comes to anything.
        batch_tokens: tokens in a step, for the memory in tokens.
        tracker: is sent every row.
        sigma_max: whether the largest singular value of every matrix is measured; None measures those with a bound.
        done: steps that were made before.
        by_hand: of what is no torch optimizer, and has `param_groups`: each step is made in `with monitor.step():`.
        keep: rows that are kept, the newest.

    Attributes:
        alarms: what was found wrong, in order.
        elapsed_s: time that it took.

    Raises:
        OptimizerError: there is nothing to hook on.
        ConfigError: a number out of its range.
    """

    # Nothing that is tried on a copy of an optimizer is to be seen here.
    left_out_of_twins = ("_observers", "_hooks")

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        *,
        interval: int = EVERY,
        budget_bytes: int | None = None,
        plan: Plan | None = None,
        steps: int | None = None,
        batch_tokens: float | None = None,
        tracker: TakesRows | None = None,
        sigma_max: bool | None = None,
        done: int = 0,
        by_hand: bool = False,
        keep: int = KEPT_ROWS,
    ) -> None:
        _refuse(interval=interval, budget_bytes=1 if budget_bytes is None else budget_bytes, keep=keep)
        started = time.perf_counter()
        if by_hand:
            groups_by_hand(optimizer)
        owners = [optimizer] if by_hand else optimizers_of(optimizer)
        self._observers = [
            Observer(
                model, one, None if by_hand else one, plan,
                every=interval, budget=budget_bytes, done=done, measures_sigma=sigma_max,
            )
            for one in owners
        ]  # fmt: skip
        self._steps, self._batch_tokens, self._tracker = steps, batch_tokens, tracker
        self._judge = Judge()
        self._rows: deque[Row] = deque(maxlen=keep)
        self._tokens: int | None = None
        self._latest: dict[str, dict[str, Row]] = {}
        self._highest = 0.0
        self.alarms: list[Alarm] = []
        self.elapsed_s = 0.0
        self._first_step: float | None = None
        self._last_step = 0.0
        self.begun_in_s = time.perf_counter() - started
        """Seconds that it took to begin: names, roles, and a probe of an optimizer that others wrote."""
        self._hooks = [
            StepHooks(one, lambda index=index: self._before(index), lambda index=index: self._after(index))  # type: ignore[misc]
            for index, one in enumerate([] if by_hand else owners)
        ]

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the hooks off; rows and alarms stay."""
        for hooks in self._hooks:
            hooks.remove()
        self._hooks = []

    @property
    def rows(self) -> list[Row]:
        """All rows in order, or the newest of many."""
        return list(self._rows)

    @property
    def done(self) -> int:
        """Steps that were made."""
        return max(observer.done for observer in self._observers)

    def follow(self, done: int, *, tokens: int | None = None, batch_tokens: float | None = None) -> None:
        """Be told by a loop where it is, before a step: one that is left out without a call counts as well.

        Args:
            done: steps behind it.
            tokens: that were seen when the coming step is done.
            batch_tokens: in the coming step.
        """
        for observer in self._observers:
            observer.done = done
        self._tokens = tokens
        self._batch_tokens = self._batch_tokens if batch_tokens is None else batch_tokens

    def state_dict(self) -> dict[str, Any]:
        """What it knows of the steps before, as plain values for a checkpoint; rows are not among them."""
        return {
            "observers": [observer.state_dict() for observer in self._observers],
            "alarms": [alarm.row() for alarm in self.alarms],
            "judge": self._judge.state_dict(),
            "latest": self._latest,
            "highest_decay": self._highest,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a monitor of the same run was."""
        for observer, own in zip(self._observers, state["observers"], strict=False):
            observer.load_state_dict(own)
        self.alarms = [Alarm.of_row(row) for row in state["alarms"]]
        self._judge.load_state_dict(state.get("judge", {}))
        self._judge.have_told(self.alarms)
        self._latest = {role: dict(rows) for role, rows in state.get("latest", {}).items()}
        self._highest = state.get("highest_decay", 0.0)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around one step of what has no hooks."""
        for index in range(len(self._observers)):
            self._before(index)
        yield
        for index in range(len(self._observers)):
            self._after(index)

    @property
    def cost(self) -> float | None:
        """The share of the time between its first and its latest step that it took for itself; None before those."""
        if self._first_step is None or self._last_step <= self._first_step:
            return None
        return self.elapsed_s / (self._last_step - self._first_step)

    def __repr__(self) -> str:
        cost = "" if self.cost is None else f", {100 * self.cost:.2g} % of the time"
        return f"Monitor({self.done} steps, {len(self._rows)} rows, {len(self.alarms)} alarms{cost})"

    # --- around each step

    def _before(self, index: int) -> None:
        started = time.perf_counter()
        self._first_step = started if self._first_step is None else self._first_step
        self._observers[index].before()
        self.elapsed_s += time.perf_counter() - started

    def _after(self, index: int) -> None:
        started = time.perf_counter()
        observer = self._observers[index]
        rows = [rounded(row) for row in observer.after()]
        if rows:
            self._take(observer, rows)
        self._last_step = time.perf_counter()
        self.elapsed_s += self._last_step - started

    def _take(self, observer: Observer, rows: list[Row]) -> None:
        """Send on what a step has shown: its tensors, their roles, what is wrong."""
        for row in rows:
            row["tokens"] = self._tokens
            if self._batch_tokens is not None and row["memory_steps"] is not None:
                row["memory_tokens"] = row["memory_steps"] * self._batch_tokens
            self._send(row)
        for role in self._remember(rows):
            self._send(role_row(list(self._latest[role].values()), observer.done))
        found = self._judge.read(rows)
        found += self._of_whole_run(observer)
        for alarm in found:
            self.alarms.append(alarm)
            self._send({**alarm.row(), "tokens": self._tokens})

    def _remember(self, rows: list[Row]) -> list[str]:
        """The roles of which tensors were seen; what has gone is forgotten."""
        present = set().union(*(observer.names for observer in self._observers))
        for row in rows:
            if row["weight_rms"] is not None:
                self._latest.setdefault(row["role"], {})[row["name"]] = row
        for of_role in self._latest.values():
            for name in of_role.keys() - present:
                del of_role[name]
        roles = dict.fromkeys(row["role"] for row in rows)
        return [role for role in roles if self._latest.get(role)]

    def _of_whole_run(self, observer: Observer) -> list[Alarm]:
        course = observer.main_course()
        if course is None:
            return []
        rising, self._highest = course.decay > self._highest, max(self._highest, course.decay)
        return self._judge.whole_run(observer.done, course.total, rising=rising, steps=self._steps, decay=course.decay)

    def _send(self, row: Row) -> None:
        self._rows.append(row)
        if self._tracker is not None:
            self._tracker.row(row)


def _refuse(**numbers: int) -> None:
    faults = [
        f"{name} must be a whole number of at least 1, got {value!r}"
        for name, value in numbers.items()
        if type(value) is not int or value < 1
    ]
    if faults:
        raise ConfigError(faults)
