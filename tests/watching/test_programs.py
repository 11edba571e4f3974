"""Programs that train, watched in processes of their own: what is found, that nothing changes, and how they end."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.watching.running import WATCH, Done, alone, both, found, script, watched

# What the programs here share; each prints its losses to the last bit.
SHARED = """
    import os, sys, torch

    torch.manual_seed(0)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(50, 16)
            self.norm = torch.nn.LayerNorm(16)
            self.drop = torch.nn.Dropout(0.1)
            self.head = torch.nn.Linear(16, 50)

        def forward(self, x):
            return self.head(self.drop(self.norm(self.embedding(x))))

    def made():
        model = Net()
        return model, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)

    def train(steps, model, *optimizers):
        for step in range(steps):
            x = torch.randint(0, 50, (8, 8))
            loss = torch.nn.functional.cross_entropy(model(x).flatten(0, 1), x.flatten())
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            sys.stdout.write(f"{step} {loss.item().hex()}\\n")
            sys.stdout.flush()
"""
GAINS = ["norm.weight", "norm.bias", "head.bias"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    script(tmp_path, SHARED, "shared.py")
    return tmp_path


def test_what_a_load_put_in_the_place_of_what_was_asked_is_found_though_the_program_crashes_later(
    folder: Path,
) -> None:
    path = script(
        folder,
        """
        from shared import *

        def resumed():
            model, optimizer = made()
            saved = optimizer.state_dict()
            saved["param_groups"][0]["weight_decay"] = 0.01
            optimizer.load_state_dict(saved)
            return model, optimizer

        train(3, *resumed())
        {}["missing"]
        """,
    )
    plain = alone(path, cwd=folder)
    files = [word for name in ("found.json", "found.md", "found.html") for word in ("--out", name)]
    ours = watched(*files, "--", path, cwd=folder)
    assert (ours.code, ours.out) == (1, plain.out)
    assert ours.err.endswith(plain.err)
    assert "stale: λ of 5 tensors is 0.01 and not 0.1" in ours.err
    document = json.loads((folder / "found.json").read_text())
    assert [one["code"] for one in document["findings"] if one["severity"] == "error"] == ["stale"]
    assert (document["watch"]["exit_code"], document["watch"]["audits"][0]["step"]) == (1, 2)
    assert "| error | `stale` |" in (folder / "found.md").read_text()
    page = (folder / "found.html").read_text()
    assert "stale" in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_job_stops_after_a_step_fails_on_findings_and_locks_the_plan(folder: Path) -> None:
    path = script(folder, "from shared import *\ntrain(50, *made())\nprint('never')")
    done = watched(
        *("--stop-after", "3", "--fail-on", "warning", "--lock", "plan.json", "--json", "--", path), cwd=folder
    )
    assert done.code == 3
    document = done.document
    assert {one["code"]: one["tensors"] for one in document["findings"]}["decays-exempt"] == GAINS
    assert document["watch"]["optimizers"] == [{"class": "AdamW", "steps": 3}]
    assert "never" not in done.err
    locked = json.loads((folder / "plan.json").read_text())
    assert [tensor["name"] for tensor in locked["tensors"]][:2] == ["embedding.weight", "norm.weight"]


@pytest.mark.long
def test_what_was_asked_is_told_and_what_a_team_lives_with_is_ignored(folder: Path) -> None:
    path = script(folder, "from shared import *\ntrain(3, *made())")
    flags = ["--policy", "torch", "--weight-decay", "0.2", "--fail-on", "error", "--out", "found.json"]
    assert watched(*flags, "--", path, cwd=folder).code == 3
    assert "stale" in found(folder)
    flags = ["--ignore", "found.json", *flags[:-1], "again.json"]
    assert watched(*flags, "--", path, cwd=folder).code == 0
    assert found(folder, "again.json") == {}
    patterns = ["--ignore", "decays-exempt=norm|bias", "--ignore", "idle-decay=.*", "--fail-on", "warning"]
    assert watched(*patterns, "--", path, cwd=folder).code == 0


@pytest.mark.long
def test_a_plan_that_is_another_than_the_locked_one_fails(folder: Path) -> None:
    path = script(folder, "from shared import *\ntrain(2, *made())")
    assert watched("--lock", "plan.json", "--", path, cwd=folder).code == 0
    assert watched("--check", "plan.json", "--", path, cwd=folder).code == 0
    assert watched("--check", "plan.json", "--weight-decay", "0.3", "--", path, cwd=folder).code == 3
    script(folder, SHARED.replace("LayerNorm(16)", "LayerNorm(16, bias=False)"), "shared.py")
    done = watched("--check", "plan.json", "--", path, cwd=folder)
    assert done.code == 3
    assert "the plan is not the one in" in done.ours
    assert "norm.bias" in done.err


# What a program does, and whether its gains are found to decay.
ENDINGS = {
    "leaves at once": "train(3, *made()); os._exit(4)",
    "leaves at once by a call of sys.exit": "train(3, *made()); sys.exit(5)",
    "ends before the second step, its model still alive": "model, optimizer = made(); train(1, model, optimizer)",
    "ends before the second step, its model gone": "train(1, *made())",
    "has several optimizers": """
        model, _ = made()
        train(3, model, *(torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1) for p in (
            model.embedding.parameters(), [*model.norm.parameters(), *model.head.parameters()])))
    """,
    "builds one that it does not use": """
        model, unused = made()
        train(3, model, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1))
    """,
    "trains in processes that import it again": """
        import torch.multiprocessing as mp
        def work(rank):
            train(3, *made())
        if __name__ == "__main__":
            mp.spawn(work, nprocs=1)
    """,
    "trains in a fork": """
        pid = os.fork()
        if not pid:
            train(3, *made())
            os._exit(0)
        os.waitpid(pid, 0)
    """,
    "reads data in workers": """
        from torch.utils.data import DataLoader, TensorDataset
        if __name__ == "__main__":
            model, optimizer = made()
            data = TensorDataset(torch.randint(0, 50, (24, 8)))
            for (x,) in DataLoader(data, batch_size=8, num_workers=1, multiprocessing_context="spawn"):
                train(1, model, optimizer)
    """,
    "starts itself again": """
        if "again" not in sys.argv:
            os.execv(sys.executable, [sys.executable, *sys.argv, "again"])
        train(3, *made())
    """,
    "starts another Python": """
        import subprocess
        sys.exit(subprocess.call([sys.executable, "-c", "from shared import *; train(3, *made()); sys.exit(6)"]))
    """,
    "compiles its model": """
        model, optimizer = made()
        train(3, torch.compile(model, backend="aot_eager"), optimizer)
    """,
    "freezes what is alive": """
        import gc
        model, optimizer = made()
        train(1, model, optimizer); gc.collect(); gc.freeze(); gc.disable(); train(3, model, optimizer)
    """,
    "trains in a thread": """
        import threading
        threading.Thread(target=lambda: train(3, *made())).start()
    """,
    "has replaced its streams": """
        import io
        kept, sys.stderr = sys.stdout, io.StringIO()
        train(3, *made())
    """,
    "uses no optimizer of torch's": """
        class Own:
            def __init__(self, params):
                self.param_groups = [{"params": list(params), "lr": 0.1, "weight_decay": 0.1}]
            def zero_grad(self):
                for p in self.param_groups[0]["params"]: p.grad = None
            @torch.no_grad()
            def step(self):
                group = self.param_groups[0]
                for p in group["params"]: p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * p.grad)
        model, _ = made()
        train(4, model, Own(model.parameters()))
    """,
}


@pytest.mark.long
@pytest.mark.parametrize("source", ENDINGS.values(), ids=ENDINGS)
def test_a_program_that_does_something_unusual_is_audited_and_not_changed(folder: Path, source: str) -> None:
    import textwrap

    both(folder, "from shared import *\n" + textwrap.dedent(source))
    assert found(folder)["decays-exempt"] == GAINS


@pytest.mark.long
def test_a_step_that_was_asked_for_and_not_reached_is_said(folder: Path) -> None:
    done = both(folder, "from shared import *\ntrain(3, *made())", "--at-step", "9")
    assert "the program ended before step 9, so that NOTHING WAS AUDITED: AdamW made 3 steps" in done.ours


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_program_that_hangs_and_is_stopped_has_been_audited(folder: Path, number: signal.Signals) -> None:
    path = script(folder, "from shared import *\ntrain(3, *made()); print('hangs', flush=True)\nwhile True: pass")
    process = subprocess.Popen(
        [*WATCH, "--out", "found.json", "--", path], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    while "hangs" not in process.stdout.readline():
        pass
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == -number
    assert found(folder)["decays-exempt"] == GAINS
    if number == signal.SIGINT:
        assert said.count("Traceback") == 1
        assert "weightdecay/" not in said.partition("Traceback")[2]
        assert "KeyboardInterrupt" in said


RANKS = """
    from shared import *
    import torch.distributed as dist

    dist.init_process_group("gloo")
    torch.manual_seed(dist.get_rank())
    model = Net()
    if sys.argv[1] == "ddp":
        model = torch.nn.parallel.DistributedDataParallel(model)
    else:
        from torch.distributed.fsdp import fully_shard
        fully_shard(model.head)
        fully_shard(model)
    sys.stdout = open(f"{sys.argv[2]}-{dist.get_rank()}.txt", "w")
    train(4, model, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1))
    sys.stdout.close()
    sys.stdout = sys.__stdout__
    dist.destroy_process_group()
"""


def steady(*words: str, **options: Any) -> Done:
    """A run of several processes; gloo aborts at times when one of them ends on a busy machine, watched or not."""
    for _ in range(3):
        done = alone(*words, **options)
        if "terminate called without an active exception" not in done.err:
            break
    return done


@pytest.mark.long
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_of_two_ranks_the_first_audits_alone_and_all_train_as_before(folder: Path, kind: str) -> None:
    script(folder, RANKS)
    environment: dict[str, Any] = {"GLOO_SOCKET_IFNAME": "lo"}  # nothing here listens to the outside
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    plain = steady(*run, "train.py", kind, "plain", cwd=folder, **environment)
    assert plain.code == 0, plain.err
    watch = ["-m", "weightdecay", "watch", "--out", "found.json", "--", "train.py", kind, "watched"]
    ours = steady(*run, *watch, cwd=folder, **environment)
    assert ours.code == 0, ours.err + ours.ours
    for rank in (0, 1):
        assert (folder / f"plain-{rank}.txt").read_text() == (folder / f"watched-{rank}.txt").read_text()
    assert found(folder)["decays-exempt"] == GAINS
    assert ours.ours.count("found.json") == 1
