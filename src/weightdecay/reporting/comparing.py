"""Several runs beside each other: which differ in seeds alone, which are of one text, how sure a difference is.

Of runs that share everything but the seed the mean has the interval mean ± t·s/√n. Two settings are compared by the
differences of runs of one seed, which share their start and the order of their data; with m comparisons each interval
is made at 1 − 0.05/m, so that all of them hold together in 95 of 100 cases (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightdecay.errors import MissingExtraError, printable
from weightdecay.reporting.run_record import RunRecord, number

LEVEL = 0.95
SEEDS_FOR_A_CLAIM = 5
# Settings in which runs may differ and still be one experiment, repeated; where and how fast they ran changes no loss
# but by rounding.
_NOT_ASKED = ("run.seed", "run.out", "run.log_every", "run.checkpoint_every", "run.keep", "run.nproc")
_SIGNS = {"optimizer.weight_decay": "λ", "optimizer.lr": "η"}


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seeds.

    Attributes:
        label: what sets them apart from the other groups.
        settings: the same as values, by key.
        records: all of them, counted or not.
        key: of the rows, the loss they are judged by.
    """

    label: str
    settings: dict[str, Any]
    records: list[RunRecord]
    key: str

    @property
    def values(self) -> dict[int, float]:
        """Final losses by seed, of the runs that are finished."""
        return {
            record.config.run.seed: value
            for record in self.records
            if record.config and counts(record) and (value := number(record.held_out.get(self.key))) is not None
        }


@dataclass(frozen=True)
class Difference:
    """Of one group's losses from another's, in pairs of one seed.

    Attributes:
        interval: at 95 %, with all comparisons counted; None of a single pair.
        comparisons: how many were made.
    """

    group: Group
    against: Group
    pairs: tuple[tuple[int, float], ...]
    mean: float
    interval: tuple[float, float] | None
    comparisons: int

    @property
    def shown(self) -> bool:
        """Whether it can be claimed: five seeds, one sign in all of them, an interval that leaves out 0."""
        signs = {math.copysign(1, value) for _, value in self.pairs}
        enough = len(self.pairs) >= SEEDS_FOR_A_CLAIM and len(signs) == 1
        return enough and self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


def counts(record: RunRecord) -> bool:
    """Whether its last loss is a result: the run is finished, and did not diverge."""
    return record.status == "finished" and not record.diverged


def by_text(records: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Runs whose losses can be on one axis, since they are of the same text and tokenizer; the most runs first."""
    found: dict[tuple[str, str], list[RunRecord]] = {}
    for record in records:
        found.setdefault(record.text, []).append(record)
    return sorted(found.values(), key=len, reverse=True)


def groups(records: Sequence[RunRecord]) -> list[Group]:
    """Runs by their settings, in the order of what varies."""
    known = [(record, _asked(record)) for record in records]
    keys = list(dict.fromkeys(key for _, asked in known for key in asked))
    varying = [key for key in keys if len({_frozen(asked.get(key)) for _, asked in known}) > 1]
    found: dict[Any, list[RunRecord]] = {}
    for record, asked in known:
        own = tuple((key, _frozen(asked.get(key))) for key in varying) if asked else record.path
        found.setdefault(own, []).append(record)
    measured = all(number(record.held_out.get("val_bits_per_byte")) is not None for record in records if counts(record))
    key = "val_bits_per_byte" if measured else "val_loss"
    made = []
    for members in found.values():
        settings = {name: _asked(members[0]).get(name) for name in varying if _asked(members[0])}
        made.append(Group(_label(settings, members), settings, members, key))
    return sorted(made, key=lambda group: [_sortable(value) for value in group.settings.values()])


def mean_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, tuple[float, float] | None]:
    """The mean, and mean ± t·s/√n; None of a single value.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    n, mean = len(values), math.fsum(values) / len(values)
    if n < 2:
        return mean, None
    try:
        from scipy.stats import t
    except ImportError as error:
        raise MissingExtraError("an interval", "report") from error
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    half = float(t.ppf(0.5 + level / 2, n - 1)) * spread
    return mean, (mean - half, mean + half)


def differences(found: Sequence[Group]) -> list[Difference]:
    """Of each group from the first that has results, where they share a seed."""
    judged = [group for group in found if group.values]
    pairs = []
    for group in judged[1:]:
        base, own = judged[0].values, group.values
        if shared := sorted(base.keys() & own.keys()):
            pairs.append((group, tuple((seed, own[seed] - base[seed]) for seed in shared)))
    made = []
    for group, pair in pairs:
        mean, interval = mean_interval([value for _, value in pair], 1 - (1 - LEVEL) / len(pairs))
        made.append(Difference(group, judged[0], pair, mean, interval, len(pairs)))
    return made


def _asked(record: RunRecord) -> dict[str, Any]:
    if record.config is None:
        return {}
    values = {key: value for key, value in record.config.values().items() if key not in _NOT_ASKED}
    return {"recipe": record.config.recipe, **values}


def _label(settings: dict[str, Any], members: Sequence[RunRecord]) -> str:
    if not settings:
        return members[0].name if len(members) == 1 else "all runs"
    told = [
        f"{_SIGNS.get(key, key.rpartition('.')[2].replace('_', ' '))} = {_short(value)}"
        for key, value in settings.items()
    ]
    more = f" and {len(told) - 3} more" if len(told) > 3 else ""
    return ", ".join(told[:3]) + more


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_short, value)) or "none"
    text = printable(str(value))
    return text if len(text) <= 40 else f"{text[:39]}…"


def _frozen(value: Any) -> str:
    return repr(value)


def _sortable(value: Any) -> tuple[int, float, str]:
    if isinstance(value, int | float):
        return 0, float(value), ""
    return 1, 0.0, str(value)
