"""`weightdecay plan`: which tensors of a model decay, and why."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightdecay.cli.flags import Argument, Name, Number, Switch, Text
from weightdecay.cli.output import console
from weightdecay.errors import ConfigError

if TYPE_CHECKING:
    from weightdecay.recipes.settings import TrainConfig


@dataclass(frozen=True)
class Plan:
    """Which tensors decay and why: every one of them, with the evidence."""

    model: Argument[Text]
    """A recipe (gpt2:124m) or a run directory."""
    policy: Name = ""
    """Which tensors decay; by default the recipe's policy."""
    weight_decay: Number = ""
    """λ; by default the recipe's."""
    why: Name = ""
    """One tensor's story."""
    json: Switch = False
    """One JSON document on stdout, in the format of a run's plan.json."""

    def run(self) -> int:
        config = self._config()
        import torch
        from rich.text import Text as RichText

        from weightdecay.models.decoder import GPT
        from weightdecay.planning.plan import plan
        from weightdecay.planning.render import table

        with torch.device("meta"):
            model = GPT(config.model)
        decided = plan(
            model,
            weight_decay=config.optimizer.weight_decay,
            policy=config.optimizer.policy,
        )
        out = console()
        if self.why:
            tensor = decided[self.why]
            story = f"{tensor.name}: λ = {tensor.weight_decay:g}, {tensor.reason}"
            if self.json:
                line = {"name": tensor.name, "weight_decay": tensor.weight_decay, "reason": tensor.reason}
                print(json.dumps(line, ensure_ascii=False))
            else:
                out.print(RichText(story))
        elif self.json:
            print(decided.to_json(), end="")
        else:
            out.print(table(decided))
            out.print(RichText(str(decided.summary())))
        return 0

    def _config(self) -> TrainConfig:
        from pathlib import Path

        from weightdecay.recipes.schema import recipe
        from weightdecay.runs import Run

        given = {
            key: value
            for key, value in (("optimizer.policy", self.policy), ("optimizer.weight_decay", self.weight_decay))
            if value
        }
        if (Path(self.model) / "run.toml").is_file():
            config = Run.open(self.model).config().replace(**{key.replace(".", "__"): v for key, v in given.items()})
        else:
            config = recipe(self.model).config(given)
        if math.isnan(config.optimizer.weight_decay):
            raise ConfigError("--weight-decay auto depends on the run's length, which a plan has not: give a number")
        return config
