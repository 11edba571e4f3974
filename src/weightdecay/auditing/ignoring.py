"""What a team has decided to live with: codes with patterns of names, or the findings of an earlier audit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from weightdecay.auditing.findings import CODES, Finding
from weightdecay.errors import ConfigError, did_you_mean

FORMAT = "weightdecay-audit"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Ignored:
    """What is not to be said.

    Attributes:
        patterns: for a code, regular expressions that are searched in names.
        known: for a code, names of an earlier audit.
    """

    patterns: Mapping[str, Sequence[str]]
    known: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def hides(self, code: str, name: str) -> bool:
        found = any(re.search(pattern, name) for pattern in self.patterns.get(code, ()))
        return found or name in self.known.get(code, ())


def ignored_of(given: Any) -> Ignored:
    """What `ignore` says.

    Raises:
        ConfigError: with every fault: a code that there is not, a pattern that is none, a file that no audit wrote.
    """
    if given is None:
        return Ignored({})
    if isinstance(given, str | Path):
        return _of_file(Path(given))
    if not isinstance(given, Mapping):
        raise ConfigError(
            f'ignore is a {type(given).__name__}: give {{"code": "pattern of names"}}, or the path of a file that '
            "Audit.to_json() was written to"
        )
    faults: list[str] = []
    patterns: dict[str, list[str]] = {}
    for code, value in given.items():
        if code not in CODES:
            faults.append(f"ignore: there is no code '{code}': {did_you_mean(str(code), CODES)}")
            continue
        patterns[code] = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else []
        if not patterns[code]:
            faults.append(f"ignore['{code}'] is {value!r}: give a regular expression of names, or several in a list")
        faults += [fault for pattern in patterns[code] for fault in _pattern_faults(code, pattern)]
    if faults:
        raise ConfigError(faults)
    return Ignored(patterns)


def _pattern_faults(code: str, pattern: Any) -> list[str]:
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        return [f"ignore['{code}']: {pattern!r} is no regular expression: {error}"]
    return []


def _of_file(path: Path) -> Ignored:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"ignore: {path} cannot be read as a baseline: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ConfigError(f"ignore: {path} is no baseline: write one with audit.to_json()")
    if document.get("schema_version") != SCHEMA_VERSION:
        found = document.get("schema_version")
        raise ConfigError(f"ignore: {path} has schema_version {found}, and {SCHEMA_VERSION} is read: write it anew")
    known: dict[str, frozenset[str]] = {}
    try:
        for one in document["findings"]:
            known[one["code"]] = known.get(one["code"], frozenset()) | frozenset(map(str, one["tensors"]))
    except (KeyError, TypeError) as error:
        raise ConfigError(f"ignore: {path} is a damaged baseline: {error!r}") from error
    if strange := [code for code in known if code not in CODES]:
        raise ConfigError(f"ignore: {path} has code '{strange[0]}': {did_you_mean(strange[0], CODES)}")
    return Ignored({}, known)


def without_ignored(
    findings: Iterable[Finding], ignored: Ignored, sizes: Mapping[str, int]
) -> tuple[list[Finding], dict[str, int]]:
    """What remains to be said, and for each code how many tensors are not spoken of.

    Args:
        sizes: how many numbers each tensor has.
    """
    remaining: list[Finding] = []
    counted: dict[str, int] = {}
    for finding in findings:
        kept = tuple(name for name in finding.tensors if not ignored.hides(finding.code, name))
        hidden = len(finding.tensors) - len(kept)
        if not finding.tensors and (finding.code in ignored.known or ".*" in ignored.patterns.get(finding.code, ())):
            hidden = 1
        if hidden:
            counted[finding.code] = counted.get(finding.code, 0) + hidden
        if not hidden:
            remaining.append(finding)
        elif kept:
            remaining.append(replace(finding, tensors=kept, elements=sum(sizes.get(name, 0) for name in kept)))
    return remaining, counted


def unmatched(ignored: Ignored, names: Sequence[str]) -> list[str]:
    """A fault for each pattern that no name of the model holds."""
    return [
        f"ignore['{code}']: '{pattern}' is found in no tensor's name: {did_you_mean(pattern, names)}"
        for code, patterns in ignored.patterns.items()
        for pattern in patterns
        if not any(re.search(pattern, name) for name in names)
    ]
