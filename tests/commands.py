"""The command line that tests of several rooms use."""

from __future__ import annotations

import subprocess
import typing
from collections.abc import Callable

from weightdecay import cli

# A model so small that a run takes seconds, with everything on that could break a bitwise resume.
SMALL = [
    "--tokenizer", "byte", "--context", "32", "--batch-tokens", "256",
    "--set", "model.n_layers=2", "--set", "model.d_model=32", "--set", "model.n_heads=2",
    "--set", "model.dropout=0.1", "--set", "model.stochastic_depth=0.1",
    "--set", "run.micro_batch_tokens=128", "--set", "run.eval_every=10",
]  # fmt: skip

# A batch that grows by single sequences, so that two processes have unlike shares, and a clipping that changes.
MOVING = [
    "--set", 'run.batch_ramp=["0:96", "3000:256"]', "--set", "run.batch_ramp_shape=linear",
    "--set", "optimizer.grad_clip=1", "--set", "schedule.grad_clip_changes=2000:0.1",
]  # fmt: skip

Command = Callable[..., subprocess.CompletedProcess[str]]

# Every command by its name, with its dataclass.
COMMANDS = {kind.__name__.lower(): kind for kind, _ in map(typing.get_args, typing.get_args(cli.Command))}
