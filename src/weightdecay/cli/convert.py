"""`weightdecay convert`: the same decay in another framework's convention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from weightdecay.cli.flags import Argument, Count, Name, Number, Switch, raise_together, whole_number
from weightdecay.cli.output import console, print_json


@dataclass(frozen=True)
class Convert:
    """The same decay in another framework's convention, with what is left of a weight over the run on both sides."""

    weight_decay: Argument[Number]
    """λ as --from means it."""
    source: Annotated[str, arg(name="from", metavar="NAME")] = "torch"
    """Whose λ it is: a framework, a paper or a rule; an unknown name lists them."""
    target: Annotated[str, arg(name="to", metavar="NAME")] = "composer"
    """In whose convention it is wanted."""
    lr: Number = ""
    """Peak learning rate."""
    schedule: Name = "constant"
    """Of the learning rate: constant, cosine, linear, inverse_sqrt, warmup_stable_decay."""
    steps: Count = ""
    """Optimizer steps of the run."""
    warmup_steps: Count = "0"
    """Steps of the rise."""
    final_fraction: Number = "0"
    """The last learning rate as a fraction of the peak."""
    json: Switch = False
    """One JSON document on stdout."""

    def run(self) -> int:
        from rich.text import Text

        from weightdecay.errors import ConfigError
        from weightdecay.optim.convert import convention, convention_faults, convert
        from weightdecay.schedules import Schedule, schedule

        faults: list[str] = []
        weight_decay = _number("X", self.weight_decay, faults)
        lr = _number("--lr", self.lr, faults)
        final_fraction = _number("--final-fraction", self.final_fraction, faults)
        warmup_steps = whole_number("--warmup-steps", self.warmup_steps, faults)
        steps = whole_number("--steps", self.steps, faults, least=1) if self.steps else None
        rates: Schedule | None = None
        try:
            rates = schedule(
                self.schedule, peak=max(lr, 0.0), steps=steps or warmup_steps + 1, warmup_steps=warmup_steps,
                final_fraction=final_fraction,
            )  # fmt: skip
        except ConfigError as error:
            faults += error.faults
        if steps is None:
            if rates is not None and self.schedule != "constant":
                faults.append(f"--schedule {self.schedule} needs the length of the run: give --steps")
            rates = None
        faults += [fault for name in (self.source, self.target) for fault in convention_faults(name, steps)]
        raise_together(faults)
        found = convert(weight_decay, source=self.source, target=self.target, lr=lr, schedule=rates, steps=steps)
        if self.json:
            print_json(
                {
                    "weight_decay": float(found),
                    "exact": found.exact,
                    "error": found.error,
                    "source": {"convention": self.source, "weight_decay": weight_decay, "shrink": found.source_shrink},
                    "target": {"convention": self.target, "weight_decay": float(found), "shrink": found.target_shrink},
                    "note": found.note,
                }
            )
            return 0
        out = console()
        for name, value, shrink in (
            (self.source, weight_decay, found.source_shrink),
            (self.target, float(found), found.target_shrink),
        ):
            left = "" if shrink is None else f"   {shrink:.4%} of a weight left after {steps} steps without gradients"
            out.print(Text(f"{value:<12.6g} {name}, rule '{convention(name).rule.name}'{left}"))
        out.print(Text(found.note))
        return 0


def _number(flag: str, text: str, faults: list[str]) -> float:
    try:
        return float(text)
    except ValueError:
        faults.append(f"{flag} {text}: must be a number" if text else f"{flag} is needed: give a number")
        return 1.0
