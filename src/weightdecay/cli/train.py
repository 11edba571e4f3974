"""`weightdecay train`."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightdecay.cli.flags import (
    Argument,
    Choice,
    Count,
    Folder,
    Name,
    Number,
    Paths,
    Recipe,
    Settings,
    Switch,
    key_value_pairs,
)
from weightdecay.cli.output import console, note, print_json
from weightdecay.errors import ConfigError, printable

if TYPE_CHECKING:
    from rich.console import Console

    from weightdecay.recipes.settings import TrainConfig
    from weightdecay.runs import Run

# flag -> the configuration's key
FLAGS = {
    "data": "data.sources",
    "tokenizer": "data.tokenizer",
    "text_key": "data.text_key",
    "encoding_errors": "data.encoding_errors",
    "steps": "run.steps",
    "tokens": "run.tokens",
    "batch_tokens": "run.batch_tokens",
    "context": "model.context",
    "lr": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "policy": "optimizer.policy",
    "rule": "optimizer.rule",
    "dtype": "run.dtype",
    "seed": "run.seed",
    "out": "run.out",
    "checkpoint_every": "run.checkpoint_every",
    "keep": "run.keep",
    "init_from": "run.init_from",
    "nproc": "run.nproc",
}


@dataclass(frozen=True)
class Train:
    """Train a GPT on real text with its decay plan: by default gpt3:nano on this Python's own standard library.

    What is not given is the recipe's. The same command with the same --out goes on with a run that was stopped.
    """

    recipe: Argument[Recipe] = "gpt3:nano"
    """SYSTEM[:SIZE], or a recipe file of your own, FILE.toml[:SIZE]; `weightdecay recipes` lists the systems."""
    data: Paths = ()
    """Files, folders, globs, hf:NAME, or one directory of `data prepare`."""
    tokenizer: Name = ""
    """byte, bpe:N, tiktoken:NAME, or a tokenizer.json."""
    text_key: Name = ""
    """The field that holds the text, in JSON lines and tables."""
    encoding_errors: Choice = ""
    """strict (stop at a byte that is not UTF-8) or replace (count and go on)."""
    steps: Count = ""
    """Length of the run in optimizer steps."""
    tokens: Count = ""
    """Length of the run in tokens, instead of --steps."""
    batch_tokens: Count = ""
    """Tokens in one optimizer step."""
    context: Count = ""
    """Tokens in one sequence."""
    lr: Number = ""
    """Peak learning rate."""
    weight_decay: Number = ""
    """λ under the rule, or auto: the λ that matters in a run of this length."""
    policy: Name = ""
    """Which tensors decay: default, all, none, matrices, no-embeddings, olmo2, qwen3-next, another framework's
    (nanogpt, timm …), or a TOML file; see `weightdecay plan`."""
    rule: Name = ""
    """What λ means in one step: decoupled, independent, fixed, l2, lr_squared, corrected, cautious …"""
    dtype: Choice = ""
    """bfloat16 (autocast over float32 weights) or float32."""
    compile: Switch = False
    """torch.compile each block."""
    seed: Count = ""
    """Decides weights, data order and dropout."""
    out: Folder = ""
    """Run directory; by default a new one under runs/."""
    checkpoint_every: Count = ""
    """In steps; the last step is always saved."""
    keep: Count = ""
    """Newest checkpoints kept, beside the best."""
    resume: Choice = "auto"
    """auto (go on if --out holds a run), never, or must."""
    on_change: Choice = "refuse"
    """Settings that differ from the run being resumed: refuse, keep the run's, or override them from the next step."""
    init_from: Folder = ""
    """A run, a checkpoint or a Hugging Face directory whose weights to start from."""
    nproc: Count = ""
    """Processes on this machine."""
    as_published: Switch = False
    """The published form where the recipe keeps another value (PaLM's optimizer)."""
    set: Settings = ()
    """Any other setting, like optimizer.beta2=0.95; `--dry-run` prints them all."""
    dry_run: Switch = False
    """Say what would be trained, and stop before the first step."""
    json: Switch = False
    """One JSON document on stdout; progress goes to stderr."""

    def run(self) -> int:
        config = self.config()
        from rich.text import Text

        from weightdecay.runs import settings_toml
        from weightdecay.training.assembly import assemble
        from weightdecay.training.briefing import briefing, document
        from weightdecay.training.progress import ConsoleReporter, told_now_and_then
        from weightdecay.training.resuming import check_start
        from weightdecay.training.trainer import train

        out = console(stderr=self.json)
        if self.dry_run:
            if config.run.init_from:
                check_start(config.run.init_from)
            assembly = assemble(config, told_now_and_then(note))
            if self.json:
                print_json(document(assembly))
            else:
                out.print(briefing(assembly), "")
                out.print(Text(printable(settings_toml(assembly.config))), soft_wrap=True)
            return 0
        run = train(config, resume=self.resume, on_change=self.on_change, reporter=ConsoleReporter(out))
        if os.environ.get("RANK", "0") != "0":
            return 0  # under torchrun the first process speaks for all
        if self.json:
            print_json({"run": str(run.path), "summary": run.summary()})
        else:
            _show_sample(run, out)
        return 0

    def config(self) -> TrainConfig:
        """The recipe with this command line over it, every fault of both at once."""
        from weightdecay.recipes.schema import recipe
        from weightdecay.training.preflight import missing_names, unknown_choices

        faults = unknown_choices(self.resume, self.on_change)
        values = {key: value for flag, key in FLAGS.items() if (value := getattr(self, flag))}
        values |= {"run.compile": True} if self.compile else {}
        values |= key_value_pairs(self.set, faults)
        try:
            chosen = recipe(self.recipe)
        except ConfigError as error:
            raise ConfigError([*error.faults, *faults, *faults_without_recipe(values)]) from error
        if self.as_published:
            if not chosen.published:
                note(f"{chosen.name}: nothing that is published differs from the recipe")
            chosen = chosen.as_published()
        try:
            config = chosen.config(values)
        except ConfigError as error:
            faults += error.faults
        if faults:
            raise ConfigError([*faults, *missing_names(values)])
        return config


def faults_without_recipe(values: dict[str, object]) -> list[str]:
    """What is wrong with the given values by themselves, when there is no recipe to complete them."""
    from weightdecay.recipes.limits import out_of_range
    from weightdecay.recipes.settings import read_values
    from weightdecay.training.preflight import missing_names

    read, faults = read_values(values)
    return [*faults, *out_of_range(read), *missing_names(values)]


def _show_sample(run: Run, out: Console) -> None:
    from rich.text import Text

    from weightdecay.training.sampling import continuation, load

    trained = load(run, note)
    text = "".join(continuation(trained, "", max_tokens=120, temperature=0.8, top_k=50, seed=0))
    out.print(Text("\nA sample, from an empty prompt:", style="bold"))
    out.print(Text(printable(text)))
    path = printable(str(run.path))
    out.print(Text(f"\nThe run is in {path}; more text: weightdecay sample {shlex.quote(path)}"), soft_wrap=True)
