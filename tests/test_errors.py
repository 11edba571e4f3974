from __future__ import annotations

import pytest

from weightdecay.errors import ConfigError, DamagedError, did_you_mean, printable


def test_every_error_carries_its_faults() -> None:
    assert ConfigError(["a", "b"]).faults == ["a", "b"]
    assert str(ConfigError(["a", "b"])) == "a\nb"
    assert DamagedError("one").faults == ["one"]


def test_the_nearest_names_are_suggested_or_a_page_of_all() -> None:
    assert did_you_mean("gtp3", ["gpt3", "palm"]) == "did you mean 'gpt3'?"
    assert did_you_mean("zzz", ["b", "a"]) == "known are: a, b"
    keys = ["optimizer.lr", "run.steps", "schedule.warmup_steps"]
    assert did_you_mean("steps", keys) == "did you mean 'run.steps'?"
    assert did_you_mean("lrr", keys) == "did you mean 'optimizer.lr'?"
    assert did_you_mean("run.step", keys) == "did you mean 'run.steps'?"
    listed = did_you_mean("zzz", (f"name{n:03}" for n in range(90)))
    assert listed.startswith("known are: name000, name001, ")
    assert listed.endswith(", name039 and 50 more")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain λ 文\n\tindented", "plain λ 文\n\tindented"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("\x9b31m \x7f", "\\x9b31m \\x7f"),
        ("\u202eevil", "\\u202eevil"),
        ("bad\udcff", "bad\\udcff"),
        ("[/red]", "[/red]"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_instead(text: str, shown: str) -> None:
    assert printable(text) == shown
