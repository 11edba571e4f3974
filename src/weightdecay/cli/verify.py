"""`weightdecay verify`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightdecay.cli.flags import (
    Argument,
    Count,
    Name,
    NameOrFile,
    Number,
    Run,
    Settings,
    Switch,
    key_value_pairs,
    raise_together,
)
from weightdecay.cli.output import console, print_json
from weightdecay.errors import printable

if TYPE_CHECKING:
    from weightdecay.training.verification import Verification

FLAGS = {
    "lr": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "policy": "optimizer.policy",
    "rule": "optimizer.rule",
    "steps": "run.steps",
}
_DAMAGED = 4
_SHOWN = 12  # tensors listed for people


@dataclass(frozen=True)
class Verify:
    """Every checkpoint against its manifest; what resuming with other settings would change."""

    run_directory: Argument[Run]
    """The run, as `train` made it."""
    lr: Number = ""
    """Peak learning rate that a resume would be given."""
    weight_decay: Number = ""
    """λ that a resume would be given."""
    policy: NameOrFile = ""
    """Policy that a resume would be given."""
    rule: Name = ""
    """Rule that a resume would be given."""
    steps: Count = ""
    """Length of the run that a resume would be given."""
    set: Settings = ()
    """Any other setting, like optimizer.beta2=0.95."""
    json: Switch = False
    """One JSON document on stdout."""

    def run(self) -> int:
        faults: list[str] = []
        asked: dict[str, str] = {key: value for flag, key in FLAGS.items() if (value := getattr(self, flag))}
        asked |= key_value_pairs(self.set, faults)
        raise_together(faults)

        from weightdecay import runs
        from weightdecay.training.verification import verify

        found = verify(runs.Run.open(self.run_directory), asked)
        if self.json:
            print_json(found.document())
        else:
            _tell(found, compared=bool(asked))
        return _DAMAGED if found.damaged else 0


def _tell(found: Verification, *, compared: bool) -> None:
    from rich.text import Text

    out = console()
    lines = []
    for step, faults in found.faults.items():
        lines.append(f"step {step}: {'; '.join(faults) if faults else 'as it was written'}")
    lines.append(
        f"a resume goes on from step {found.resumes_from}"
        if found.resumes_from
        else "there is no checkpoint to resume from"
    )
    if found.rows_lost:
        lines.append(found.rows_lost)
    for words, possible in found.changes:
        lines.append(f"{words}; {'needs --on-change override' if possible else 'cannot change on the way'}")
    lines += found.tensors[:_SHOWN]
    if len(found.tensors) > _SHOWN:
        lines.append(f"… and {len(found.tensors) - _SHOWN} more tensors (--json lists them)")
    if compared and not found.changes:
        lines.append("nothing would change")
    for line in lines:
        out.print(Text(printable(line)), soft_wrap=True)
