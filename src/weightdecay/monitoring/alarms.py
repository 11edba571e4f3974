"""What is wrong in a run, told from rows alone: while it goes on by the monitor, afterwards by whoever reads its rows.

    lost-to-rounding   less than half of the decay is left, and rounding has it
    not-decaying       less than half of it is left, and rounding has not
    decays-twice       more than 1½ times of it, in the step or beside it
    decays-exempt      a decay that nobody asked for
    norm-growing       a norm that grows and grows, with nothing that would hold it
    over-bound         a spectral norm above what Muon's decay lets it reach
    decay-too-small    Σ of the decay per step over the whole run is under ½
    not-finite         weights that are no numbers any more

The first four are the audit's codes, and mean what they mean there. A single row says nothing: decay is judged where
two rows in a row agree, and while lr rises it is not judged at all, for near 0 each dtype has a floor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from weightdecay.laws import NEGLIGIBLE_TOTAL
from weightdecay.monitoring.decaying import FINE
from weightdecay.monitoring.rows import Row

Severity = Literal["error", "warning", "note"]
Code = Literal[
    "lost-to-rounding",
    "not-decaying",
    "decays-twice",
    "decays-exempt",
    "norm-growing",
    "over-bound",
    "decay-too-small",
    "not-finite",
    # of a whole run, told by whoever reads all of it
    "diverged",
    "off-theory",
    "coupled",
    "exempt-matrix",
]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""The gravest first."""

_LEAST_LEFT, _MOST = 0.5, 1.5
_TWICE_IN_A_ROW = 2
# A norm is said to grow without bound where it has at least doubled and rises in each of so many rows.
_RISING, _GROWN = 5, 2.0
# Of a tensor that theory has a norm for, and that is led to it: so far above is no noise.
_BEYOND = 3.0
# Of a tensor without a theory, which may have some way to go.
_GROWN_UNTOLD = 10.0
_OVER = 1.02
# Of a weight in one step: a decay that matters to nobody, or that of rounding.
_NOTHING = 1e-7


@dataclass(frozen=True)
class Alarm:
    """Something that goes wrong in a run.

    Attributes:
        step: at which it was told.
        severity: `error`: what happens is not what was asked; `warning`: probably not what was meant.
        tensors: their names; empty where it is of the whole run.
        elements: how many numbers they have together.
        title: one line.
        detail: by how much, and what to do.
        asked, realised: decay per step, over these tensors.
    """

    step: int
    code: Code
    severity: Severity
    tensors: tuple[str, ...]
    elements: int
    title: str
    detail: str = ""
    asked: float | None = None
    realised: float | None = None

    def row(self) -> Row:
        """The same as a row."""
        return {"kind": "alarm", "step": self.step, "tokens": None, **asdict(self), "tensors": list(self.tensors)}

    @classmethod
    def of_row(cls, row: Row) -> Alarm:
        """A row as the alarm that it was."""
        values = {key: value for key, value in row.items() if key not in ("kind", "tokens")}
        return cls(**{**values, "tensors": tuple(values["tensors"])})

    def __str__(self) -> str:
        return f"{self.code}: {self.title}" + (f"; {self.detail}" if self.detail else "")


@dataclass
class _History:
    """What is remembered of one tensor."""

    first_rms: float = 0.0
    rms: list[float] = field(default_factory=list)
    last_asked: float = 0.0
    in_a_row: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Fault:
    code: Code
    row: Row
    detail: str = ""


