"""From the runs of a study to what they bear: groups, differences in pairs, all of them counted, verdicts, pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from weightdecay.studies.design import Contrast, Metric, Study, Verdict
from weightdecay.studies.directory import Json, StudyDirectory, now
from weightdecay.studies.metrics import metric
from weightdecay.studies.results import RunResult, read_results
from weightdecay.studies.statistics import (
    FEWEST_SEEDS_FOR_A_CLAIM,
    LEVEL,
    Difference,
    Mean,
    holm,
    mean_of,
    paired_difference,
)


@dataclass(frozen=True)
class Comparison:
    """A contrast with its difference.

    Attributes:
        p_holm: corrected for all of the study's contrasts.
        counted: how many these are.
    """

    contrast: Contrast
    difference: Difference | None
    p_holm: float | None
    counted: int

    @property
    def simultaneous(self) -> tuple[float, float] | None:
        """An interval that holds at 95 % for all of the study's differences together (Bonferroni's)."""
        return self.difference.at_level(1 - (1 - LEVEL) / self.counted) if self.difference else None

    @property
    def verdict(self) -> Literal["shown", "not shown", "too few seeds"]:
        found = self.difference
        if found is None or found.n < FEWEST_SEEDS_FOR_A_CLAIM:
            return "too few seeds"
        shown = found.same_sign and self.p_holm is not None and self.p_holm < 1 - LEVEL
        return "shown" if shown else "not shown"


class Analysis:
    """What the runs of a study came to, for its pictures and conclusions to ask.

    Args:
        study: study.json.
        runs: those that count and those that do not.
    """

    def __init__(self, study: Mapping[str, Any], runs: Sequence[RunResult]) -> None:
        self.study = study
        self.runs = list(runs)
        self.labels: dict[str, dict[str, Any]] = {arm["name"]: arm["labels"] for arm in study["arms"]}

    @property
    def counted(self) -> list[RunResult]:
        return [run for run in self.runs if run.counted]

    @property
    def n_seeds(self) -> int:
        """The fewest that any arm has; 0 while one has none."""
        found = Counter(run.arm for run in self.counted)
        return min((found[arm] for arm in self.labels), default=0)

    def by_seed(self, name: str, arm: str) -> dict[int, float]:
        """A metric's values of an arm; runs without it are left out."""
        return {
            run.seed: value for run in self.counted if run.arm == arm and (value := run.values.get(name)) is not None
        }

    def mean(self, name: str, arm: str) -> Mean | None:
        """Over the arm's seeds; None where none has it."""
        values = list(self.by_seed(name, arm).values())
        return mean_of(values) if values else None

    def best(self, name: str, arms: Sequence[str] | None = None) -> str | None:
        """The arm with the best mean; None where no run counts."""
        means = {arm: found.mean for arm in (arms or self.labels) if (found := self.mean(name, arm))}
        if not means:
            return None
        chosen = max if metric(name).better == "higher" else min
        return chosen(means, key=lambda arm: means[arm])

    @cached_property
    def metrics(self) -> list[Metric]:
        """Those that some counted run has, in the order in which they first came."""
        names = dict.fromkeys(name for run in self.counted for name in run.values)
        return [metric(name) for name in names]

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Every contrast that the study declared, with Holm's correction over all of them."""
        contrasts = [Contrast(**each) for each in self.study["contrasts"]]
        found = [
            paired_difference(self.by_seed(each.metric, each.arm), self.by_seed(each.metric, each.against))
            for each in contrasts
        ]
        corrected = holm([difference.p if difference else None for difference in found])
        return [
            Comparison(contrast, difference, p, len(contrasts))
            for contrast, difference, p in zip(contrasts, found, corrected, strict=True)
        ]

    def comparison(self, name: str, arm: str, against: str) -> Comparison | None:
        """That of a metric between two arms, if the study declared it."""
        wanted = Contrast(name, arm, against)
        return next((each for each in self.comparisons if each.contrast == wanted), None)


