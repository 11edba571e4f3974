"""Locks: what is written comes back, what older versions wrote is read, and what cannot be compared is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import weightdecay
from tests.planning.test_plan import TiedDecoder
from weightdecay.declared.fields import choices, leaves
from weightdecay.errors import CheckFailedError, DamagedError
from weightdecay.planning.comparison import diff
from weightdecay.planning.decay_plan import DecayPlan
from weightdecay.planning.evidence_summary import rests_on
from weightdecay.planning.lock_format import LockLine, lock_text
from weightdecay.planning.lockfile import check_lock, read_lock, write_lock
from weightdecay.planning.planned import Plan, PlannedTensor, PlanSummary, summary
from weightdecay.planning.ranks import check_ranks
from weightdecay.planning.render import comparison_document, table_text
from weightdecay.planning.roles.roles import NormPlace, Role, Strength
from weightdecay.runs import Run
from weightdecay.training.verification import verify

# written by the first version of the format, before strengths, places and rulings stood in it
OLD = Path(__file__).parent / "locks"


def test_a_lock_of_the_first_version_is_read_and_still_agrees_with_the_model() -> None:
    locked = read_lock(OLD / "first.lock.json")
    model = TiedDecoder()
    model.mix.bias._no_weight_decay = True  # type: ignore[attr-defined]
    now = weightdecay.plan(model, overrides=[weightdecay.Override("mix.weight", 0.5, lr_multiplier=2.0)])
    assert not locked.diff(now)
    assert not now.diff(locked)
    assert locked["mix.weight"].reason == "override 'mix.weight': slower"
    assert locked["norm.weight"].reason.startswith("norm gain: `weight` of RootMeanSquare")
    assert locked["norm.weight"].strength is None
    assert "4 not said by this lock" in rests_on(locked)
    assert locked.by_shape == ()
    locked.raise_if_weak()
    groups = locked.on(model).param_groups(lr=1e-3)
    assert [group["lr_multiplier"] for group in groups] == [1.0, 1.0, 2.0]


def test_an_older_run_is_planned_checked_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from weightdecay.cli import main

    folder = tmp_path / "run"
    shutil.copytree(OLD / "run", folder)
    with pytest.raises(SystemExit) as left:
        main(["plan", str(folder), "--check", str(folder / "plan.json")])
    assert left.value.code == 0, capsys.readouterr().err
    changed = verify(Run.open(folder), {"optimizer.weight_decay": 0.2}).tensors
    assert len(changed) == sum(tensor.decays for tensor in DecayPlan.read(folder / "plan.json"))
    assert all(change.endswith(": λ 0.1 → 0.2") for change in changed)


_NAMES = st.lists(st.text("abc.01", min_size=1, max_size=6), min_size=1, max_size=4, unique=True)
_RATES = st.floats(0.0, 10.0, allow_subnormal=False)


@st.composite
def plans(draw: st.DrawFn) -> DecayPlan:
    λ = draw(_RATES)
    tensors = [
        PlannedTensor(
            name=name,
            aliases=(),
            shape=tuple(draw(st.lists(st.integers(0, 9), max_size=3))),
            roles=tuple(draw(st.lists(st.sampled_from(Role), min_size=1, max_size=2, unique=True))),
            evidence=draw(st.text(max_size=9)),
            multiplier=(multiplier := draw(_RATES)),
            why=draw(st.text(max_size=9)),
            weight_decay=draw(st.one_of(st.just(λ * multiplier), _RATES)),
            ruling=draw(st.one_of(st.none(), st.sampled_from(Role))),
            lr_multiplier=draw(_RATES),
            contested=draw(st.booleans()),
            lr=draw(st.one_of(st.none(), _RATES)),
            strength=draw(st.one_of(st.none(), st.sampled_from(Strength))),
            norm=draw(st.one_of(st.none(), st.sampled_from(NormPlace))),
            given=draw(st.booleans()),
        )
        for name in draw(_NAMES)
    ]
    return DecayPlan(tensors, policy=draw(st.text(max_size=9)), weight_decay=λ)


@given(plan=plans())
def test_any_plan_comes_back_from_its_lock_as_it_was(plan: DecayPlan, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("locks") / "plan.json"
    write_lock(plan, path)
    locked = read_lock(path)
    assert list(locked) == list(plan)
    assert (locked.policy, locked.weight_decay) == (plan.policy, plan.weight_decay)
    assert not locked.diff(plan)
    json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)  # strict JSON


def test_an_incomplete_plan_says_so_and_makes_no_lock(tmp_path: Path) -> None:
    whole = weightdecay.plan(TiedDecoder())
    cut = DecayPlan(list(whole), policy="default", weight_decay=0.1, incomplete="60 s had passed")
    path = tmp_path / "plan.json"
    with pytest.raises(CheckFailedError, match="60 s had passed"):
        write_lock(cut, path)
    assert not path.exists()
    assert "incomplete: 60 s had passed" in str(cut)
    with pytest.raises(CheckFailedError, match="incomplete: 60 s had passed"):
        cut.raise_if_weak()

    write_lock(whole, path)
    check_lock(whole, path)
    with pytest.raises(CheckFailedError, match=r"this plan is incomplete.*60 s"):
        check_lock(cut, path)
    path.write_text(cut.to_json(), encoding="utf-8")  # as `--json` prints it
    assert DecayPlan.read(path).incomplete == "60 s had passed"
    with pytest.raises(CheckFailedError, match="is incomplete"):
        check_lock(whole, path)


def test_what_the_clock_cut_is_incomplete_under_every_policy() -> None:
    cut = weightdecay.plan(TiedDecoder(), deadline=1e-9)
    assert "deadline" in cut.incomplete
    assert cut.under("torch").incomplete == cut.incomplete
    assert not weightdecay.plan(TiedDecoder()).incomplete


def test_a_plan_that_is_carried_to_another_model_stays_incomplete() -> None:
    cut = DecayPlan(list(weightdecay.plan(TiedDecoder())), policy="default", weight_decay=0.1, incomplete="cut")
    assert cut.on(TiedDecoder()).incomplete == "cut"


def test_another_policy_is_asked_without_looking_again() -> None:
    runs = []

    class Counted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            runs.append(1)
            return super().forward(x)

    model = nn.Sequential(Counted(4, 4), nn.LayerNorm(4))
    plan = weightdecay.plan(model, 0.3, overrides={"0.bias": 0.5})
    looked = len(runs)
    assert looked > 0
    for policy in ("nanogpt", "torch", "no-embeddings", "transformers"):
        other = plan.under(policy)
        assert list(other) == list(weightdecay.plan(model, 0.3, policy, overrides={"0.bias": 0.5}))
        assert other.param_groups(lr=1.0)[0]["params"][0] is model[0].weight
    assert len(runs) == 5 * looked


class Listed:
    """The least that is a plan to those who read one."""

    policy, weight_decay, incomplete = "listed", 0.1, ""

    def __init__(self, tensors: Iterable[PlannedTensor]) -> None:
        self.tensors = {tensor.name: tensor for tensor in tensors}

    def __len__(self) -> int:
        return len(self.tensors)

    def __iter__(self) -> Iterator[PlannedTensor]:
        return iter(self.tensors.values())

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> PlannedTensor:
        return self.tensors[name]

    def get(self, name: str) -> PlannedTensor | None:
        return self.tensors.get(name)

    def summary(self) -> PlanSummary:
        return summary(self)


def test_who_reads_plans_needs_no_more_than_the_protocol(tmp_path: Path) -> None:
    plan = weightdecay.plan(TiedDecoder())
    listed: Plan = Listed(plan)
    assert lock_text(listed).replace('"listed"', '"default"') == plan.to_json()
    assert table_text(listed).replace("listed", "default") == str(plan)
    assert not diff(plan, listed)
    assert comparison_document(listed, plan.under("torch"))["differences"]
    check_ranks(listed)
    write_lock(listed, tmp_path / "plan.json")
    assert list(read_lock(tmp_path / "plan.json")) == list(plan)


def test_a_lock_holds_no_evidence_for_another_policy(tmp_path: Path) -> None:
    write_lock(weightdecay.plan(TiedDecoder()), tmp_path / "plan.json")
    with pytest.raises(weightdecay.PlanError, match="holds no evidence"):
        read_lock(tmp_path / "plan.json").under("torch")


def test_what_is_damaged_in_a_lock_is_told_together_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_lock(weightdecay.plan(TiedDecoder()), path)
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["policy"], content["tensors"][0]["shape"]
    content["tensors"][1] |= {"roles": ["embeding"], "multiplier": "half", "of a newer version": 1}
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DamagedError) as caught:
        read_lock(path)
    for words in (
        "policy is missing",
        "tensors[0].shape is missing",
        "tensors[1].roles[0] = 'embeding': did you mean 'embedding'",
        "tensors[1].multiplier = 'half': must be a number",
    ):
        assert words in str(caught.value)
    assert "of a newer version" not in str(caught.value)


def test_every_strength_can_stand_in_a_lock() -> None:
    assert choices(leaves(LockLine)["strength"].hint) == [strength.name.lower() for strength in Strength]