class Judge:
    """Reads the rows of tensors as they come, and tells each fault of each tensor once."""

    def __init__(self) -> None:
        self._histories: dict[str, _History] = {}
        self._told: set[tuple[str, str]] = set()

    def state_dict(self) -> dict[str, Any]:
        """What it remembers of each tensor, as plain values."""
        return {name: asdict(history) for name, history in self._histories.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._histories = {name: _History(**history) for name, history in state.items()}

    def have_told(self, alarms: Iterable[Alarm]) -> None:
        """Tell these no more."""
        for alarm in alarms:
            self._told |= {(alarm.code, name) for name in alarm.tensors or ("",)}

    def read(self, rows: Iterable[Row]) -> list[Alarm]:
        """The alarms that these rows raise, which were taken together: one for each fault."""
        faults: dict[Code, list[_Fault]] = {}
        for row in rows:
            for fault in self._faults(row):
                if (fault.code, row["name"]) not in self._told:
                    self._told.add((fault.code, row["name"]))
                    faults.setdefault(fault.code, []).append(fault)
        return [_alarm(ones) for ones in faults.values()]

    def whole_run(self, step: int, total: float, *, rising: bool, steps: int | None, decay: float) -> list[Alarm]:
        """Whether Σ of the decay per step comes to anything by the end.

        Args:
            total: so far.
            rising: whether the decay per step is still rising.
            steps: of the whole run.
            decay: a_t now; lr falls from here on, or stays.
        """
        if steps is None or rising or step * _JUDGED_FROM < steps or ("decay-too-small", "") in self._told:
            return []
        at_most = total + max(steps - step, 0) * decay
        if at_most <= 0 or at_most >= NEGLIGIBLE_TOTAL:
            return []
        self._told.add(("decay-too-small", ""))
        return [too_small(step, at_most, steps)]

    def _faults(self, row: Row) -> list[_Fault]:
        history = self._histories.setdefault(row["name"], _History(first_rms=row["weight_rms"] or 0.0))
        if row["weight_rms"] is None:
            return [_Fault("not-finite", row)]
        found = [*_decay_faults(row, history), *_norm_faults(row, history)]
        bound, sigma = row["sigma_bound"], row["sigma_max"]
        if bound is not None and sigma is not None and sigma > _OVER * bound:
            found.append(_Fault("over-bound", row, f"{sigma:.3g} over {bound:.3g}"))
        return found


_JUDGED_FROM = 10  # the tenth part of a run


def too_small(step: int, total: float, steps: int) -> Alarm:
    """That a run's decay comes to nothing."""
    return Alarm(
        step,
        "decay-too-small",
        "warning",
        (),
        0,
        f"this decay does next to nothing in this run: Σ of the decay per step is {total:.2g} over {steps:,} steps",
        f"under {NEGLIGIBLE_TOTAL:g} a weight keeps more than 60 % of where it began, and λ = 0 would do as much: "
        f"raise λ about {1 / total:.2g} times for a memory as long as the run, or leave it out",
    )


def _decay_faults(row: Row, history: _History) -> list[_Fault]:
    """What a step takes beside what it is asked to take."""
    asked, realised = row["decay_requested"], row["decay_realised"]
    rising = asked is not None and asked > history.last_asked * (1 + 1e-9)
    history.last_asked = asked or 0.0
    outside = row["decay_outside"] or 0.0
    if realised is None and outside <= 0:
        history.in_a_row.clear()
        return []
    done = max(outside, 0.0) + (asked or 0.0 if realised is None else realised)

    code: Code | None = None
    if asked is None or asked == 0.0:
        # Under a coupled rule what is taken beside the direction is nobody's λ.
        code = "decays-exempt" if done > max(_NOTHING, _noise(row)) else None
    elif not rising and realised is not None and realised < _LEAST_LEFT * asked and done < _MOST * asked:
        code = "lost-to-rounding" if _is_coarse(row, asked) else "not-decaying"
    elif asked > FINE and done > _MOST * asked:  # just above float32's floor rounding itself decays twice
        code = "decays-twice"
    history.in_a_row = {code: history.in_a_row.get(code, 0) + 1} if code else {}
    if code is None or history.in_a_row[code] < _TWICE_IN_A_ROW:
        return []
    beside = f", {outside:.2g} of it between steps" if code in ("decays-twice", "decays-exempt") and outside > 0 else ""
    return [_Fault(code, {**row, "decay_realised": done}, beside.removeprefix(", "))]


def _is_coarse(row: Row, asked: float) -> bool:
    return asked < FINE or (row["dtype"] in ("bfloat16", "float16") and not row["master"])


def _noise(row: Row) -> float:
    """What rounding may feign, of the weights and of an update that is large beside them."""
    beside = row["update_rms"] / row["weight_rms"] if row["weight_rms"] and row["update_rms"] else 0.0
    return 1e-6 * (1.0 + beside) / math.sqrt(row["measured_elements"])


def _norm_faults(row: Row, history: _History) -> list[_Fault]:
    """Whether a norm grows with nothing that would hold it."""
    rms = row["weight_rms"]
    history.rms = [*history.rms[-(_RISING - 1) :], rms]
    rising = len(history.rms) == _RISING and all(b > a for a, b in zip(history.rms, history.rms[1:], strict=False))
    if len(row["shape"]) < 2 or not rising or not history.first_rms or rms < _GROWN * history.first_rms:
        return []
    asked, realised = row["decay_requested"], row["decay_realised"]
    times = f"{rms / history.first_rms:.3g} times what it began with"
    if asked and realised is not None and realised < _LEAST_LEFT * asked:
        return [_Fault("norm-growing", row, f"{times}, and nothing of its decay is left")]
    if not row["hidden"]:  # a table is exempt in many a plan, and its rows are not led by noise
        return []
    if asked == 0.0:
        return [_Fault("norm-growing", row, f"{times}, and nothing decays")]
    held = max(row["equilibrium_rms"] or 0.0, row["expected_rms"] or 0.0)
    if held and rms > _BEYOND * held:
        return [_Fault("norm-growing", row, f"{times}, and {rms / held:.3g} times where η and λ would hold it")]
    if not held and row["sigma_bound"] is None and rms > _GROWN_UNTOLD * history.first_rms:
        return [_Fault("norm-growing", row, times)]
    return []


def _alarm(ones: Sequence[_Fault]) -> Alarm:
    first, rows = ones[0], [one.row for one in ones]
    names = tuple(row["name"] for row in rows)
    what = names[0] if len(names) == 1 else f"{len(names)} tensors"
    severity, title, advice = _WORDS[first.code]
    asked, realised = (_mean(rows, key) for key in ("decay_requested", "decay_realised"))
    if first.code in ("norm-growing", "over-bound", "not-finite"):
        said = [first.detail]
        asked = realised = None
    elif asked and realised is not None:
        said = [f"per step {asked:.3g} asked, {realised:.3g} done ({realised / asked:.3g} times)", first.detail]
    else:
        said = [f"{realised or 0.0:.3g} a step", first.detail]
    dtype = f"{rows[0]['dtype']} " if first.code == "lost-to-rounding" else ""
    return Alarm(
        step=max(row["step"] for row in rows),
        code=first.code,
        severity=severity,
        tensors=names,
        elements=sum(row["elements"] for row in rows),
        title=title.format(what=what, dtype=dtype),
        detail="; ".join(part for part in [*said, advice] if part),
        asked=asked,
        realised=realised,
    )


def _mean(rows: Sequence[Row], key: str) -> float | None:
    values: list[Any] = [row[key] for row in rows]
    return sum(values) / len(values) if values and None not in values else None


# severity, title, what to do
_WORDS: dict[Code, tuple[Severity, str, str]] = {
    "lost-to-rounding": (
        "error",
        "the decay of {what} is lost to {dtype}rounding",
        "keep the weights in float32, or give a rounding (stochastic, kahan, master)",
    ),
    "not-decaying": (
        "error",
        "{what}: the step takes less than half of the decay that is asked for",
        "`weightdecay.audit(model, optimizer)` finds the cause and the code that mends it",
    ),
    "decays-twice": (
        "error",
        "{what}: more decay than is asked for",
        "look for a second decay: in the loop, in a hook, in another optimizer; `weightdecay.audit` names hooks",
    ),
    "decays-exempt": (
        "warning",
        "{what}: a decay that no λ of its group asks for",
        "look for a decay beside the optimizer's; `weightdecay.audit` names hooks",
    ),
    "norm-growing": (
        "warning",
        "the norm of {what} grows without bound",
        "at a fixed lr such weights turn less and less: give them a λ, lower lr, or normalise them",
    ),
    "over-bound": (
        "error",
        "the spectral norm of {what} is above what its decay lets it reach",
        "some steps do not decay, or somebody else has changed the weights: `weightdecay.audit(model, optimizer)`",
    ),
    "decay-too-small": ("warning", "", ""),
    "not-finite": ("error", "{what}: weights that are not finite", "go back to a checkpoint from before; lower lr"),
}
