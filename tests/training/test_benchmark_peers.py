"""Peers of the speed benchmark that are not there, or not as they were checked: said, and the others go on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.apart import contestants_in
from benchmarks.contestants import Contestant, Setting
from benchmarks.peers import NANOGPT_COMMIT, peers

HERE = Setting(torch.device("cpu"))


def _found(programs: tuple[str, ...], nanogpt: Path | None) -> tuple[list[Contestant], list[str]]:
    said: list[str] = []
    return [*peers(programs, nanogpt, HERE, said.append, compiled=False)], said


def test_a_peer_without_its_path_is_left_out_and_what_to_give_is_said() -> None:
    found, said = _found(("nanoGPT",), None)
    assert not found
    assert said == ["nanoGPT is left out: give --nanogpt PATH, a checkout of karpathy/nanoGPT"]


def test_a_path_without_the_peers_model_is_named(tmp_path: Path) -> None:
    found, said = _found(("nanoGPT",), tmp_path)
    assert not found
    assert str(tmp_path / "model.py") in said[0]


def test_a_peer_at_another_commit_is_said_and_measured(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("class GPT: ...\n", encoding="utf-8")
    found, said = _found(("nanoGPT",), tmp_path)
    assert [one.name for one in found] == ["nanoGPT, float32", "nanoGPT, bfloat16 autocast"]
    assert NANOGPT_COMMIT in said[0]


def test_a_peer_that_is_not_installed_is_told_how_it_is_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    found, said = _found(("litgpt", "transformers"), None)
    assert not found
    assert "pip install litgpt, or give --python litgpt=PYTHON" in said[0]


@pytest.mark.parametrize(
    ("python", "reason"),
    [("/nowhere/python", "does not start"), ("false", "ended with 1")],
    ids=["no such file", "no Python"],
)
def test_a_python_that_cannot_run_a_peer_is_named(python: str, reason: str) -> None:
    said: list[str] = []
    assert not [*contestants_in(python, ["litgpt"], None, HERE, said.append, compiled=False, keeps_memory=True)]
    assert said[0].startswith("litgpt is left out")
    assert reason in said[0]
