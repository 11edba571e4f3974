"""A run's rows and alarms in the real trackers, read back from where these keep them."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from weightdecay.runs import Run

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("default")]
ALARM = {
    "kind": "alarm", "step": 2, "code": "decays-exempt", "severity": "warning", "tensors": ["norm.weight"],
    "elements": 8, "title": "norm.weight decays", "detail": "per step 0.1", "why": "because", "fix": "plan = …",
    "asked": 0.0, "realised": 1e-4,
}  # fmt: skip
ROWS: list[dict[str, Any]] = [
    {"kind": "train", "step": 1, "loss": 2.5, "lr": 1e-3},
    {"kind": "audit", "step": 2, "errors": 0, "warnings": 1, "notes": 0},
    ALARM,
    {"kind": "decay", "step": 2, "name": "norm.weight", "weight_rms": 1.0},
    {"kind": "decay-role", "step": 2, "role": "norm gain", "weight_rms": 1.0, "angle": None},
    {"kind": "train", "step": 2, "loss": 2.25, "lr": 1e-3},
]


def send(tracker: Any, folder: Path, rows: list[dict[str, Any]] = ROWS, step: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    tracker.start(Run(folder), step)
    for row in rows:
        tracker.row(row)
    tracker.close()


def wandb_records(folder: Path) -> list[Any]:
    """What wandb has written for its server; its own process goes on writing for a while after a run has ended."""
    deadline = time.monotonic() + 60
    while True:
        found = [list(records_of(file)) for file in sorted(folder.rglob("*.wandb"))]
        ended = [any(record.WhichOneof("record_type") == "exit" for record in records) for records in found]
        if (found and all(ended)) or time.monotonic() > deadline:
            return [record for records in found for record in records]
        time.sleep(0.1)


def records_of(file: Path) -> Iterator[Any]:
    """Protocol buffers in LevelDB's log format, after a head of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if _BLOCK - place % _BLOCK < 7:  # a head is not cut in two
            place += _BLOCK - place % _BLOCK
        _, length, kind = struct.unpack_from("<IHB", content, place)
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


_BLOCK = 32768


def histories(records: list[Any]) -> list[dict[str, str]]:
    kept = [record.history.item for record in records if record.WhichOneof("record_type") == "history"]
    return [{item.key or "/".join(item.nested_key): item.value_json for item in items} for items in kept]


def test_wandb_keeps_numbers_by_their_step_and_alarms_as_alerts(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    from weightdecay.integrations.wandb import WandB

    send(WandB(), tmp_path / "run")
    records = wandb_records(tmp_path)
    lines = histories(records)
    assert [(line["train/step"], line["train/loss"]) for line in lines if "train/loss" in line] == [
        ("1", "2.5"), ("2", "2.25")
    ]  # fmt: skip
    assert any(line.get("audit/warnings") == "1" for line in lines)
    assert any("decay norm gain/weight_rms" in line for line in lines)
    assert not any("decay/weight_rms" in line for line in lines)
    (alert,) = [record.alert for record in records if record.WhichOneof("record_type") == "alert"]
    assert alert.title == "decays-exempt: norm.weight decays"
    assert alert.level == "WARN"
    assert "`norm.weight`" in alert.text


def test_wandb_writes_into_a_run_that_is_open_and_leaves_it_open(tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    from weightdecay.integrations.wandb import WandB

    with wandb.init(project="theirs", dir=str(tmp_path)) as theirs:
        theirs.log({"loss": 1.0}, step=100)
        send(WandB(), tmp_path / "run")
        assert wandb.run is theirs
        theirs.log({"loss": 0.5}, step=200)
    lines = histories(wandb_records(tmp_path))
    assert any("audit/warnings" in line for line in lines)
    assert any(line.get("loss") == "0.5" for line in lines)


def test_wandb_goes_on_in_the_run_that_an_earlier_process_wrote(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    from weightdecay.integrations.wandb import WandB

    send(WandB(), tmp_path / "run", ROWS[:1])
    send(WandB(), tmp_path / "run", ROWS[1:], step=1)
    ids = {record.run.run_id for record in wandb_records(tmp_path) if record.WhichOneof("record_type") == "run"}
    assert len(ids) == 1


TRACKIO = """
import sys
from pathlib import Path
from tests.frameworks.test_trackers import ROWS, send
from weightdecay.integrations.trackio import Trackio

send(Trackio(), Path(sys.argv[1]))

from trackio.sqlite_storage import SQLiteStorage

(run,) = SQLiteStorage.get_runs("weightdecay")
logs = SQLiteStorage.get_logs("weightdecay", run)
assert [(row["step"], row["train/loss"]) for row in logs if "train/loss" in row] == [(1, 2.5), (2, 2.25)], logs
assert any(row.get("audit/warnings") == 1 for row in logs), logs
(alert,) = SQLiteStorage.get_alerts("weightdecay")
assert alert["title"] == "decays-exempt: norm.weight decays", alert
assert (alert["level"], alert["step"]) == ("warn", 2), alert
"""


def test_trackio_keeps_numbers_by_their_step_and_alarms_as_alerts(tmp_path: Path) -> None:
    """In a process of its own: trackio reads where it keeps things when it is imported."""
    pytest.importorskip("trackio")
    done = subprocess.run(
        [sys.executable, "-c", TRACKIO, str(tmp_path / "run")], cwd=Path(__file__).parents[2], capture_output=True,
        text=True, env=dict(os.environ), timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_trainers_findings_reach_every_tracker(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from tests.frameworks.small import mamba
    from tests.frameworks.test_transformers import trainer
    from weightdecay.integrations.transformers import AuditCallback

    trainer(tmp_path, mamba(), AuditCallback(trackers=["tensorboard", "wandb"])).train()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Scalars("audit/warnings")[0].value == 1.0
    text = events.Tensors("alarm/decays-exempt/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "A_log" in text
    assert "plan" in text
    alerts = [record.alert for record in wandb_records(tmp_path) if record.WhichOneof("record_type") == "alert"]
    assert [alert.title.partition(":")[0] for alert in alerts] == ["decays-exempt"]
