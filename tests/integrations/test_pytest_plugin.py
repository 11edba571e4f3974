"""The pytest plugin, in pytest sessions of its own on the example repository and on small tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.forking import ForkServer

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "in_ci"


def words(*arguments: str) -> list[str]:
    """What pytest is told, so that the plugin is there, installed or not."""
    plugin = (
        [] if entry_points(group="pytest11", name="weightdecay") else ["-p", "weightdecay.integrations.pytest_plugin"]
    )
    return ["-q", "-p", "no:cacheprovider", *plugin, *arguments]


def session(folder: Path, *arguments: str) -> tuple[int, str]:
    """A pytest session there."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words(*arguments)], cwd=folder, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def be_a_session(*arguments: str) -> None:
    sys.exit(pytest.main(words(*arguments)))


def written(folder: Path, body: str) -> Path:
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    head = """
        import pytest, torch
        from torch import nn

        def build(λ=0.1):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
            return model, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=λ)

        def train(model, optimizer, steps=2):
            for _ in range(steps):
                model(torch.ones(2, 4)).square().sum().backward()
                optimizer.step()
        """
    (folder / "test_it.py").write_text(textwrap.dedent(head) + textwrap.dedent(body), encoding="utf-8")
    return folder


@pytest.mark.long
def test_the_example_repository_passes_with_what_it_lives_with_and_fails_without(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(EXAMPLE, tmp_path / "example"))
    code, said = session(folder)
    assert code == 0, said
    assert "2 ignored" in said
    shutil.rmtree(folder / "audits")
    code, said = session(folder)
    assert code == 1
    assert "decays-exempt" in said
    assert "{1-2}.gain" in said
    code, said = session(folder, "--weightdecay-write-baselines")
    assert code == 0, said
    assert [path.name for path in (folder / "audits").iterdir()] == [
        path.name for path in (EXAMPLE / "audits").glob("tests-*")
    ]


def test_the_fixture_and_the_marker_fail_on_what_is_wrong_and_pass_what_is_right(
    forks: ForkServer, tmp_path: Path
) -> None:
    written(tmp_path, """
        def test_wrong(weightdecay_audit):
            weightdecay_audit(*build())

        def test_lived_with(weightdecay_audit):
            assert weightdecay_audit(*build(), fail_on="error").findings
            assert weightdecay_audit(*build(λ=0.0)).ok

        @pytest.mark.weightdecay_audit(fail_on="error", policy="default")
        def test_marked_and_wrong():
            train(*build())

        @pytest.mark.weightdecay_audit(at_step=2, policy="torch")
        def test_marked_and_right():
            train(*build())

        @pytest.mark.weightdecay_audit(policy="torch")
        def test_marked_and_wrapped():
            class Wrapper:
                def __init__(self, optimizer):
                    self.optimizer, self.param_groups = optimizer, optimizer.param_groups

                def step(self):
                    self.optimizer.step()

            class Averages:
                def __init__(self, params):
                    self.params = list(params)

                def zero_grad(self):
                    pass

                def step(self):
                    pass

            model, optimizer = build()
            averages = Averages(model.parameters())
            train(model, Wrapper(optimizer))

        @pytest.mark.weightdecay_audit(at_step=3)
        def test_marked_and_too_short():
            train(*build())

        @pytest.mark.weightdecay_audit(ignore={"decays-exempt": "bias|1.weight"})
        def test_the_marker_speaks_for_the_fixture(weightdecay_audit):
            weightdecay_audit(*build())
    """)  # fmt: skip
    process = forks.call(be_a_session, "-rA", directory=tmp_path)
    said, _ = process.communicate()
    assert process.returncode == 1, said
    outcomes = {
        line.split("::")[1].split(" ")[0]: line.split(" ")[0] for line in said.splitlines()
        if line.startswith(("PASSED", "FAILED")) and "::" in line
    }  # fmt: skip
    assert outcomes == {
        "test_wrong": "FAILED", "test_lived_with": "PASSED", "test_marked_and_wrong": "FAILED",
        "test_marked_and_right": "PASSED", "test_marked_and_wrapped": "PASSED", "test_marked_and_too_short": "FAILED",
        "test_the_marker_speaks_for_the_fixture": "PASSED",
    }  # fmt: skip
    assert "nothing was audited: no optimizer of torch's made step 3 in this test" in said
    assert "3 ignored" in said


def test_a_session_that_audits_nothing_imports_no_torch_and_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it():\n    import sys\n    assert 'torch' not in sys.modules\n")
    code, said = session(tmp_path, "-c", os.devnull, "--rootdir", str(tmp_path))
    assert code == 0, said
    assert "weightdecay" not in said


@pytest.mark.long
def test_a_baseline_that_is_needed_no_more_is_named(tmp_path: Path) -> None:
    written(tmp_path, """
        def test_it(weightdecay_audit):
            weightdecay_audit(*build())
    """)  # fmt: skip
    (tmp_path / "pytest.ini").write_text("[pytest]\nweightdecay_baselines = kept\n", encoding="utf-8")
    assert session(tmp_path, "--weightdecay-write-baselines")[0] == 0
    test = tmp_path / "test_it.py"
    test.write_text(test.read_text("utf-8").replace("build())", "build(λ=0.0))"), encoding="utf-8")
    code, said = session(tmp_path)
    assert code == 0
    assert "test_it.py--test_it.json is needed no more" in said


@pytest.mark.long
def test_settings_that_are_none_are_told(tmp_path: Path) -> None:
    written(tmp_path, "")
    code, said = session(tmp_path, "-o", "weightdecay_fail_on=note")
    assert (code, "it is error or warning" in said) == (4, True)
    code, said = session(tmp_path, "--weightdecay-write-baselines")
    assert (code, "set weightdecay_baselines" in said) == (4, True)
