"""A run's numbers and alarms in trackio, which keeps them on this machine.

weightdecay train … --track trackio
trackio show --project weightdecay
"""

from __future__ import annotations

from typing import Any

from weightdecay.errors import MissingExtraError
from weightdecay.integrations.tracker_rows import alarm_text, alarm_title, is_alarm, scalars
from weightdecay.runs import Row, Run

_LEVELS = {"error": "ERROR", "warning": "WARN", "note": "INFO"}


class Trackio:
    """A `Tracker` that writes into the trackio run that is open, or opens one.

    Alarms are trackio's alerts.

    Args:
        project: where a run is opened here.
        options: of `trackio.init`, likewise.

    Raises:
        MissingExtraError: trackio is not installed.
    """

    def __init__(self, project: str = "weightdecay", **options: Any) -> None:
        try:
            import trackio
        except ImportError:
            raise MissingExtraError("tracking by trackio", "trackio") from None
        self._trackio: Any = trackio
        self._project = project
        self._options = options
        self._run: Any = None
        self._is_ours = False

    def start(self, run: Run, step: int) -> None:
        self._run = self._trackio.context_vars.current_run.get()
        if self._run is not None:
            return
        self._is_ours = True
        resume = "allow" if step else "never"
        options = {"name": run.path.resolve().name, "resume": resume, "embed": False, **self._options}
        self._run = self._trackio.init(project=self._project, **options)

    def row(self, row: Row) -> None:
        if is_alarm(row):
            level = getattr(self._trackio.AlertLevel, _LEVELS[row["severity"]])
            self._run.alert(title=alarm_title(row), text=alarm_text(row), level=level, step=row["step"])
        elif values := scalars(row):
            self._run.log(values, step=row["step"])

    def close(self) -> None:
        if self._is_ours and self._run is not None:
            self._trackio.finish()
