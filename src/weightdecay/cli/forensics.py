"""`weightdecay forensics`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightdecay.cli.flags import Argument, File, Model, Name, Number, Paths, Switch, raise_together
from weightdecay.cli.output import console, print_json

if TYPE_CHECKING:
    from weightdecay.auditing.forensics.answers import Asked


@dataclass(frozen=True)
class Forensics:
    """What a finished checkpoint says about the decay it had, with its uncertainty, or why it cannot be told."""

    checkpoint: Argument[Model]
    """A Hugging Face directory, a run directory or one of its checkpoints, a .safetensors file, or a file that
    torch.save wrote."""
    against: Model = ""
    """The same model before the training, in any of these forms: then Σηλ is told to within rounding."""
    init_std: Name = ""
    """Standard deviation of the embedding's numbers at the start, X or LOW..HIGH; by default the configuration's."""
    tokens: Paths = ()
    """What the training has read: prepared data, shards, .npy or .bin files of ids, or text; so that rows of tokens
    that never came are known. Without, they are looked for among the weights."""
    tokenizer: File = ""
    """tokenizer.json for text, if none lies beside the checkpoint."""
    embedding: Name = ""
    """The embedding's name, where it is not found by itself."""
    untied: Switch = False
    """The training had a head of its own, though the checkpoint holds none."""
    weight_decay: Number = ""
    """λ that was asked for, to be compared; by default what the run's run.toml says."""
    lr: Number = ""
    """η at its peak, likewise."""
    json: Switch = False
    """One JSON document on stdout."""

    def run(self) -> int:
        faults: list[str] = []
        init_std = _interval("--init-std", self.init_std, faults)
        given = {"weight_decay": self.weight_decay, "lr": self.lr}
        asked = {name: _number(f"--{name.replace('_', '-')}", text, faults) for name, text in given.items() if text}
        raise_together(faults)

        from weightdecay.auditing.forensics.answers import Asked
        from weightdecay.auditing.forensics.examining import forensics

        report = forensics(
            self.checkpoint,
            against=self.against or None,
            init_std=init_std,
            tokens=self.tokens,
            tokenizer=self.tokenizer or None,
            embedding=self.embedding or None,
            untied=self.untied,
            asked=Asked(**asked, source="as given") if asked else asked_of_run(self.checkpoint),
        )
        if self.json:
            print_json(report.document())
            return 0
        from rich.text import Text as RichText

        console().print(RichText(str(report)), soft_wrap=True)
        return 0


def asked_of_run(name: str) -> Asked | None:
    """What a run of ours was asked for until this checkpoint, step by step; None where it is no such run."""
    from pathlib import Path

    from weightdecay.auditing.forensics.answers import Asked
    from weightdecay.auditing.forensics.stored import checkpoint_of
    from weightdecay.planning.decay_plan import DecayPlan
    from weightdecay.rules import as_rule
    from weightdecay.runs import Run
    from weightdecay.training.timing import batch_sizes, lr_schedule, weight_decay_schedule

    found = checkpoint_of(Path(name))
    if found is None or found.run is None:
        return None
    run = Run(found.run)
    config = run.config()
    optimizer, rule = config.optimizer, as_rule(config.optimizer.rule)
    λ, source = optimizer.peak_weight_decay, f"{run.path / 'run.toml'}"
    if rule.coupled or not (run.path / "plan.json").is_file():
        return Asked(λ, optimizer.lr, None, source)

    # The embedding's share of λ and of η, which is not every tensor's.
    planned = DecayPlan.read(run.path / "plan.json")["embedding.weight"]
    lr, weight_decay = lr_schedule(config, batch_sizes(config.run, config.model.context)), weight_decay_schedule(config)
    share, faster = planned.multiplier, planned.lr_multiplier
    total = -sum(
        math.log1p(-rule.decay_per_step(faster * lr(step), share * weight_decay(step), faster * optimizer.lr))
        for step in range(found.step)
    )
    return Asked(share * λ, faster * optimizer.lr, total, source)


def _interval(flag: str, text: str, faults: list[str]) -> float | tuple[float, float] | None:
    if not text:
        return None
    low, dots, high = text.partition("..")
    if not dots:
        return _number(flag, text, faults)
    return _number(flag, low, faults), _number(flag, high, faults)


def _number(flag: str, text: str, faults: list[str]) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        faults.append(f"{flag} {text}: must be a number of at least 0, like 0.02")
        return 0.0
    return number
