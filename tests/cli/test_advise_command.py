from __future__ import annotations

import json
from typing import Any

import pytest

from weightdecay.cli.advise import Advise
from weightdecay.errors import ConfigError

GIVEN: dict[str, Any] = {"params": "10M", "tokens": "200M", "batch_tokens": "65536", "lr": "1e-3"}


def test_advice_is_printed_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert Advise(**GIVEN).run() == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "nearest published systems used it" in told
    assert "the law does not hold here" in told
    assert "a run of 10M parameters" in told


def test_advice_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert Advise(**GIVEN, parametrization="mup", schedule="linear-to-zero", json=True).run() == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1
    assert document["law"]["applies"] is True
    assert document["law"]["weight_decay"] == pytest.approx(1.466, abs=6e-4)
    assert document["planned"]["steps"] == 3052
    assert document["planned"]["tokens"] == 200e6


def test_all_faults_are_told_in_the_flags_own_names() -> None:
    with pytest.raises(ConfigError) as caught:
        Advise(params="lots", batch_tokens="0", lr="1e-3", optimizer="adan").run()
    assert caught.value.faults == [
        "--params 'lots': must be a number above 0",
        "--tokens is missing: give a number over 0",
        "--batch-tokens '0': must be a number above 0",
        "--optimizer 'adan': did you mean 'adamw'?",
    ]
    assert caught.value.exit_code == 2
