"""The GitHub Action's own shell steps, on the example repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
yaml: Any = pytest.importorskip("yaml")
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}
EXAMPLE = ROOT / "examples" / "in_ci"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="its steps are bash's")


class Runner:
    """What a runner of GitHub's gives to an action: a checkout of the repository, and files to write to."""

    def __init__(self, folder: Path) -> None:
        self.repository = Path(shutil.copytree(EXAMPLE, folder / "repository"))
        self.summary, self.output = folder / "summary.md", folder / "output"
        self.python = sys.executable

    def step(self, name: str, **inputs: str) -> subprocess.CompletedProcess[str]:
        step = STEPS[name]
        given = {key: value.get("default", "") for key, value in ACTION["inputs"].items()}
        given |= {"python": self.python, **{key.replace("_", "-"): value for key, value in inputs.items()}}
        variables = {
            key: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: given[found[1]], value)
            for key, value in step["env"].items()
        }
        runner = {
            "GITHUB_STEP_SUMMARY": str(self.summary), "GITHUB_OUTPUT": str(self.output),
            "GITHUB_ACTION_PATH": str(ROOT), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]], cwd=self.repository, text=True,
            env={**os.environ, **runner, **variables}, capture_output=True, timeout=300, check=False,
        )  # fmt: skip


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


@pytest.mark.long
def test_three_steps_are_watched_and_the_table_stands_in_the_summary(runner: Runner) -> None:
    done = runner.step("Watch", script="train.py --steps 20", fail_on="warning")
    assert done.returncode == 3, done.stderr
    assert "step 1: loss" in done.stdout  # the third step is the last thing that the script does
    assert "step 3: loss" not in done.stdout
    summary = runner.summary.read_text("utf-8")
    assert "What decays in `train.py --steps 20`" in summary
    assert "| warning | `decays-exempt` |" in summary
    assert runner.output.read_text("utf-8") == "audit=weightdecay-audit.json\nok=false\n"


@pytest.mark.long
def test_a_baseline_lets_pass_what_it_holds(runner: Runner) -> None:
    assert runner.step("Watch", script="train.py", out="audits/watched.json", fail_on="never").returncode == 0
    found = json.loads((runner.repository / "audits" / "watched.json").read_text("utf-8"))
    assert [finding["code"] for finding in found["findings"]] == ["decays-exempt"]
    runner.output.unlink()
    done = runner.step("Watch", script="train.py", ignore="audits/watched.json", fail_on="warning")
    assert done.returncode == 0, done.stderr
    assert "ok=true" in runner.output.read_text("utf-8")


def asked_by_the_example() -> dict[str, str]:
    """What the workflow of the example repository gives to the action."""
    workflow = yaml.safe_load((EXAMPLE / ".github" / "workflows" / "decay.yml").read_text("utf-8"))
    (step,) = (step for step in workflow["jobs"]["decay"]["steps"] if "weightdecay@" in step.get("uses", ""))
    assert set(step["with"]) <= set(ACTION["inputs"])
    return {key.replace("-", "_"): str(value) for key, value in step["with"].items()}


@pytest.mark.long
def test_the_examples_workflow_passes_with_the_baseline_that_lies_there_and_fails_without(runner: Runner) -> None:
    asked = asked_by_the_example()
    done = runner.step("Watch", **asked)
    assert done.returncode == 0, done.stderr
    assert runner.output.read_text("utf-8") == "audit=weightdecay-audit.json\nok=true\n"
    found = json.loads((runner.repository / "weightdecay-audit.json").read_text("utf-8"))
    assert found["ignored"] == {"decays-exempt": 2}
    (runner.repository / asked["ignore"]).unlink()
    assert runner.step("Watch", **asked).returncode == 3
    assert "| warning | `decays-exempt` |" in runner.summary.read_text("utf-8")


@pytest.mark.long
def test_a_script_that_crashes_fails_the_step_with_its_own_code_and_still_has_a_summary(runner: Runner) -> None:
    (runner.repository / "crash it.py").write_text("raise SystemExit(7)\n", encoding="utf-8")
    done = runner.step("Watch", script="'crash it.py' --flag '$(touch no-such)'")
    assert done.returncode == 7, done.stderr
    assert not (runner.repository / "no-such").exists()
    assert runner.summary.read_text("utf-8").startswith("### What decays in")


@pytest.mark.long
def test_the_installing_step_installs_this_repository(runner: Runner, tmp_path: Path) -> None:
    """Into an environment that has the rest already, so that nothing is fetched."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    others = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "others.pth").write_text(f"{others}\n", encoding="utf-8")
    runner.python = str(tmp_path / "venv" / "bin" / "python")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_DEPS", "1")
        patch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # which is how pip spells it
        done = runner.step("Install")
    assert done.returncode == 0, done.stderr
    assert (site / "weightdecay" / "integrations" / "pytest_plugin.py").is_file()


def test_every_input_is_read_and_none_is_written_into_shell() -> None:
    texts = [json.dumps({**step, "run": ""}) for step in STEPS.values()]
    for name in ACTION["inputs"]:
        assert any("inputs." + name in text for text in texts), name
    assert not any("${{" in step["run"] for step in STEPS.values())
