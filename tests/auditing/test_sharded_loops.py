"""On two ranks the audit says the same as on one, the same on both, and leaves shards as they were."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed

import weightdecay
from tests.auditing.loops import sharded
from tests.auditing.witness import differences, facts_of
from tests.forking import ForkServer


def _one_rank(rank: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)

    said: dict[str, object] = {}
    for make in [*sharded.HEALTHY, *(one.make for one in sharded.HOSTILE)]:
        loop = make()
        before = facts_of(loop)
        audit = weightdecay.audit(loop.model, loop.optimizer, **loop.asked)
        said[make.__name__] = {
            "findings": [[found.code, found.severity, *found.tensors] for found in audit.findings],
            "changed": differences(before, facts_of(loop)),
        }
    Path(folder, f"said-{rank}.json").write_text(json.dumps(said), encoding="utf-8")
    os._exit(0)  # gloo threads can abort a process that tears them down


@pytest.mark.long
def test_loops_over_two_processes(forks: ForkServer, tmp_path: Path) -> None:
    forks.ranks(_one_rank, str(tmp_path))
    said = [json.loads((tmp_path / f"said-{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]

    assert {name: one["findings"] for name, one in said[0].items()} == {
        name: one["findings"] for name, one in said[1].items()
    }
    for of_rank in said:
        assert {name: one["changed"] for name, one in of_rank.items() if one["changed"]} == {}
    for make in sharded.HEALTHY:
        assert [found for found in said[0][make.__name__]["findings"] if found[1] != "note"] == []
    for one in sharded.HOSTILE:
        findings = said[0][one.make.__name__]["findings"]
        assert any(found[:2] == [one.code, one.severity] and set(one.tensors) <= set(found[2:]) for found in findings)
        assert {found[0] for found in findings if found[1] != "note"} == {one.code}
