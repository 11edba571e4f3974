"""`weightdecay forensics`: its document, its exit codes, and runs of our own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.auditing.test_forensics import _pair
from tests.commands import SMALL
from weightdecay.cli import main


def _run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(["forensics", *map(str, arguments)])
    said = capsys.readouterr()
    assert isinstance(left.value.code, int)
    return left.value.code, said.out, said.err


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    start, end = _pair()
    save_file(start, tmp_path / "start.safetensors")
    save_file(end, tmp_path / "end.safetensors")
    return tmp_path / "start.safetensors", tmp_path / "end.safetensors"


def test_json_is_one_document(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _run(capsys, files[1], "--against", files[0], "--weight-decay", "0.1", "--lr", "3e-4", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["schema_version"] == 1
    assert document["decay_sum"]["told"]
    assert document["decay_sum"]["value"] == pytest.approx(0.22314, rel=1e-4)
    assert document["asked"]["weight_decay"] == 0.1


def test_what_cannot_be_told_is_no_failure(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _run(capsys, files[1])
    assert code == 0
    assert "Σηλ: cannot be told" in out
    assert "--init-std" in out


def test_a_range_of_initialisations_can_be_given(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _run(capsys, files[1], "--init-std", "0.019..0.021")
    assert code == 0
    assert "0.019 to 0.021" in out


def test_faults_of_the_flags_are_told_together(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = _run(capsys, files[1], "--init-std", "wide", "--lr", "-1", "--json")
    assert code == 2
    assert len(json.loads(out)["faults"]) == 2
    assert "--init-std wide" in err
    assert "--lr -1" in err


def test_exit_codes_tell_wrong_input_from_damage(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(files[1].read_bytes()[:-100])
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "code.pt")
    (tmp_path / "empty").mkdir()
    for path, expected in ((cut, 4), (tmp_path / "code.pt", 2), (tmp_path / "empty", 2), (tmp_path / "absent", 2)):
        code, out, _ = _run(capsys, path, "--json")
        assert code == expected, path
        assert json.loads(out)["exit_code"] == expected


def test_a_run_of_ours_is_compared_with_what_it_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and ran far\n" * 200)
    with pytest.raises(SystemExit) as left:
        main(
            ["train", "gpt3:nano", "--data", str(text), "--steps", "30", "--out", str(tmp_path / "run"), *SMALL,
             "--lr", "3e-3", "--weight-decay", "4", "--set", "model.tied_head=false"]
        )  # fmt: skip
    assert left.value.code == 0
    code, out, _ = _run(capsys, tmp_path / "run", "--tokens", text, "--json")
    document = json.loads(out)
    assert code == 0
    told, wanted = document["decay_sum"], document["asked"]["decay_sum"]
    assert told["low"] <= wanted <= told["high"]
    assert document["lost"]["verdict"] == "not lost"
    assert document["embedding"]["idle_rows"]["basis"] == "ids that the given tokens do not hold"

    # Another weight is still a weight: what its manifest does not vouch for is not examined.
    newest = tmp_path / "run" / "checkpoints" / "step-00000030"
    weights = bytearray((newest / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (newest / "model.safetensors").write_bytes(weights)
    for given in (tmp_path / "run", newest):
        code, _, err = _run(capsys, given)
        assert code == 4
        assert "model.safetensors: its SHA-256 is not the manifest's" in err
