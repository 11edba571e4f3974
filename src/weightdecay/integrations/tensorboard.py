"""A run's numbers in TensorBoard.

weightdecay train … --track tensorboard
tensorboard --logdir runs
"""

from __future__ import annotations

from typing import Any

from weightdecay.errors import MissingExtraError
from weightdecay.integrations.tracker_rows import alarm_text, is_alarm, scalars
from weightdecay.runs import Row, Run

FOLDER = "tensorboard"


class TensorBoard:
    """A `Tracker` that writes event files into `RUN/tensorboard`: `train/loss`, `eval/val_loss` … by step.

    Alarms are texts, one page for each code.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtraError("tracking by tensorboard", "track") from None
        self._make: Any = SummaryWriter
        self._writer: Any = None

    def start(self, run: Run, step: int) -> None:
        # TensorBoard drops what an earlier process wrote of later steps, which are made anew.
        self._writer = self._make(str(run.path / FOLDER), purge_step=step + 1 if step else None)
        settings = run.path / "run.toml"
        if settings.is_file():
            self._writer.add_text("run.toml", f"```toml\n{settings.read_text('utf-8')}\n```", step)

    def row(self, row: Row) -> None:
        for name, value in scalars(row).items():
            self._writer.add_scalar(name, value, row["step"])
        if is_alarm(row):
            self._writer.add_text(f"alarm/{row['code']}", alarm_text(row), row["step"])
            self._writer.flush()  # an alarm is not left lying for two minutes

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
