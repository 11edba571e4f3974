"""The `weightdecay` command: parse, call, print. No torch and no numpy is imported for `--help`."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated, Any

import tyro

from weightdecay.cli.convert import Convert
from weightdecay.cli.data import Data
from weightdecay.cli.export import Export
from weightdecay.cli.output import report_error
from weightdecay.cli.plan import Plan
from weightdecay.cli.recipes import Recipes
from weightdecay.cli.sample import Sample
from weightdecay.cli.train import Train
from weightdecay.cli.verify import Verify
from weightdecay.errors import WeightDecayError

DESCRIPTION = (
    "Train GPTs with the right weights decaying by the right amount, and prove that they did. "
    "Every command takes --json. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 a check did not hold, "
    "4 damaged data, 130 and 143 stopped by a signal after saving."
)

Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Plan, tyro.conf.subcommand("plan")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Recipes, tyro.conf.subcommand("recipes")]
)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script; leaves by SystemExit with the command's exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without λ still shows the rest
    as_json = False
    try:
        command: Any = tyro.cli(
            Command,
            prog="weightdecay",
            description=DESCRIPTION,
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )
        as_json = command.json
        code = command.run()
        sys.stdout.flush()
    except WeightDecayError as error:
        report_error(error, as_json=as_json)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # The reader (`head`, say) has seen enough; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    raise SystemExit(code)
