"""What a study is, as a value: a question, arms to train, what to measure and to compare, and how to show it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from weightdecay.studies.analysis import Analysis
    from weightdecay.studies.texts import TextPlan

SizeName = Literal["quick", "full", "large"]
SIZES: tuple[SizeName, ...] = ("quick", "full", "large")
Label = float | str
Json = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One way of training, which every seed takes once.

    Attributes:
        name: as tables and pictures have it.
        labels: what is varied, to group and to draw by.
        settings: `section.key` over the study's common ones.
        text: which of the study's texts is read.
        stage: runs of a later stage come after all of the earlier ones.
    """

    name: str
    labels: Mapping[str, Label]
    settings: Mapping[str, Any] = field(default_factory=dict)
    text: str = "main"
    stage: int = 0


@dataclass(frozen=True)
class Metric:
    """A number of a finished run.

    Attributes:
        better: which direction one would like; `neither` where it is only told.
    """

    name: str
    label: str
    unit: str
    better: Literal["lower", "higher", "neither"] = "neither"


@dataclass(frozen=True)
class Contrast:
    """Two arms whose difference in a metric is a claim, and is counted as one."""

    metric: str
    arm: str
    against: str


@dataclass(frozen=True)
class Verdict:
    """A belief, and what this study says of it: that it holds is shown, or its opposite is, or neither."""

    claim: str
    verdict: Literal["shown", "the opposite is shown", "not shown", "too few seeds", "told"]
    sentence: str

    def as_json(self) -> Json:
        return vars(self).copy()


@dataclass(frozen=True)
class Plan:
    """A study at one size: everything that decides its runs.

    Attributes:
        settings: common to all runs, over the recipe's.
        arms: the first is the one that the others are compared with, unless `contrasts` says otherwise.
        contrasts: what is tested; every one of them is counted.
        texts: what the runs read, by the arms' `text`.
        measures: by name, taken of every finished run; see `measuring`.
    """

    recipe: str
    settings: Mapping[str, Any]
    arms: tuple[Arm, ...]
    contrasts: tuple[Contrast, ...]
    texts: Mapping[str, TextPlan]
    measures: tuple[str, ...] = ("fit",)


@dataclass(frozen=True)
class Study:
    """An experiment that can be carried out at several sizes.

    Attributes:
        belief: what is commonly said, which the study checks.
        headline: the metric that the answer is about.
        plan: the runs at a size.
        pictures: from the analysis to PICTURE records.
        conclude: verdicts on beliefs, where the contrasts' own sentences do not say it all.
        limits: what can't be concluded, whatever comes out.
    """

    name: str
    title: str
    question: str
    belief: str
    headline: str
    plan: Callable[[SizeName], Plan]
    pictures: Callable[[Analysis], Sequence[Json]]
    conclude: Callable[[Analysis], Sequence[Verdict]]
    limits: tuple[str, ...] = ()


def against_first(metric: str, arms: Sequence[Arm]) -> tuple[Contrast, ...]:
    """Every other arm against the first one."""
    first, *others = arms
    return tuple(Contrast(metric, arm.name, first.name) for arm in others)


def number(value: float) -> str:
    """As it stands in the name of an arm or of a run: 0.1, 3, 4e-3."""
    return f"{value:g}"
