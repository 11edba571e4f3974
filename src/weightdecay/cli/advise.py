"""`weightdecay advise`."""

from __future__ import annotations

from dataclasses import dataclass

from weightdecay.cli.flags import Choice, Count, Number, Switch
from weightdecay.cli.output import console, print_json


@dataclass(frozen=True)
class Advise:
    """λ for a planned run: what public runs of that kind used, what laws say where they hold, and what to mind."""

    params: Count = ""
    """N, all parameters, 124M say; of a mixture of experts, those that a token passes through."""
    tokens: Count = ""
    """D, tokens of the whole run, 2.5B say."""
    batch_tokens: Count = ""
    """B, tokens of one optimizer step."""
    lr: Number = ""
    """η, the peak learning rate of the matrices."""
    epochs: Number = ""
    """Passes over the text; 1 if not given."""
    parametrization: Choice = ""
    """How rates and initialisation follow the width: standard or mup. The law needs mup."""
    schedule: Choice = ""
    """The learning rate after its warm-up: constant, linear-to-zero, linear-to-tenth, cosine-to-zero, cosine-to-tenth,
    wsd-to-zero. The law needs linear-to-zero."""
    optimizer: Choice = "adamw"
    """Of the matrices: adamw or muon; of the others that `train` has there is no theory."""
    embeddings: Count = ""
    """Of the parameters, those in tables of tokens and positions, for the law with and without them."""
    width: Count = ""
    """d_model, for what λ would be at another width."""
    json: Switch = False
    """One JSON document on stdout."""

    def run(self) -> int:
        from weightdecay.advisor.advising import advise_for
        from weightdecay.errors import ConfigError

        given = {name: value for name, value in vars(self).items() if name != "json" and value != ""}
        try:
            advice = advise_for(given)
        except ConfigError as error:
            raise ConfigError([_as_flags(fault) for fault in error.faults]) from None
        if self.json:
            print_json(advice.document())
        else:
            from weightdecay.advisor.wording import Shown

            console().print(Shown(advice))
        return 0


def _as_flags(fault: str) -> str:
    """`batch_tokens = …` as `--batch-tokens …`."""
    name, space, rest = fault.partition(" ")
    return f"--{name.replace('_', '-')}{space}{rest.removeprefix('= ')}"
