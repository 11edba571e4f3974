"""What an audit comes to."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from weightdecay.auditing.findings import SEVERITIES, Finding, Severity
from weightdecay.auditing.ignoring import FORMAT, SCHEMA_VERSION
from weightdecay.auditing.probed import Probe
from weightdecay.errors import CheckFailedError


@dataclass(frozen=True)
class Audit:
    """What decays otherwise than asked, the weightiest first.

    Attributes:
        findings: by severity, then by how many numbers they are of and how far off those are.
        ignored: for each code, of how many tensors it was not said because `ignore` hides it.
        unknown: names of tensors whose role nothing tells; nobody is blamed for their decay.
        remarks: what could not be judged, and why.
        tensors, elements: how many were looked at.
        probe: what was seen of each of them.
        elapsed_s: how long it took.
    """

    findings: tuple[Finding, ...]
    ignored: Mapping[str, int] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    tensors: int = 0
    elements: int = 0
    probe: Probe | None = None
    elapsed_s: float = 0.0

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    @property
    def ok(self) -> bool:
        """No error, no warning; notes may be there."""
        return all(finding.severity == "note" for finding in self.findings)

    def raise_if_wrong(self, warnings: bool = False) -> None:
        """Raise where something is wrong, as a test or a job wants it.

        Args:
            warnings: whether they count, too.

        Raises:
            CheckFailedError: there is an error among the findings, or a warning if those count; all are named.
        """
        counted = ("error", "warning") if warnings else ("error",)
        said = [f"{one.severity} {one.code}: {one.title}" for one in self if one.severity in counted]
        if said:
            raise CheckFailedError(said)

    def summary(self) -> str:
        """One line: how much is wrong."""
        counts: Counter[Severity] = Counter(finding.severity for finding in self.findings)
        parts = [f"{counts[one]} {one}{'' if counts[one] == 1 else 's'}" for one in SEVERITIES if counts[one]]
        looked = f"{self.tensors} tensors, {self.elements:,} parameters, {self.elapsed_s:.1f} s"
        ignored = f", {sum(self.ignored.values())} ignored" if self.ignored else ""
        return f"{', '.join(parts) or 'nothing decays otherwise than asked'}{ignored} ({looked})"

    def __str__(self) -> str:
        from weightdecay.auditing.rendering import table_text

        return table_text(self)

    def to_markdown(self) -> str:
        """The same for an issue or a pull request."""
        from weightdecay.auditing.rendering import markdown

        return markdown(self)

    def to_json(self) -> str:
        """The same for machines, and as a baseline for `ignore`."""
        return json.dumps(self.document(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def document(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "format": FORMAT,
            "ok": self.ok,
            "findings": [_finite(finding.document()) for finding in self.findings],
            "ignored": dict(self.ignored),
            "unknown": list(self.unknown),
            "remarks": list(self.remarks),
            "tensors": self.tensors,
            "elements": self.elements,
            "elapsed_s": self.elapsed_s,
        }


def _finite(document: dict[str, Any]) -> dict[str, Any]:
    """JSON knows neither infinity nor NaN."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in document.items()
    }
