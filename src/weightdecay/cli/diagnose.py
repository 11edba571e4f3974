"""`weightdecay diagnose`."""

from __future__ import annotations

from dataclasses import dataclass

from weightdecay.cli.flags import Argument, Choice, Folder, Switch, raise_together
from weightdecay.cli.output import console, print_json
from weightdecay.errors import did_you_mean

_COUNTED = {"never": (), "warning": ("warning", "error"), "error": ("error",)}


@dataclass(frozen=True)
class Diagnose:
    """Findings on a run that has ended or goes on: what its decay really did, beside what theory expects."""

    run_directory: Argument[Folder]
    """A run directory, as `weightdecay train` makes it."""
    fail_on: Choice = "never"
    """error or warning: exit with 3 where a finding is so grave, for jobs and tests."""
    json: Switch = False
    """One JSON document on stdout."""

    def run(self) -> int:
        if self.fail_on not in _COUNTED:
            raise_together([f"--fail-on {self.fail_on}: {did_you_mean(self.fail_on, _COUNTED)}"])
        from weightdecay.diagnosing.diagnosis import diagnose

        found = diagnose(self.run_directory)
        if self.json:
            print_json(found.document())
        else:
            from weightdecay.diagnosing.rendering import show

            show(found, console())
        return 3 if any(finding.severity in _COUNTED[self.fail_on] for finding in found.findings) else 0