def analyse(study: Study, directory: StudyDirectory) -> Json:
    """results.json of a study as far as it has come."""
    document = directory.study()
    found = Analysis(document, read_results(directory, document))
    verdicts = list(study.conclude(found)) if found.counted else []
    return {
        "study": study.name,
        "title": study.title,
        "scale": document["size"],
        "question": study.question,
        "complete": all(run.status in ("finished", "diverged", "failed", "other text") for run in found.runs),
        "date": now(),
        "answer": answer(study, found),
        "verdicts": [verdict.as_json() for verdict in verdicts],
        "limits": [*_limits_of_the_data(found), *study.limits],
        "runs": [run.as_json() for run in found.runs],
        "corpora": _corpora(found),
        "environments": _environments(found),
        "metrics": {each.name: vars(each) for each in found.metrics},
        "groups": _groups(found),
        "comparisons_counted": len(found.comparisons),
        "comparisons": [_comparison(each, found) for each in found.comparisons],
        "pictures": list(study.pictures(found)) if found.counted else [],
    }


def answer(study: Study, found: Analysis) -> str:
    """The headline: which arm is best by the headline's metric, how far from the first one, and how sure that is."""
    contrasts = [each.contrast for each in found.comparisons if each.contrast.metric == study.headline]
    arms = list(dict.fromkeys(arm for each in contrasts for arm in (each.against, each.arm))) or list(found.labels)
    best = found.best(study.headline, arms)
    if best is None:
        return "No run has finished yet."
    spoken, mean = metric(study.headline), found.mean(study.headline, best)
    assert mean is not None
    about, beyond = ("highest", "above") if spoken.better == "higher" else ("lowest", "below")
    words = f"{best} has the {about} {spoken.label}: {_with_interval(mean)} {spoken.unit}".rstrip() + f", n = {mean.n}."
    if len(arms) < len(found.labels):  # an arm that is only shown may lie beyond it
        words = f"Of the {len(arms)} arms that are compared, {words}"

    first, *others = arms
    compared = found.comparison(study.headline, others[0] if best == first and len(others) == 1 else best, first)
    if compared is not None:
        words += f" {sentence(compared)}"
    elif best == first:
        words += f" None of the others is {beyond} it."
    return words


def sentence(compared: Comparison) -> str:
    """A comparison in words, with its uncertainty and what may be made of it."""
    contrast, found = compared.contrast, compared.difference
    spoken = metric(contrast.metric)
    if found is None:
        return f"{contrast.arm} against {contrast.against}: no pair of finished runs."
    size = f"{found.mean:+.4g} {spoken.unit}".rstrip()
    if found.interval is None:
        return f"{contrast.arm} against {contrast.against}: {size} in {spoken.label}, one pair, no interval."
    low, high = found.interval
    words = f"{contrast.arm} against {contrast.against}: {size} in {spoken.label} (95 % interval {low:+.4g} to "
    words += f"{high:+.4g}, n = {found.n} pairs"
    if compared.p_holm is not None:
        words += f", p = {compared.p_holm:.2g} corrected for {compared.counted} comparisons"
    ending = {
        "shown": "shown",
        "not shown": "not shown",
        "too few seeds": f"{found.n} seeds are too few for a claim",
    }[compared.verdict]
    return f"{words}): {ending}."


def verdict_on(
    claim: str, compared: Comparison | None, holds_if: Literal["lower", "higher", "alike", "better"] = "better"
) -> list[Verdict]:
    """What one comparison says of a belief; nothing where it was not made.

    Args:
        holds_if: which way the arm must differ from what it is compared with for the belief to hold. Of `alike` a
            difference shows the opposite, and none shows nothing.
    """
    if compared is None:
        return []
    if compared.verdict != "shown" or compared.difference is None:
        return [Verdict(claim, compared.verdict, sentence(compared))]
    wanted = metric(compared.contrast.metric).better if holds_if == "better" else holds_if
    holds = wanted == ("higher" if compared.difference.mean > 0 else "lower")
    return [Verdict(claim, "shown" if holds else "the opposite is shown", sentence(compared))]


