"""`weightdecay runs`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weightdecay.cli.flags import Argument, Folder, Switch
from weightdecay.cli.output import console, note, print_json
from weightdecay.errors import DamagedError, printable

if TYPE_CHECKING:
    from weightdecay.runs import Run

# Of runs that are listed with what keeps them from being read.
_EXIT_CODES = {"closed": 1, "damaged": DamagedError.exit_code}


@dataclass(frozen=True)
class Runs:
    """The training runs in a folder: recipe, λ, steps, status and losses.

    One that cannot be read has a row, too, and its faults below it; the exit code is then 4 for damage, else 1.
    """

    directory: Argument[Folder] = "runs"
    """The folder that holds them, at any depth."""
    json: Switch = False
    """One JSON document on stdout."""

    def run(self) -> int:
        from pathlib import Path

        from weightdecay.runs import runs_in

        found = [_described(run) for run in runs_in(Path(self.directory))]
        if self.json:
            print_json({"directory": self.directory, "runs": found})
        elif found:
            _print_table(found)
        else:
            note(f"{self.directory}: no run in it; `weightdecay train` makes one")
        return max((_EXIT_CODES.get(each["status"], 0) for each in found), default=0)


def _described(run: Run) -> dict[str, Any]:
    """What its files say; of one that cannot be read, why."""
    try:
        config = run.config()
        training = list(run.rows("train"))
        held_out = [row["val_loss"] for row in run.rows("eval") if row["val_loss"] is not None]
        return {
            "run": str(run.path),
            "status": run.status(),
            "recipe": config.recipe,
            "rule": config.optimizer.rule,
            "weight_decay": config.optimizer.weight_decay,
            "lr": config.optimizer.lr,
            "step": training[-1]["step"] if training else 0,
            "steps": config.run.steps,
            "loss": training[-1]["loss"] if training else None,
            "val_loss": held_out[-1] if held_out else None,
            "best_val_loss": min(held_out, default=None),
        }
    except PermissionError as error:
        return {"run": str(run.path), "status": "closed", "faults": [f"{error.filename}: {error.strerror}"]}
    except DamagedError as error:
        return {"run": str(run.path), "status": "damaged", "faults": error.faults}


def _print_table(found: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in ("run", "status", "recipe", "λ", "step", "loss", "held-out", "best"):
        table.add_column(name, justify="left" if name in ("run", "status", "recipe") else "right", overflow="fold")
    for each in found:
        if "faults" in each:
            table.add_row(Text(printable(each["run"])), each["status"])
            note(f"{each['run']}: {'; '.join(each['faults'])}")
            continue
        losses = [
            "–" if (loss := each[key]) is None else f"{loss:.3f}" for key in ("loss", "val_loss", "best_val_loss")
        ]
        decay = each["weight_decay"]
        table.add_row(
            Text(printable(each["run"])),
            each["status"],
            Text(printable(each["recipe"])),
            decay if isinstance(decay, str) else f"{decay:.3g}",
            f"{each['step']:,}/{each['steps']:,}",
            *losses,
        )
    console().print(table)
