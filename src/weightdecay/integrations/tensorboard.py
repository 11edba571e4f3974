"""A run's numbers in TensorBoard.

weightdecay train … --track tensorboard
tensorboard --logdir runs
"""

from __future__ import annotations

from typing import Any

from weightdecay.errors import MissingExtraError
from weightdecay.runs import Row, Run

FOLDER = "tensorboard"


class TensorBoard:
    """A `Tracker` that writes event files into `RUN/tensorboard`: `train/loss`, `eval/val_loss` … by step.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtraError("--track tensorboard", "track") from None
        self._make: Any = SummaryWriter
        self._writer: Any = None

    def start(self, run: Run, step: int) -> None:
        # TensorBoard drops what an earlier process wrote of later steps, which are made anew.
        self._writer = self._make(str(run.path / FOLDER), purge_step=step + 1 if step else None)
        self._writer.add_text("run.toml", f"```toml\n{(run.path / 'run.toml').read_text('utf-8')}\n```", step)

    def row(self, row: Row) -> None:
        for key, value in row.items():
            if key not in ("kind", "step") and isinstance(value, int | float):
                self._writer.add_scalar(f"{row['kind']}/{key}", value, row["step"])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
