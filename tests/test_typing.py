"""What type checkers say of a user's script: a correct one passes, and each wrong line is an error on that line."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

RIGHT = """\
from pathlib import Path

import torch
from torch import nn

import weightdecay
from weightdecay.rules import INDEPENDENT, Rule, RuleName
from weightdecay.schedules import Cosine, Linear, Warmup


def train(model: nn.Module, name: RuleName) -> float:
    plan = weightdecay.plan(model, weight_decay=0.1, policy="nanogpt", overrides={"bias": 0.0})
    weightdecay.plan(model, policy=Path("policy.toml"))
    weightdecay.plan(model, overrides=[weightdecay.Override("head", None, lr_multiplier=0.1)])
    multiplier: float = plan["0.weight"].multiplier
    role: weightdecay.Role = plan["0.weight"].role

    lr = Warmup(10, then=Cosine(6e-4, 6e-5, steps=90))
    optimizer = weightdecay.AdamW(plan, lr=6e-4, rule="corrected", rounding="kahan")
    weightdecay.Muon(plan, lr=0.02, rule=Rule("mine", lr_power=2, mask="agreeing"))
    weightdecay.Lion(model.named_parameters(), lr=1e-4, rule=INDEPENDENT, peak_lr=1e-4)
    weightdecay.SGDW(model.parameters(), lr=0.1, rule=name)
    weightdecay.Adafactor(plan.param_groups(lr=1e-2), lr=1e-2, rule={"head.*": "decoupled", "*": "cautious"})
    other = torch.optim.AdamW(plan.param_groups(lr=6e-4))
    handle: weightdecay.Control = weightdecay.control(
        other, rule="independent", peak_lr=6e-4, schedule=weightdecay.schedules.Linear(0.1, 0.0, steps=100)
    )
    weightdecay.apply_schedules(optimizer, 0, lr=lr, weight_decay=Linear(0.1, 0.0, steps=100))
    clipped: weightdecay.ClippedStep = weightdecay.clipped_step(optimizer, 1.0)
    try:
        plan.check([optimizer, other]).raise_if_wrong()
    except weightdecay.CheckFailedError as error:
        print(error)
    added: list[str] = plan.add_to(optimizer)
    torch.save(weightdecay.state_by_name(optimizer), "state.pt")
    print(handle, multiplier, role, clipped.grad_norm, added)
    return float(weightdecay.penalty(plan)) + weightdecay.convert(0.1, source="torch", target="composer", lr=6e-4)
"""

WRONG = """\
import weightdecay
from torch import nn
from weightdecay.schedules import Cosine

model = nn.Linear(2, 2)
plan = weightdecay.plan(model)
weightdecay.AdamW(plan, lr=1e-3, rule="indepndent")  # wrong
weightdecay.AdamW(plan, lr=1e-3, rounding="stochstic")  # wrong
weightdecay.plan(model, policy="nanogtp")  # wrong
weightdecay.Muon(plan, lr="0.02")  # wrong
weightdecay.control(model, rule="fixed")  # wrong
weightdecay.control(weightdecay.SGDW(plan, lr=0.1), rule="independant")  # wrong
weightdecay.planned(model)  # wrong
Cosine(1e-3, 0.0)  # wrong
weightdecay.schedules.Linaer(0.1, 0.0, steps=3)  # wrong
plan.param_group(lr=1e-3)  # wrong
weightdecay.plan(model, unknown="exmpt")  # wrong
weightdecay.convert(0.1, source="torch", target="composer", lr=None)  # wrong
weightdecay.rules.Rule("mine", mask="agreeing_strictly")  # wrong
"""

WRONG_LINES = [number for number, line in enumerate(WRONG.splitlines(), start=1) if "# wrong" in line]


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(WRONG)
    return tmp_path


@pytest.mark.long  # a quarter of a minute, as it reads all of torch; `make check` has it read our own scripts
def test_mypy_accepts_a_correct_script_and_rejects_each_wrong_line(scripts: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--no-color-output",
        "--cache-dir",
        "cache",
        "right.py",
        "wrong.py",
    ]
    done = subprocess.run(command, cwd=scripts, capture_output=True, text=True, check=False)
    found = [line.split(":") for line in done.stdout.splitlines() if ": error:" in line]
    assert [(name, int(number)) for name, number, *_ in found] == [("wrong.py", n) for n in WRONG_LINES], done.stdout


@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright comes with the extra 'dev'")
def test_pyright_accepts_a_correct_script_and_rejects_each_wrong_line(scripts: Path) -> None:
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", "right.py", "wrong.py"]
    done = subprocess.run(command, cwd=scripts, capture_output=True, text=True, check=False)
    found = [one for one in json.loads(done.stdout)["generalDiagnostics"] if one["severity"] == "error"]
    lines = [(Path(one["file"]).name, one["range"]["start"]["line"] + 1) for one in found]
    assert lines == [("wrong.py", n) for n in WRONG_LINES], done.stdout
