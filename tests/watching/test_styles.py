"""Programs of many styles, watched in processes of their own: each prints, ends and fails as it does by itself.

All train the same small model, whose gains and biases decay, and print their losses to the last bit.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest

from tests.watching.running import alone, both, found, script, watched

pytestmark = pytest.mark.long

SHARED = """
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(50, 16)
            self.norm = nn.LayerNorm(16)
            self.drop = nn.Dropout(0.1)
            self.head = nn.Linear(16, 50)

        def forward(self, x):
            return self.head(self.drop(self.norm(self.embedding(x))))

    def loss_of(model):
        x = torch.randint(0, 50, (8, 8))
        return F.cross_entropy(model(x).flatten(0, 1), x.flatten())

    def made():
        model = Net()
        return model, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)

    def train(model, optimizer, steps=4):
        for _ in range(steps):
            loss = loss_of(model)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            print(loss.item().hex(), flush=True)
"""
GAINS = {"norm.weight", "norm.bias", "head.bias"}

STYLES = {
    "a notebook's export": """
        # coding: utf-8

        # # A first model

        # In[1]:


        from shared import *


        # In[2]:


        model = Net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
        model


        # In[3]:


        for step in range(4):
            loss = loss_of(model)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            print(loss.item().hex())
        loss


        # In[ ]:




    """,
    "a trainer with an optimizer of its own, without groups": """
        from shared import *

        class Own:
            def __init__(self, params, lr=1e-3, weight_decay=0.1):
                self.params, self.lr, self.weight_decay = list(params), lr, weight_decay
                self.momentum = [torch.zeros_like(p) for p in self.params]

            def zero_grad(self):
                for p in self.params:
                    p.grad = None

            @torch.no_grad()
            def step(self):
                for p, momentum in zip(self.params, self.momentum):
                    momentum.mul_(0.9).add_(p.grad, alpha=0.1)
                    p.mul_(1 - self.lr * self.weight_decay).sub_(self.lr * momentum.sign())

        class Trainer:
            def __init__(self):
                self.model = Net()
                self.optimizer = Own(self.model.parameters())

            def step(self):
                loss = loss_of(self.model)
                loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
                return loss.item()

            def fit(self, steps):
                return [self.step().hex() for _ in range(steps)]

        print(Trainer().fit(5))
    """,
    "steps in the backward pass": """
        from shared import *

        model = Net()
        optimizers = {p: torch.optim.AdamW([p], lr=1e-3, weight_decay=0.1) for p in model.parameters()}

        def step(p):
            optimizers[p].step()
            optimizers[p].zero_grad()

        for p in model.parameters():
            p.register_post_accumulate_grad_hook(step)
        for _ in range(5):
            loss = loss_of(model)
            loss.backward()
            print(loss.item().hex())
    """,
    "a scaler that leaves out its first steps": """
        from shared import *

        model, _ = made()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 126, growth_interval=2)
        for _ in range(6):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = loss_of(model)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            print(loss.item().hex(), scaler.get_scale(), len(optimizer.state))
    """,
    "steps that take a closure": """
        from shared import *

        model, optimizer = made()

        def closure():
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            return loss

        for _ in range(4):
            print(optimizer.step(closure).item().hex())
    """,
    "sharpness-aware steps in two halves": """
        import sys
        from shared import *

        class SAM(torch.optim.Optimizer):
            def __init__(self, params, base, **options):
                super().__init__(params, dict(rho=0.05, **options))
                self.base_optimizer = base(self.param_groups, **options)
                self.param_groups = self.base_optimizer.param_groups

            @torch.no_grad()
            def first_step(self):
                for group in self.param_groups:
                    for p in group["params"]:
                        self.state[p]["old"] = p.data.clone()
                        p.add_(p.grad, alpha=group["rho"])
                self.zero_grad()

            @torch.no_grad()
            def second_step(self):
                for group in self.param_groups:
                    for p in group["params"]:
                        p.data = self.state[p]["old"]
                self.base_optimizer.step()
                self.zero_grad()

            def step(self, closure=None):
                assert closure is not None
                self.first_step()
                closure()
                self.second_step()

        model = Net()
        optimizer = SAM(model.parameters(), torch.optim.AdamW, lr=1e-3, weight_decay=0.1)
        def closure():
            loss = loss_of(model)
            loss.backward()
            return loss
        for step in range(5):
            print(closure().item().hex())
            if len(sys.argv) > 1:
                optimizer.step(closure)
            else:
                optimizer.first_step()
                closure()
                optimizer.second_step()
    """,
    "gradients that are asked for": """
        from shared import *

        model, optimizer = made()
        params = list(model.parameters())
        for _ in range(4):
            loss = loss_of(model)
            for p, gradient in zip(params, torch.autograd.grad(loss, params)):
                p.grad = gradient
            optimizer.step()
            print(loss.item().hex())
    """,
    "a step that is compiled whole": """
        import logging
        from shared import *

        logging.disable(logging.WARNING)  # dynamo's have the time of day
        model, optimizer = made()
        model.drop.p = 0.0

        @torch.compile(backend="aot_eager")
        def step():
            loss = loss_of(model)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        for _ in range(4):
            print(step().item().hex())
    """,
    "spawned workers that take a dataclass of the program's": """
        from dataclasses import dataclass
        from shared import *
        import torch.multiprocessing as mp

        @dataclass
        class Job:
            rank: int

        def work(job, queue):
            torch.manual_seed(job.rank)
            model, optimizer = made()
            train(model, optimizer)
            queue.put((job, loss_of(model).item().hex()))

        if __name__ == "__main__":
            mp.set_start_method("spawn")
            queue = mp.Queue()
            for rank in range(2):
                process = mp.Process(target=work, args=(Job(rank), queue))
                process.start()
                print(queue.get())
                process.join()
                print(process.exitcode)
    """,
    "a pool of a fork server": """
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor
        from shared import *

        def work(seed):
            torch.manual_seed(seed)
            train(*made())
            return seed

        if __name__ == "__main__":
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as pool:
                print(list(pool.map(work, range(2))))
    """,
    "coroutines": """
        import asyncio
        from shared import *

        async def main():
            model, optimizer = made()
            for _ in range(4):
                await asyncio.sleep(0)
                loss = loss_of(model)
                await asyncio.to_thread(loss.backward)
                optimizer.step()
                optimizer.zero_grad()
                print(loss.item().hex())

        asyncio.run(main())
    """,
    "two threads that train at once": """
        import threading
        from shared import *

        losses = {}
        begun = threading.Barrier(2)
        models = [Net().eval() for _ in range(2)]

        def work(number):
            generator, model = torch.Generator().manual_seed(number), models[number]
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
            begun.wait()
            for _ in range(20):
                x = torch.randint(0, 50, (8, 8), generator=generator)
                loss = F.cross_entropy(model(x).flatten(0, 1), x.flatten())
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.setdefault(number, []).append(loss.item().hex())

        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(sorted(losses.items()))
    """,
    "training in what runs at the exit": """
        import atexit, sys
        from shared import *

        pair = made()
        atexit.register(train, *pair)
        print("over")
        sys.exit(11)
    """,
    "arguments that are known in part": """
        import argparse
        from shared import *

        parser = argparse.ArgumentParser()
        parser.add_argument("--steps", type=int, default=3)
        parser.add_argument("--out")
        known, others = parser.parse_known_args()
        print(known, others, parser.prog)
        train(*made(), steps=known.steps)
    """,
    "handlers of its own, and a code of its own": """
        import os, signal, sys
        from shared import *

        stopped = False

        def stop(number, frame):
            global stopped
            print(signal.Signals(number).name, frame.f_code.co_name)
            stopped = True

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGALRM, stop)
        model, optimizer = made()
        for step in range(9):
            train(model, optimizer, 1)
            if step == 3:
                signal.raise_signal(signal.SIGTERM)
            if stopped:
                torch.save(model.state_dict(), "preempted.pt")
                sys.exit(143)
    """,
    "classes of the program's in a checkpoint": """
        import enum, pickle
        from dataclasses import dataclass, field
        from shared import *

        class Kind(enum.Enum):
            SMALL = 1

        @dataclass
        class Config:
            kind: Kind = Kind.SMALL
            extras: dict = field(default_factory=dict)

        if __name__ == "__main__":
            model, optimizer = made()
            train(model, optimizer)
            torch.save({"config": Config(), "model": model, "optimizer": optimizer.state_dict()}, "checkpoint.pt")
            again = torch.load("checkpoint.pt", weights_only=False)
            print(again["config"] == Config(), type(again["config"]) is Config, pickle.dumps(Config()))
            optimizer = torch.optim.AdamW(again["model"].parameters(), lr=1e-3, weight_decay=0.1)
            optimizer.load_state_dict(again["optimizer"])
            train(again["model"], optimizer)
    """,
    "a program that runs itself": """
        import subprocess, sys
        from shared import *

        if len(sys.argv) == 1:
            train(*made())
            for seed in ("1", "2"):
                sys.stdout.flush()
                print(subprocess.run([sys.executable, __file__, seed]).returncode)
        else:
            torch.manual_seed(int(sys.argv[1]))
            train(*made())
            sys.exit(int(sys.argv[1]))
    """,
    "looks at its own objects": """
        import random
        import numpy as np
        from shared import *

        calls = []

        def seen(optimizer):
            state = [value for p in optimizer.state for value in optimizer.state[p].values()]
            tensors = [*optimizer.param_groups[0]["params"], *state]
            drawn = [torch.get_rng_state().sum().item(), random.getstate()[1][:3], np.random.get_state()[2]]
            kept = [id(optimizer.param_groups), id(optimizer.state), len(calls)]
            return (
                [(id(t), id(t.grad), t.data_ptr(), t._version, t.sum().item()) for t in tensors], drawn, kept,
                [t.grad.data_ptr() for t in tensors if t.grad is not None],
            )

        class Mine(torch.optim.AdamW):
            before = None

            def step(self, closure=None):
                print([one == other for one, other in zip(self.before, seen(self))])
                return super().step(closure)

        random.seed(0)
        np.random.seed(0)
        model, _ = made()
        optimizer = Mine(model.parameters(), lr=1e-3, weight_decay=0.1)
        optimizer.register_step_post_hook(lambda *_: calls.append(1))
        for _ in range(4):
            loss = loss_of(model)
            loss.backward()
            optimizer.before = seen(optimizer)
            optimizer.step()
            optimizer.zero_grad()
            print(loss.item().hex(), len(calls))
    """,
    "a program that runs a program": """
        import runpy, sys

        if len(sys.argv) == 1:
            sys.argv = ["train.py", "inner"]
            found = runpy.run_path(__file__, init_globals={"given": 7}, run_name="__main__")
            print(sorted(name for name in found if not name.startswith("_"))[:4], sys.argv)
        else:
            from shared import *
            print(__name__, given)
            train(*made())
    """,
    "strict settings": """
        import sys, warnings
        from shared import *

        warnings.simplefilter("error")
        sys.setrecursionlimit(400)
        torch.use_deterministic_algorithms(True)
        torch.autograd.set_detect_anomaly(True, check_nan=True)
        torch.set_default_dtype(torch.float64)
        model, optimizer = made()
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=10)
        for _ in range(4):
            train(model, optimizer, 1)
            schedule.step()
    """,
    "a profiler": """
        import cProfile
        from shared import *

        profile = cProfile.Profile()
        profile.runcall(train, *made())
        print(len(profile.getstats()) > 0)
    """,
    "an error in the backward pass": """
        from shared import *

        class Fails(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()

            @staticmethod
            def backward(ctx, gradient):
                raise RuntimeError("its own")

        model, optimizer = made()
        train(model, optimizer)
        Fails.apply(loss_of(model)).backward()
    """,
    "an error in a load, another that is caught": """
        import traceback
        from shared import *

        model, optimizer = made()
        train(model, optimizer)
        try:
            optimizer.load_state_dict({"state": {}, "param_groups": []})
        except ValueError:
            traceback.print_exc()
        optimizer.load_state_dict(torch.optim.SGD(model.head.parameters(), lr=1).state_dict())
    """,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    script(tmp_path, SHARED, "shared.py")
    return tmp_path


@pytest.mark.parametrize("source", STYLES.values(), ids=STYLES)
def test_a_program_of_this_style_is_audited_and_not_changed(folder: Path, source: str) -> None:
    words = ("--steps", "3", "--out", "x", "--other") if "argparse" in source else ()
    done = both(folder, textwrap.dedent(source), words=words)
    assert set(found(folder)["decays-exempt"]) == GAINS, done.ours
    document = json.loads((folder / "found.json").read_text())
    assert not [one for one in document["findings"] if one["severity"] == "error"]


def test_a_sharpness_aware_step_that_takes_a_closure_is_audited_by_what_it_wraps(folder: Path) -> None:
    source = textwrap.dedent(STYLES["sharpness-aware steps in two halves"])
    both(folder, source, words=("closure",))
    assert set(found(folder)["decays-exempt"]) == GAINS
    document = json.loads((folder / "found.json").read_text())
    assert document["watch"]["audits"][0]["optimizers"] == ["AdamW"]
    assert "AdamW was audited, and not SAM" in document["remarks"][-1]


def test_two_models_that_train_against_each_other_are_audited_each_by_itself(folder: Path) -> None:
    both(
        folder,
        """
        from shared import *

        class Maker(nn.Module):
            def __init__(self):
                super().__init__()
                self.up, self.batch, self.out = nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Linear(32, 16)

            def forward(self, z):
                return self.out(F.relu(self.batch(self.up(z))))

        class Critic(nn.Module):
            def __init__(self):
                super().__init__()
                self.first = nn.utils.spectral_norm(nn.Linear(16, 32))
                self.norm, self.last = nn.LayerNorm(32), nn.Linear(32, 1)

            def forward(self, x):
                return self.last(F.leaky_relu(self.norm(self.first(x))))

        maker, critic = Maker(), Critic()
        options = dict(lr=2e-4, betas=(0.5, 0.999), weight_decay=0.1)
        of_maker, of_critic = (torch.optim.AdamW(one.parameters(), **options) for one in (maker, critic))
        for _ in range(4):
            made = maker(torch.randn(8, 8))
            of_critic.zero_grad()
            loss = F.softplus(-critic(torch.randn(8, 16))).mean() + F.softplus(critic(made.detach())).mean()
            loss.backward()
            of_critic.step()
            of_maker.zero_grad()
            other = F.softplus(-critic(made)).mean()
            other.backward()
            of_maker.step()
            print(loss.item().hex(), other.item().hex())
        """,
    )
    document = json.loads((folder / "found.json").read_text())
    assert [one["model"] for one in document["watch"]["audits"]] == ["Critic", "Maker"]
    exempt = [set(one["tensors"]) for one in document["findings"] if one["code"] == "decays-exempt"]
    assert {"up.bias", "batch.weight", "batch.bias", "out.bias"} in exempt
    assert {"first.bias", "norm.weight", "norm.bias", "last.bias"} in exempt


def test_a_step_that_cannot_be_made_without_its_closure_is_opaque_and_blamed_for_nothing(folder: Path) -> None:
    both(
        folder,
        """
        from shared import *

        model = Net().eval()
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
        x = torch.randint(0, 50, (8, 8))

        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x).flatten(0, 1), x.flatten())
            loss.backward()
            return loss

        for _ in range(4):
            print(optimizer.step(closure).item().hex())
        """,
    )
    assert set(found(folder)) == {"opaque"}


def test_a_module_of_a_package_imports_its_neighbours(folder: Path) -> None:
    script(folder, "", "package/__init__.py")
    script(folder, SHARED, "package/shared.py")
    script(
        folder,
        """
        import sys
        from . import shared
        from .shared import made, train

        def main():
            print(__name__, __package__, sys.argv[1:], shared.__name__)
            train(*made())
            return 7

        if __name__ == "__main__":
            sys.exit(main())
        """,
        "package/train.py",
    )
    plain = alone("-m", "package.train", "--x", cwd=folder)
    ours = watched("--out", "found.json", "--", "-m", "package.train", "--x", cwd=folder)
    assert (ours.code, ours.out) == (plain.code, plain.out) == (7, ours.out)
    assert set(found(folder)["decays-exempt"]) == GAINS


def test_what_training_is_started_with_may_stand_before_it(folder: Path) -> None:
    script(folder, "from shared import *\ntrain(*made())")
    plain = alone("train.py", cwd=folder)
    ours = watched("--out", "found.json", "--", "-m", "trace", "--count", "--coverdir", "x", "train.py", cwd=folder)
    assert ours.out.splitlines()[:4] == plain.out.splitlines()
    assert set(found(folder)["decays-exempt"]) == GAINS
