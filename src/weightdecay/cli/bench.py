"""`weightdecay bench`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightdecay.cli.flags import Argument, Count, Name, Recipe, Settings, Switch, key_value_pairs, raise_together
from weightdecay.cli.output import console, note, print_json

if TYPE_CHECKING:
    from weightdecay.training.benching import Bench as Measured


@dataclass(frozen=True)
class Bench:
    """Speed of our own training step on this machine, and its share of what the matrix products alone would take.

    Random tokens of the recipe's vocabulary, the recipe's batch and optimizer; nothing is written. For peers see
    benchmarks/train_step.py in a checkout.
    """

    recipe: Argument[Recipe] = "gpt3:nano"
    """RECIPE[:SIZE]."""
    steps: Count = "10"
    """Timed steps, after three that are not."""
    dtype: Name = ""
    """bfloat16 or float32; default: the recipe's, and float32 where bfloat16 is slower here."""
    set: Settings = ()
    """Any other setting, like run.batch_tokens=4096."""
    json: Switch = False
    """One JSON document on stdout."""

    def run(self) -> int:
        faults: list[str] = []
        asked = key_value_pairs(self.set, faults)
        if self.dtype:
            asked["run.dtype"] = self.dtype
        steps = int(self.steps) if self.steps.isdecimal() else 0
        if steps < 1:
            faults.append(f"--steps {self.steps}: give a whole number of at least 1")
        raise_together(faults)

        from weightdecay.training.benching import bench

        found = bench(self.recipe, asked, steps, note)
        if self.json:
            print_json(found.document())
        else:
            _tell(found)
        return 0


def _tell(found: Measured) -> None:
    from rich.table import Table

    out = console()
    out.print(
        f"{found.recipe}: {found.parameters:,} parameters, {found.batch_tokens:,} tokens a step, {found.dtype}, "
        f"{found.threads} threads\n"
        f"{found.tokens_per_s:,.0f} tokens/s ({found.seconds:.3g} s a step, median)\n"
        f"{found.tokens_per_s * found.flop_per_token / 1e9:,.0f} GFLOP/s of the model, {found.share:.0%} of the "
        f"{found.limit / 1e9:,.0f} GFLOP/s that its matrix products reach by themselves",
        markup=False,
    )
    table = Table("part of a step", "ms", "share", box=None)
    whole = sum(found.parts.values())
    for part, seconds in found.parts.items():
        table.add_row(part, f"{1e3 * seconds:,.1f}", f"{seconds / whole:.0%}")
    out.print(table)
    for remark in found.remarks:
        out.print(remark, markup=False)
