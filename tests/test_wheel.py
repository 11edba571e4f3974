"""The wheel that a user installs, with the core dependencies alone."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PROGRAM = """
import torch
import weightdecay

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 1))
plan = weightdecay.plan(model, weight_decay=0.1)
print(plan)
optimizer = torch.optim.AdamW(plan.param_groups(lr=0.5))
before = {name: p.detach().clone() for name, p in model.named_parameters()}
for p in model.parameters():
    p.grad = torch.zeros_like(p)
optimizer.step()
for name, p in model.named_parameters():
    assert torch.equal(p, before[name] * (1 - 0.5 * plan[name].weight_decay)), name
model(torch.ones(2, 4)).sum().backward()
optimizer.step()
print("stepped", weightdecay.__file__)
"""

# Stands in for an environment that never had the extras.
WITHOUT_EXTRAS = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"transformers", "datasets", "pyarrow", "tiktoken", "jinja2"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_the_wheel_carries_the_recipes_and_the_type_marker(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"weightdecay/py.typed", "weightdecay/recipes/gpt2.toml", "weightdecay/recipes/gpt3.toml"} <= names
    assert not [name for name in names if name.startswith(("tests", "docs", "benchmarks"))]


def test_without_extras_it_plans_a_plain_module_and_trains_it_for_a_step(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS + PROGRAM], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "decay plan: policy default, λ = 0.1" in done.stdout
    assert f"stepped {site}" in done.stdout


def test_without_extras_it_trains_the_first_example(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The weights that decay are not the weights that were given. " * 2_000)
    text = ("--data", "text.txt", "--tokenizer", "bpe:300")
    done = _command(wheel, tmp_path, "train", "gpt3:nano", *text, "--steps", "2")
    assert done.returncode == 0, done.stderr
    assert "held-out" in done.stdout + done.stderr


def test_what_needs_an_extra_says_which(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_bytes(b"PAR1")
    done = _command(wheel, tmp_path, "data", "prepare", "text.parquet", "--out", "shards")
    assert done.returncode == 2, done.stderr
    assert "pip install 'weightdecay[datasets]'" in done.stderr


def _command(wheel: Path, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    program = WITHOUT_EXTRAS + f"from weightdecay.cli import main\nsys.exit(main({list(arguments)!r}))"
    return subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True,
        check=False, cwd=tmp_path,
    )  # fmt: skip


@pytest.mark.long
def test_in_a_fresh_environment_with_the_core_alone(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin/python"
    constraints = ROOT / "constraints.txt"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--constraint", constraints, wheel], check=True)
    done = subprocess.run([python, "-c", PROGRAM], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "decay plan" in done.stdout
    assert f"stepped {environment}" in done.stdout
    command = str(environment / "bin/weightdecay")
    subprocess.run([command, "train", "gpt3:nano", "--steps", "20"], check=True, cwd=tmp_path)
    printed = subprocess.run([command, "plan", "gpt2:124m"], check=True, capture_output=True, text=True).stdout
    assert "embedding.weight" in printed