def _with_interval(mean: Mean) -> str:
    if mean.interval is None:
        return f"{mean.mean:.4g}"
    return f"{mean.mean:.4g} (95 % interval {mean.interval[0]:.4g} to {mean.interval[1]:.4g})"


def _groups(found: Analysis) -> list[Json]:
    groups = []
    for each in found.metrics:
        for arm, labels in found.labels.items():
            values = found.by_seed(each.name, arm)
            if not values:
                continue
            mean = mean_of(list(values.values()))
            kept = {"n": mean.n, "mean": mean.mean, "std": mean.std, "interval": mean.interval, "level": LEVEL}
            by_seed = [{"seed": seed, "value": value} for seed, value in sorted(values.items())]
            groups.append({"arm": arm, "labels": labels, "metric": each.name, **kept, "values": by_seed})
    return groups


def _comparison(compared: Comparison, found: Analysis) -> Json:
    contrast, difference = compared.contrast, compared.difference
    arm = found.by_seed(contrast.metric, contrast.arm)
    against = found.by_seed(contrast.metric, contrast.against)
    return {
        **vars(contrast),
        "n": difference.n if difference else 0,
        "difference": difference.mean if difference else None,
        "interval": difference.interval if difference else None,
        "simultaneous": compared.simultaneous,
        "p": difference.p if difference else None,
        "p_holm": compared.p_holm,
        "same_sign": difference.same_sign if difference else False,
        "test": "paired t",
        "verdict": compared.verdict,
        "sentence": sentence(compared),
        "pairs": [
            {"seed": seed, "arm": arm[seed], "against": against[seed]} for seed in sorted(arm.keys() & against.keys())
        ],
    }


def _limits_of_the_data(found: Analysis) -> list[str]:
    """What is missing, or was left out, in this directory."""
    by_status: dict[str, list[str]] = {}
    for run in found.runs:
        by_status.setdefault(run.status, []).append(run.name)
    words = [
        f"Not counted, {status}: {', '.join(by_status[status])}."
        for status in ("failed", "diverged", "other text", "damaged")
        if status in by_status
    ]
    if missing := [run.name for run in found.runs if run.status in ("waiting", "running", "stopped")]:
        words.append(f"Not finished yet: {len(missing)} of {len(found.runs)} runs.")
    if len({env["processor"] for env in _environments(found)}) > 1:
        words.append("The runs were made on more than one kind of machine, whose roundings differ.")
    if found.counted and found.n_seeds < FEWEST_SEEDS_FOR_A_CLAIM:
        words.append(f"{found.n_seeds} seeds an arm at the least: an indication, no claim (which needs "
                     f"{FEWEST_SEEDS_FOR_A_CLAIM}).")  # fmt: skip
    return words


def _corpora(found: Analysis) -> list[Json]:
    by_text: dict[tuple[str, str], list[RunResult]] = {}
    for run in found.runs:
        if run.environment:
            key = (str(run.environment.get("corpus_sha256")), str(run.environment.get("tokenizer_sha256")))
            by_text.setdefault(key, []).append(run)
    return [
        {
            "corpus_sha256": corpus,
            "tokenizer_sha256": tokenizer,
            "runs": [run.name for run in runs],
            "counted": all(run.status != "other text" for run in runs),
        }
        for (corpus, tokenizer), runs in by_text.items()
    ]


def _environments(found: Analysis) -> list[Json]:
    names = ("processor", "cuda", "torch", "python", "threads", "weightdecay", "git_commit")
    counted = Counter(
        tuple((name, run.environment.get(name, "")) for name in names) for run in found.runs if run.environment
    )
    return [{**dict(each), "runs": n} for each, n in counted.items()]
