"""The tiny study with runs that never end, carried out as the command does it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from tests.studies.tiny import SETTINGS, TINY, plan
from weightdecay.errors import StoppedError
from weightdecay.studies.runner import carry_out
from weightdecay.training.signals import StopRequest


def main(path: str, source: str) -> None:
    steps = {"run.steps": 10**6, "run.eval_every": 10**6, "run.checkpoint_every": 10**6}
    endless = dataclasses.replace(
        TINY, plan=lambda size: dataclasses.replace(plan(size), settings={**SETTINGS, **steps})
    )
    try:
        with StopRequest() as stop:
            carry_out(endless, Path(path), size="quick", n_seeds=1, jobs=2, sources=[source],
                      stop_requested=lambda: stop.signal_number)  # fmt: skip
    except StoppedError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
