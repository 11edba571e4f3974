"""What a run's settings name and is not there, found at once and before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from weightdecay.errors import did_you_mean, gathered
from weightdecay.recipes.settings import OptimizerSettings

RESUME = ("auto", "never", "must")
ON_CHANGE = ("refuse", "keep", "override")


def missing_names(values: Mapping[str, Any]) -> list[str]:
    """A fault for each rule, policy, tokenizer and source among `section.key` values that cannot be found."""
    faults: list[str] = []
    for key, find in _FINDERS.items():
        if key in values:
            with gathered(faults):
                find(values[key])
    return faults


def unknown_choices(resume: str, on_change: str) -> list[str]:
    """A fault for each that is none of RESUME and ON_CHANGE."""
    choices: Iterable[tuple[str, str, tuple[str, ...]]] = (
        ("--resume", resume, RESUME),
        ("--on-change", on_change, ON_CHANGE),
    )
    return [f"{flag} {value}: {did_you_mean(value, known)}" for flag, value, known in choices if value not in known]


# Each imports what it needs by itself: a mistyped flag should not have to wait for torch.
def _find_rule(name: str) -> None:
    from weightdecay.rules import as_rule

    as_rule(name)


def _find_policy(name: str) -> None:
    if name != OptimizerSettings.policy:
        from weightdecay.planning.policies.policy_file import find_policy

        find_policy(name)


def _find_tokenizer(spec: str) -> None:
    from weightdecay.data.tokenizer_specs import check_tokenizer_spec

    check_tokenizer_spec(spec)


def _find_sources(sources: tuple[str, ...]) -> None:
    from pathlib import Path

    from weightdecay.data.finding import find_sources, is_prepared
    from weightdecay.data.reading import HowToRead

    if not (len(sources) == 1 and is_prepared(Path(sources[0]))):  # by itself it is no text, but trained on as it is
        find_sources(sources, HowToRead())


_FINDERS: dict[str, Callable[[Any], None]] = {
    "optimizer.rule": _find_rule,
    "optimizer.adamw_rule": lambda name: _find_rule(name) if name else None,
    "optimizer.policy": _find_policy,
    "data.tokenizer": _find_tokenizer,
    "data.sources": _find_sources,
}
