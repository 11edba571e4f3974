"""The wheel that a user installs, with the core dependencies alone."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.forking import ForkServer, forget

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

EXTRAS = ("transformers", "datasets", "pyarrow", "tiktoken", "jinja2")


class Missing:
    """Stands in for an environment that never had the extras."""

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] in EXTRAS:
            raise ModuleNotFoundError(name)


def without_extras(site: str) -> None:
    """From here on `weightdecay` is the wheel's."""
    forget("weightdecay", *EXTRAS)
    sys.meta_path.insert(0, Missing())
    sys.path.insert(0, site)
    import weightdecay

    assert str(weightdecay.__file__).startswith(site)


def run_program(site: str) -> None:
    without_extras(site)
    exec(PROGRAM, {})


def run_command(site: str, *arguments: str) -> None:
    without_extras(site)
    from weightdecay.cli import main

    main(list(arguments))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return str(folder)


def test_the_wheel_carries_the_recipes_and_the_type_marker(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"weightdecay/py.typed", "weightdecay/recipes/gpt2.toml", "weightdecay/recipes/gpt3.toml"} <= names
    assert not [name for name in names if name.startswith(("tests", "docs", "benchmarks"))]


def test_without_extras_it_plans_a_plain_module_and_trains_it_for_a_step(forks: ForkServer, site: str) -> None:
    process = forks.call(run_program, site)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert "decay plan: policy default, λ = 0.1" in said
    assert f"stepped {site}" in said


def test_without_extras_it_trains_the_first_example(forks: ForkServer, site: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The weights that decay are not the weights that were given. " * 2_000)
    text = ("--data", "text.txt", "--tokenizer", "bpe:300")
    process = forks.call(run_command, site, "train", "gpt3:nano", *text, "--steps", "2", directory=tmp_path)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert "held-out" in said


def test_what_needs_an_extra_says_which(forks: ForkServer, site: str, tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_bytes(b"PAR1")
    command = ("data", "prepare", "text.parquet", "--out", "shards")
    process = forks.call(run_command, site, *command, directory=tmp_path)
    said, _ = process.communicate()
    assert process.returncode == 2, said
    assert "pip install 'weightdecay[datasets]'" in said


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
