"""`weightdecay plan`, mostly in this process: each of its own costs seconds of imports."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import weightdecay
from tests.commands import Command
from weightdecay.cli import main

MAMBA = {"architectures": ["MambaForCausalLM"], "model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2}


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


Plan = Callable[..., Done]


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str]) -> Plan:
    def run(*arguments: object) -> Done:
        with pytest.raises(SystemExit) as left:
            main(["plan", *map(str, arguments)])
        streams = capsys.readouterr()
        return Done(int(left.value.code or 0), streams.out, streams.err)

    return run


@pytest.fixture
def mamba(tmp_path: Path) -> Path:
    folder = tmp_path / "mamba"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MAMBA))
    return folder


def test_a_recipes_plan_is_a_table_grouped_by_pattern(plan: Plan) -> None:
    done = plan("gpt2:124m")
    assert done.returncode == 0, done.stderr
    assert re.search(r"blocks\.\{0-11\}\.attention\.qkv\.weight +12 +2304×768", done.stdout)


@pytest.mark.transformers
def test_against_another_policy_says_who_differs_and_why_it_matters(plan: Plan, mamba: Path) -> None:
    pytest.importorskip("transformers")
    done = plan(mamba, "--against", "transformers", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    names = [difference["name"] for difference in document["differences"]]
    assert "backbone.norm_f.weight" in names
    assert "backbone.layers.0.mixer.A_log" in names
    assert all(difference["theirs"]["decays"] for difference in document["differences"])
    table = plan(mamba, "--against", "transformers").stdout
    assert "exp(A_log)" in table


def test_a_lock_holds_until_something_changes(plan: Plan, tmp_path: Path) -> None:
    lock = tmp_path / "plan.lock.json"
    assert plan("gpt2:124m", "--lock", lock).returncode == 0
    assert plan("gpt2:124m", "--check", lock).returncode == 0
    changed = plan("gpt2:124m", "--check", lock, "--policy", "no-embeddings")
    assert changed.returncode == 3
    assert "token_embedding" in changed.stderr or "embed" in changed.stderr
    assert "multiplier 1 → 0" in changed.stderr


def test_one_tensors_story_gives_role_evidence_and_reason(plan: Plan) -> None:
    done = plan("gpt2:124m", "--why", "norm.weight", "--json")
    story = json.loads(done.stdout)
    assert story["roles"] == ["norm gain"]
    assert story["decays"] is False
    missing = plan("gpt2:124m", "--why", "nrm.weight")
    assert missing.returncode == 2
    assert "did you mean 'norm.weight'" in missing.stderr


def test_faults_of_the_flags_come_together_before_any_work(plan: Plan) -> None:
    done = plan("gpt2:124m", "--unknown", "eror", "--weight-decay", "much", "--override", "head")
    assert done.returncode == 2
    assert done.stderr.count("error:") == 3


def test_a_factory_of_the_users_own(plan: Plan, weightdecay: Command) -> None:
    done = plan("python:tests.planning.strangers.sequences:Mamba", "--json")
    assert done.returncode == 0, done.stderr
    tensors = {tensor["name"]: tensor for tensor in json.loads(done.stdout)["tensors"]}
    assert tensors["rates"]["roles"] == ["state-space parameter"]
    failed = weightdecay("plan", "python:tests.planning.test_bad_input:failing_factory")
    assert failed.returncode == 1
    assert "RuntimeError: the user's own fault" in failed.stderr
    assert "in failing_factory" in failed.stderr
    assert "sources.py" not in failed.stderr


RUNS: list[int] = []


class Counting(nn.Linear):
    """Counts how often it is run; a factory makes one."""

    def __init__(self) -> None:
        super().__init__(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        RUNS.append(1)
        return super().forward(x)


@pytest.mark.parametrize(
    "more", [(), ("--against", "nanogpt"), ("--against", "torch", "--json"), ("--why", "0.weight")]
)
def test_whatever_is_asked_the_model_is_looked_at_once(plan: Plan, more: tuple[str, ...]) -> None:
    RUNS.clear()
    weightdecay.plan(nn.Sequential(Counting(), nn.LayerNorm(4)))
    once = len(RUNS)
    RUNS.clear()
    assert plan("python:tests.planning.test_plan_command:counting", *more).returncode == 0
    assert len(RUNS) == once > 0


def counting() -> nn.Module:
    return nn.Sequential(Counting(), nn.LayerNorm(4))


def test_against_a_lock_and_against_a_policy_file_are_told_apart(plan: Plan, tmp_path: Path) -> None:
    source, lock, policy = (
        "python:tests.planning.test_plan_command:counting",
        tmp_path / "plan.json",
        tmp_path / "o.toml",
    )
    assert plan(source, "--lock", lock).returncode == 0
    policy.write_text('[roles]\n"linear weight" = 0.5\n', encoding="utf-8")
    assert "does with every tensor what default does" in plan(source, "--against", lock).stdout
    assert "0.05" in plan(source, "--against", policy).stdout
