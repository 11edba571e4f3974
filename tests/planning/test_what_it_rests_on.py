"""What a plan rests on is said: under every table, by `--strict`, and in errors whose override can be pasted."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import weightdecay
from weightdecay import CheckFailedError, Override, PlanError, Role
from weightdecay.cli import main
from weightdecay.planning.evidence_summary import rests_on
from weightdecay.planning.patterns import regexes_of
from weightdecay.planning.policies.role_policies import Decision
from weightdecay.planning.render import table_text


class Mysteries(nn.Module):
    """Forty sisters that nothing tells about, and one more; no forward, so nothing is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Module() for _ in range(40))
        for block in self.blocks:
            block.x = nn.Parameter(torch.ones(2, 3))
        self.y = nn.Parameter(torch.ones(3, 3))
        self.z = nn.Parameter(torch.ones(96))
        self.linear = nn.Linear(4, 4)


class Gain(nn.Linear):
    """A linear layer by its class that multiplies features one by one."""

    def __init__(self, features: int) -> None:
        super().__init__(features, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(x, x.shape[-1:]) * self.weight[0]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = Gain(8)
        self.feed_forward_output_projection = nn.Linear(8, 8)
        self.qq = nn.Parameter(torch.ones(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.feed_forward_output_projection(self.gain(x))
        return out


class Deep(nn.Module):
    """A thousand tensors: traced ones, contested ones, and some that no forward uses."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder_blocks = nn.ModuleList(Block() for _ in range(250))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.decoder_blocks:
            x = block(x)
        return x


@pytest.fixture(scope="module")
def deep() -> weightdecay.DecayPlan:
    return weightdecay.plan(Deep(), batch=torch.randn(2, 3, 8), unknown="exempt")


def pasted(message: str) -> dict[str, float]:
    """The overrides that an error prints, read as Python reads them."""
    found = re.search(r"overrides=(\{.*?\}), for the command", message)
    assert found
    overrides: dict[str, float] = eval(found[1], {})
    return overrides


def test_unknown_roles_are_grouped_by_pattern_and_the_override_can_be_pasted() -> None:
    with pytest.raises(PlanError) as caught:
        weightdecay.plan(Mysteries())
    message = str(caught.value)
    assert "unknown role: y [3, 3], blocks.{0-39}.x [2, 3] ×40." in message
    assert len(message) < 600
    overrides = pasted(message)
    assert overrides == {r"^blocks\.\d+\.x$": 0.0, "^y$": 0.0}
    plan = weightdecay.plan(Mysteries(), overrides={**overrides, "^y$": 1.0})
    assert plan["y"].decays
    assert not plan["blocks.7.x"].decays


def test_the_command_takes_the_override_that_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    source = "python:tests.planning.test_what_it_rests_on:Mysteries"
    assert run("plan", source) == 2
    printed = capsys.readouterr().err.rpartition("for the command ")[2]
    assert run("plan", source, *shlex.split(printed)) == 0


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    return int(left.value.code or 0)


@given(names=st.lists(st.sampled_from(["a.0.w", "a.1.w", "a.2.w", "a.12.w"]), min_size=1, unique=True))
def test_the_regular_expression_of_some_names_finds_them_and_no_other(names: list[str]) -> None:
    known = {"a.0.w", "a.1.w", "a.2.w", "a.12.w", "a.0.ww", "b.a.1.w", "axx.1.w"}
    (regex,) = regexes_of([names], known)
    assert {name for name in known if re.search(regex, name)} == set(names)


@given(data=st.data())
def test_two_columns_of_indices_find_no_other_either(data: st.DataObject) -> None:
    known = {f"a.{i}.b.{j}.w" for i in range(3) for j in range(3)}
    names = sorted(data.draw(st.sets(st.sampled_from(sorted(known)), min_size=1)))
    (regex,) = regexes_of([names], known)
    assert {name for name in known if re.search(regex, name)} == set(names)


# --- strict


def test_verdicts_by_shape_alone_are_counted_and_can_be_made_an_error() -> None:
    plan = weightdecay.plan(Mysteries(), unknown="exempt")
    assert [tensor.name for tensor in plan.by_shape] == ["z"]
    assert rests_on(plan) == "evidence: 2 by type, 1 of 44 by shape alone, 41 unknown (--why NAME tells)"
    with pytest.raises(
        CheckFailedError, match=r"42 of 44 tensors rest on their shape alone.*blocks\.\{0-39\}\.x"
    ) as caught:
        plan.raise_if_weak()
    settled = weightdecay.plan(Mysteries(), overrides=pasted(str(caught.value)))
    assert settled.by_shape == ()
    settled.raise_if_weak()
    assert "42 said by override or author" in rests_on(settled)


def test_a_given_role_is_no_longer_by_shape_alone() -> None:
    overrides = [Override(r"\.x$|^y$", role=Role.EMBEDDING), Override("^z$", role=Role.BIAS)]
    weightdecay.plan(Mysteries(), overrides=overrides).raise_if_weak()


def test_what_is_frozen_rests_on_nothing_but_that() -> None:
    plan = weightdecay.plan(Mysteries().requires_grad_(False), unknown="exempt")
    assert plan.by_shape == ()
    plan.raise_if_weak()


def test_strict_ends_with_3_and_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    source = "python:tests.planning.test_what_it_rests_on:Mysteries"
    assert run("plan", source, "--unknown", "exempt", "--strict") == 3
    streams = capsys.readouterr()
    assert "by shape alone" in streams.out  # the table is shown all the same
    assert "--strict: 42 of 44 tensors rest on" in streams.err
    assert run("plan", source, "--unknown", "exempt", "--strict", "--json") == 3
    assert json.loads(capsys.readouterr().out)["exit_code"] == 3
    assert run("plan", "gpt2:124m", "--strict") == 0


def test_an_incomplete_plan_can_be_read_but_neither_locked_nor_checked(
    tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "plan.json"
    assert run("plan", "gpt2:124m", "--lock", str(lock)) == 0
    before = lock.read_bytes()
    cut = ("plan", "python:tests.planning.test_what_it_rests_on:Deep", "--unknown", "exempt", "--deadline", "1e-9")
    capsys.readouterr()
    assert run(*cut) == 0
    assert "incomplete: " in capsys.readouterr().out
    for more in (("--lock", str(lock)), ("--check", str(lock)), ("--strict",)):
        assert run(*cut, *more) == 3
        assert "incomplete" in capsys.readouterr().err
    assert lock.read_bytes() == before
    assert run(*cut, "--json") == 0
    assert json.loads(capsys.readouterr().out)["incomplete"]


@pytest.mark.parametrize("wrong", ["soon", "0", "-1", "nan"])
def test_a_deadline_that_is_none_is_refused(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", "gpt2:124m", f"--deadline={wrong}") == 2
    assert "--deadline" in capsys.readouterr().err


# --- the table


@pytest.mark.parametrize("width", [40, 60, 72, 80, 100, 120, 200])
def test_the_table_of_a_thousand_tensors_fits_and_says_what_to_look_at(width: int, deep: weightdecay.DecayPlan) -> None:
    text = table_text(deep, width)
    lines = text.splitlines()
    assert len(deep) == 1_000
    assert len(lines) < (30 if width >= 60 else 50)
    assert max(map(len, lines)) <= width
    words = " ".join(text.split())
    assert "(contested)" in words
    assert "(by shape alone)" in words
    assert "250 of 1,000 by shape alone" in words
    assert "250 contested" in words


@pytest.mark.parametrize(
    ("width", "missing"),
    [(40, ["n", "shape", "why"]), (60, ["shape", "why"]), (80, ["why"]), (100, ["why"]), (110, [])],
)
def test_a_narrow_table_drops_a_column_only_with_a_word(
    width: int, missing: list[str], deep: weightdecay.DecayPlan
) -> None:
    text = table_text(deep, width)
    heading = next(line for line in text.splitlines() if line.strip().startswith("tensor")).split()
    assert [column for column in ("tensor", "n", "shape", "role", "λ", "why") if column not in heading] == missing
    words = " ".join(text.split())
    assert all(f" {λ}" in text for λ in ("0.1", "0"))
    assert (f"{width} columns have no room for" in words) == bool(missing)
    assert all(f"'{column}'" in words for column in missing)


def test_rates_of_their_own_get_a_column_and_rows_of_their_own() -> None:
    model = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(3))
    model[2].weight._optim = {"lr": 1e-3}  # type: ignore[union-attr]
    text = str(weightdecay.plan(model, overrides=[Override("^1", lr_multiplier=2.0)]))
    cells = {line.split()[0]: line for line in text.splitlines() if ".weight" in line}
    assert list(cells) == ["0.weight", "1.weight", "2.weight"]
    assert " ×2 " in cells["1.weight"]
    assert " 0.001 " in cells["2.weight"]
    assert " lr " not in str(weightdecay.plan(nn.Linear(4, 4)))


def test_a_policy_of_ones_own_says_its_reason_in_words() -> None:
    class Halves:
        name = "halves"

        def decide(self, facts: Any, verdicts: Any) -> Any:
            return Decision(0.5, f"half of everything, {facts.name} of {len(verdicts)} role too")

    tensor = weightdecay.plan(nn.Linear(3, 3), 0.2, Halves())["weight"]
    assert (tensor.multiplier, tensor.weight_decay) == (0.5, 0.1)
    assert tensor.reason == "half of everything, weight of 1 role too"


@pytest.mark.parametrize("answer", [None, 0.5, True, Decision(-1.0), Decision(float("nan")), Decision("1")])  # type: ignore[arg-type]
def test_a_policy_that_gives_no_share_is_named_with_the_tensor(answer: Any) -> None:
    class Odd:
        name = "odd"

        def decide(self, *_: Any) -> Any:
            return answer

    with pytest.raises(PlanError, match=r"policy 'odd' decides .* about weight: give a weightdecay\.Decision"):
        weightdecay.plan(nn.Linear(3, 3), policy=Odd())


# --- factories


def pair() -> tuple[nn.Module, int]:
    return nn.Linear(2, 2), 3


def named() -> dict[str, nn.Module]:
    return {"net": nn.Linear(2, 2)}


def kind() -> type:
    return nn.Linear


def nothing() -> None: ...


ready = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        (pair, r"a tuple with a model at \[0\]: return that alone: .*must return a torch.nn.Module"),
        (named, r"a dict with a model at \['net'\]"),
        (kind, "made the class Linear, not an instance of it"),
        (nothing, "made a NoneType"),
    ],
)
def test_a_factory_that_returns_something_else_is_told_what(
    factory: Callable[[], Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("plan", f"python:tests.planning.test_what_it_rests_on:{factory.__name__}") == 2
    assert re.search(says, capsys.readouterr().err)


def test_a_model_that_stands_in_the_module_needs_no_factory() -> None:
    assert run("plan", "python:tests.planning.test_what_it_rests_on:ready") == 0


def test_what_no_gradient_reaches_rests_on_that_alone() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.table = nn.Parameter(torch.randn(3, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.linear(x) + self.table.detach()
            return out

    plan = weightdecay.plan(Detached(), batch=torch.randn(3, 4))
    tensor = plan["table"]
    assert tensor.role is Role.UNREACHED
    assert not tensor.decays
    assert "if trained, it would decay as" in tensor.reason or len(tensor.roles) == 1
    assert "tied" not in tensor.reason
    plan.raise_if_weak()
