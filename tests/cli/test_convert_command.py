from __future__ import annotations

import json

import pytest

from tests.commands import Command


def test_the_same_decay_in_another_convention(weightdecay: Command) -> None:
    done = weightdecay("convert", "0.1", "--from", "torch", "--to", "composer", "--lr", "6e-4", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["weight_decay"] == pytest.approx(6e-5)
    assert document["exact"]
    assert document["schema_version"] == 1


def test_where_none_is_exact_the_closest_comes_with_its_error(weightdecay: Command) -> None:
    done = weightdecay(
        "convert", "0.1", "--from", "torch", "--to", "palm", "--lr", "1e-2", "--steps", "1000",
        "--schedule", "cosine", "--warmup-steps", "100",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "rule 'lr_squared'" in done.stdout
    assert "no single λ maps" in done.stdout
    assert done.stdout.count("of a weight left after 1000 steps") == 2


def test_every_fault_is_told_at_once(weightdecay: Command) -> None:
    done = weightdecay("convert", "much", "--schedule", "cosine", "--warmup-steps", "few")
    assert done.returncode == 2
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 4
    done = weightdecay("convert", "much", "--from", "troch", "--to", "compsoer", "--lr", "low", "--schedule", "cosin")
    assert done.returncode == 2
    assert "X much: must be a number" in done.stderr
    assert "did you mean 'cosine'" in done.stderr
    assert "did you mean 'torch'" in done.stderr
    assert "did you mean 'composer'" in done.stderr
