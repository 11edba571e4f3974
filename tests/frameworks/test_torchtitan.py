"""torchtitan's Trainer, FSDP2 on one process and two: the audit changes nothing, and the plan reaches its groups."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torchtitan")

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]


def trained(folder: Path, *wanted: str, processes: int = 1) -> dict[str, Any]:
    command = [
        sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0", "-m", "tests.frameworks.titan", str(folder), *wanted,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "found.json").read_text("utf-8"))
    return found


def codes(audit: dict[str, Any]) -> dict[str, list[str]]:
    return {one["code"]: one["tensors"] for one in audit["findings"] if one["severity"] != "note"}


def test_its_default_decays_norms_which_is_found_and_the_losses_stay_bit_for_bit(tmp_path: Path) -> None:
    audited, alone = trained(tmp_path / "audited", "audit"), trained(tmp_path / "alone")
    assert audited["losses"] == alone["losses"]
    assert list(audited["audits"]) == ["1", "3"]
    norms = ["norm.weight", *(f"layers.{n}.{part}_norm.weight" for n in (0, 1) for part in ("attention", "ffn"))]
    for audit in audited["audits"].values():
        assert {code: sorted(names) for code, names in codes(audit).items()} == {"decays-exempt": sorted(norms)}


def test_by_plan_its_norms_do_not_decay_and_two_processes_find_nothing(tmp_path: Path) -> None:
    planned = trained(tmp_path, "plan", "audit", processes=2)
    assert [codes(audit) for audit in planned["audits"].values()] == [{}, {}]
    (λ, decaying), (none, exempt) = planned["groups"]
    assert (λ, none) == (0.1, 0.0)
    assert all("norm" in name for name in exempt)
    assert not any("norm" in name for name in decaying)


def test_its_log_shows_what_the_audit_comes_to(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained(tmp_path, "audit")
    (folder,) = (tmp_path / "tb").iterdir()
    shown = EventAccumulator(str(folder)).Reload().Scalars("audit/warnings")
    assert [(event.step, event.value) for event in shown] == [(1, 1.0), (3, 1.0)]
