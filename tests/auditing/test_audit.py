"""The audit from outside: what it may be given, what it says, and what it leaves unsaid."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import schedulefree
import torch
from examples.museum.language_model import VOCABULARY, LanguageModel, two_groups
from torch import nn

import weightdecay
from tests.auditing.loops.parts import adamw, seeded, train
from tests.covering import covering
from weightdecay import Audit, CheckFailedError, ConfigError
from weightdecay.auditing.rendering import patterns, table_text
from weightdecay.schedules import Constant, Cosine, Piecewise, Warmup, WarmupStableDecay


def codes(audit: Audit) -> list[tuple[str, str]]:
    return [(finding.code, finding.severity) for finding in audit]


def wrong() -> tuple[Any, torch.optim.Optimizer]:
    """Everything in one group of Adam: coupled, and gains decay."""
    model = seeded()
    return model, torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=0.1)


# --- what was asked


def test_a_given_weight_decay_comes_before_the_plans_and_the_plans_before_the_groups() -> None:
    model = seeded()
    plan = weightdecay.plan(model, weight_decay=0.2)
    optimizer = torch.optim.AdamW(plan.param_groups(lr=1e-3))
    for group in optimizer.param_groups:
        group["weight_decay"] *= 0.5

    assert codes(weightdecay.audit(model, optimizer)) == []
    assert codes(weightdecay.audit(model, optimizer, plan=plan)) == [("stale", "error")]
    assert codes(weightdecay.audit(model, optimizer, plan=plan, weight_decay=0.1)) == []
    (finding,) = weightdecay.audit(model, optimizer, weight_decay=0.0)
    assert (finding.code, finding.asked) == ("stale", 0.0)


def test_a_given_policy_decides_who_is_exempt_even_beside_a_plan() -> None:
    model = seeded()
    plan = weightdecay.plan(model)
    optimizer = torch.optim.AdamW(plan.param_groups(lr=1e-3))
    assert weightdecay.audit(model, optimizer, plan=plan).ok
    assert codes(weightdecay.audit(model, optimizer, plan=plan, policy="no-embeddings")) == [("decays-exempt", "error")]


def test_the_default_policy_is_an_opinion_until_somebody_names_it() -> None:
    model = seeded()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    assert codes(weightdecay.audit(model, optimizer)) == [("decays-exempt", "warning")]
    assert codes(weightdecay.audit(model, optimizer, weight_decay=0.1)) == [("decays-exempt", "warning")]
    assert codes(weightdecay.audit(model, optimizer, policy="default")) == [("decays-exempt", "error")]
    assert codes(weightdecay.audit(model, optimizer, weight_decay=0.0)) == [("stale", "error")]


def test_where_nobody_asks_for_decay_one_note_says_so_and_none_where_that_is_meant() -> None:
    model = seeded()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    assert codes(weightdecay.audit(model, optimizer)) == [("by-design", "note")]
    assert codes(weightdecay.audit(model, optimizer, weight_decay=0.0)) == []


def test_each_optimizer_may_have_been_asked_for_its_own_numbers() -> None:
    model = seeded()
    optimizers: list[Any] = [
        torch.optim.Muon([p for p in model.blocks.parameters() if p.ndim == 2], lr=2e-2, weight_decay=0.1),
        torch.optim.AdamW(
            two_groups([p for p in model.parameters() if p.ndim < 2 or p.shape[0] == VOCABULARY], 0.01),
            lr=3e-4,
        ),
    ]  # fmt: skip
    assert codes(weightdecay.audit(model, optimizers, weight_decay=[0.1, 0.01], lr=[2e-2, 3e-4])) == []
    assert codes(weightdecay.audit(model, optimizers=dict(enumerate(optimizers)), weight_decay=(0.1, 0.01))) == []
    found = weightdecay.audit(model, optimizers, weight_decay=0.1, lr=2e-2).findings
    assert {finding.title for finding in found} == {
        "λ of 2 tensors is 0.01 and not 0.1",
        "lr of 9 tensors is 0.0003 and not 0.02",
    }


def test_a_schedule_says_which_lr_the_coming_step_should_use() -> None:
    model = seeded()
    optimizer = adamw(model)
    schedule = Warmup(2, then=Cosine(1e-3, 0.0, steps=8))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step) / 1e-3)
    train(model, optimizer, scheduler=scheduler, steps=6)

    audit = weightdecay.audit(model, optimizer, lr=schedule)
    assert codes(audit) == []
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    (finding,) = weightdecay.audit(model, optimizer, lr=schedule)
    assert finding.code == "stale"
    assert finding.title == f"lr of 13 tensors is 0.001 and not {schedule(6):g}"


@pytest.mark.parametrize(("schedule", "steps"), [
    (Cosine(1e-3, 0.0, steps=90), 90),
    (Warmup(10, then=Cosine(1e-3, 0.0, steps=90)), 100),
    (WarmupStableDecay(1e-3, 10, 70, 20), 100),
    (Piecewise(((0, Constant(1e-3)), (60, Cosine(1e-3, 0.0, steps=40)))), 100),
    (Constant(1e-3), None),
    (lambda _: 1e-3, None),
])  # fmt: skip
def test_a_schedule_knows_how_long_it_is(schedule: Any, steps: int | None) -> None:
    from weightdecay.auditing.asking import length_of

    assert length_of(schedule) == steps


def test_over_the_planned_run_amounts_are_summed() -> None:
    model = seeded()
    optimizer = torch.optim.RMSprop(two_groups(model.parameters(), 0.1), lr=1e-3)
    (finding,) = weightdecay.audit(model, optimizer, steps=10_000)
    assert "Σ a = 1 is asked, 63% of a weight" in finding.detail
    (finding,) = weightdecay.audit(model, optimizer, lr=Cosine(1e-3, 0.0, steps=10_000))
    assert "Σ a = 0.5 is asked, 39% of a weight" in finding.detail
    audit = weightdecay.audit(model, adamw(model), steps=100)
    assert audit.remarks == ("Σ lr·λ over the run is 0.01: this decay does next to nothing in it",)


def test_layer_wise_rates_that_groups_declare_are_shares_of_the_told_one() -> None:
    model = seeded()
    plan = weightdecay.plan(model, overrides=[weightdecay.Override("tokens", lr_multiplier=0.5)])
    optimizer = torch.optim.AdamW(plan.param_groups(lr=1e-3))
    assert codes(weightdecay.audit(model, optimizer, lr=1e-3)) == []
    (finding,) = weightdecay.audit(model, optimizer, lr=2e-3)
    assert finding.title == "lr of 13 tensors is 0.0005 to 0.001 and not 0.001 to 0.002"


def test_a_told_rule_is_what_amounts_are_judged_by() -> None:
    model = seeded()
    optimizer = weightdecay.AdamW(weightdecay.plan(model, weight_decay=1e-4), lr=1e-3, rule="fixed")
    assert codes(weightdecay.audit(model, optimizer)) == []
    assert codes(weightdecay.audit(model, optimizer, rule="fixed")) == []
    assert codes(weightdecay.audit(model, optimizer, rule="decoupled")) == [("wrong-scale", "error")]


def test_the_rule_of_anothers_optimizer_is_a_note_with_the_decay_that_torch_would_call_so() -> None:
    class Fixed(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.data.mul_(1 - group["weight_decay"]).sub_(group["lr"] * p.grad)

    model = seeded()
    (finding,) = weightdecay.audit(model, Fixed(two_groups(model.parameters(), 1e-4), lr=1e-3))
    assert (finding.code, finding.severity) == ("wrong-scale", "note")
    assert finding.title == "λ of 6 tensors means a decay per step of λ"
    assert finding.detail.endswith("λ 0.0001 at a peak lr of 0.001 is 0.1 in torch.optim.AdamW")


# --- what it may be given


def test_tensors_that_belong_to_no_module_are_called_by_their_place() -> None:
    loose = [nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8))]
    optimizer = torch.optim.Adam(loose, lr=1e-3, weight_decay=0.1)
    for model in (None, nn.Linear(2, 2).requires_grad_(False)):
        (finding,) = weightdecay.audit(model, optimizer)
        assert finding.code == "coupled"
        assert finding.tensors == ("param_groups[0]['params'][0]", "param_groups[0]['params'][1]")


def test_a_model_that_trains_nothing_in_this_optimizer_is_missing_whole() -> None:
    model = seeded()
    optimizer = adamw(copy.deepcopy(model))
    (finding,) = weightdecay.audit(model, optimizer)
    assert finding.code == "missing"
    assert finding.tensors == tuple(name for name, _ in model.named_parameters())
    assert "hold 13 tensors that are not the model's" in finding.detail


def test_an_optimizer_that_takes_no_hooks_is_probed_all_the_same() -> None:
    class Plain:
        def __init__(self, params: list[Any]) -> None:
            self.param_groups: list[dict[str, Any]] = [{"params": params, "lr": 1e-3, "weight_decay": 0.1}]

        def step(self) -> None:
            for p in self.param_groups[0]["params"]:
                p.data.mul_(1 - 1e-3 * 0.2)

    model = nn.Linear(8, 8, bias=False)
    (finding,) = weightdecay.audit(model, Plain([model.weight]), weight_decay=0.1)
    assert finding.realised == pytest.approx(2e-4, rel=1e-3)
    assert finding.severity == "error"


@pytest.mark.parametrize("gradient", ["none", "nan", "inf", "zero", "sparse"])
def test_gradients_of_any_kind_are_no_fault_of_the_decay(gradient: str) -> None:
    model = seeded()
    model.tokens.sparse = gradient == "sparse"
    rest = [p for p in model.parameters() if p is not model.tokens.weight or gradient != "sparse"]
    optimizers: list[Any] = [torch.optim.AdamW(two_groups(rest, 0.1), lr=1e-3)]
    if gradient == "sparse":
        optimizers.append(torch.optim.SparseAdam([model.tokens.weight], lr=1e-3))
    train(model, *optimizers)
    for p in rest:
        fill = {"nan": torch.nan, "inf": torch.inf, "zero": 0.0}.get(gradient)
        p.grad = None if gradient == "none" else p.grad if fill is None else torch.full_like(p, fill)
    policy: Any = "no-embeddings" if gradient == "sparse" else "default"
    assert weightdecay.audit(model, optimizers, policy=policy, weight_decay=0.1).ok


def test_a_model_on_the_meta_device_is_judged_by_a_small_copy_of_its_optimizer() -> None:
    with torch.device("meta"):
        model = LanguageModel()
    audit = weightdecay.audit(model, torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=0.1))
    assert set(codes(audit)) == {("coupled", "warning"), ("decays-exempt", "warning")}
    assert "seen on a small copy: its tensors are on the meta device" in audit.remarks[0]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adafactor, torch.optim.SGD, weightdecay.Lion])
def test_an_optimizer_without_steps_yet_has_nothing_wrong(kind: Any) -> None:
    model = seeded()
    optimizer = kind(two_groups(model.parameters(), 0.1), lr=1e-3)
    assert codes(weightdecay.audit(model, optimizer, weight_decay=0.1)) == []
    assert not optimizer.state


def test_a_model_that_cannot_be_planned_is_audited_by_its_groups() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4))
    optimizer = torch.optim.Adam(model[1].parameters(), lr=1e-3, weight_decay=0.1)
    audit = weightdecay.audit(model, optimizer)
    assert "who should decay is not judged" in audit.remarks[0]
    assert ("coupled", "warning") in codes(audit)


def test_unknown_roles_are_listed_and_blamed_for_nothing() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.thing = nn.Parameter(torch.randn(3, 3))

    model = Odd()
    for λ in (0.1, 0.0):
        audit = weightdecay.audit(model, torch.optim.AdamW([model.thing], weight_decay=λ), policy="default")
        assert audit.ok
        assert audit.unknown == ("thing",)
    assert "unknown role, and so not judged by it: thing" in str(audit)


def test_a_plan_of_another_model_is_refused_with_all_other_faults() -> None:
    model = seeded()
    other = weightdecay.plan(nn.Linear(3, 3))
    faults: dict[str, Any] = {
        "plan": other,
        "policy": "defalt",
        "weight_decay": -1.0,
        "lr": "3e-4",
        "rule": "decopled",
        "steps": 0,
        "ignore": {"copled": ".*"},
    }
    with pytest.raises(ConfigError) as raised:
        weightdecay.audit(model, adamw(model), **faults)
    for name in faults:
        assert any(fault.startswith(name) for fault in raised.value.faults), name
    assert "did you mean 'coupled'" in str(raised.value)
    assert "did you mean 'default'" in str(raised.value)
    assert "plan is not of this model" in str(raised.value)


@pytest.mark.parametrize(("given", "said"), [
    ({"model": "model"}, "model is a str"),
    ({"model": nn.Linear}, "model is the class Linear"),
    ({"optimizer": None}, "optimizer: none was given"),
    ({"optimizer": []}, "optimizer: none was given"),
    ({"optimizer": torch.optim.AdamW}, "optimizer is the class AdamW"),
    ({"optimizer": object()}, "`param_groups` and `step()`"),
    ({"optimizer": [1]}, "optimizer[0] is a int"),
    ({"plan": {}}, "plan is a dict"),
    ({"policy": 3}, "policy: policy is 3"),
    ({"policy": None}, "policy: policy is None"),
    ({"weight_decay": "0.1"}, "weight_decay is '0.1'"),
    ({"weight_decay": True}, "weight_decay is True"),
    ({"weight_decay": float("nan")}, "weight_decay is nan"),
    ({"weight_decay": [0.1, 0.2]}, "weight_decay has 2 values for 1 optimizers"),
    ({"weight_decay": lambda _: 0.1}, "weight_decay is <function"),
    ({"lr": -1e-3}, "lr is -0.001"),
    ({"lr": [1e-3, 1e-3]}, "lr has 2 values"),
    ({"rule": 7}, "rule: unknown rule '7'"),
    ({"steps": 1.5}, "steps is 1.5"),
    ({"steps": True}, "steps is True"),
    ({"ignore": 3}, "ignore is a int"),
    ({"ignore": {"coupled": 3}}, "ignore['coupled'] is 3"),
    ({"ignore": {"coupled": "("}}, "is no regular expression"),
    ({"ignore": {"coupled": "headd"}}, "'headd' is found in no tensor's name"),
    ({"ignore": "not there.json"}, "cannot be read as a baseline"),
])  # fmt: skip
def test_each_argument_of_a_wrong_kind_is_called_by_its_name(given: dict[str, Any], said: str) -> None:
    model = seeded()
    arguments: dict[str, Any] = {"model": model, "optimizer": adamw(model), **given}
    with pytest.raises(ConfigError) as raised:
        weightdecay.audit(**arguments)
    assert said in str(raised.value)


def test_an_optimizer_that_is_given_twice_is_one() -> None:
    model = seeded()
    optimizer = adamw(model)
    assert codes(weightdecay.audit(model, [optimizer, optimizer], optimizers=[optimizer])) == []


# --- what is not to be said


def test_what_a_team_lives_with_is_counted_and_not_said() -> None:
    model, optimizer = wrong()
    audit = weightdecay.audit(model, optimizer, ignore={"decays-exempt": r"norm\.weight$", "coupled": [".*"]})
    (finding,) = audit
    assert finding.code == "decays-exempt"
    assert all(name.endswith("bias") for name in finding.tensors)
    assert finding.elements == sum(model.get_parameter(name).numel() for name in finding.tensors)
    assert audit.ignored == {"coupled": 6, "decays-exempt": 3}
    assert "9 ignored" in audit.summary()
    assert "ignored: 6 × coupled" in str(audit)


def test_tensors_of_no_module_can_be_lived_with_by_their_place() -> None:
    optimizer = torch.optim.Adam([nn.Parameter(torch.randn(8, 8))], lr=1e-3, weight_decay=0.1)
    audit = weightdecay.audit(None, optimizer, ignore={"coupled": r"param_groups\[0\]"})
    assert audit.ignored == {"coupled": 1}
    assert audit.ok


def test_a_note_on_the_whole_loop_can_be_lived_with_too(tmp_path: Path) -> None:
    model = seeded()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    audit = weightdecay.audit(model, optimizer)
    assert audit.findings[0].tensors == ()
    (tmp_path / "baseline.json").write_text(audit.to_json(), encoding="utf-8")
    given: list[Any] = [{"by-design": ".*"}, tmp_path / "baseline.json"]
    for ignore in given:
        again = weightdecay.audit(model, optimizer, ignore=ignore)
        assert (again.findings, again.ignored) == ((), {"by-design": 1})


def test_an_earlier_audit_is_a_baseline_and_what_is_new_is_said(tmp_path: Path) -> None:
    model, optimizer = wrong()
    file = tmp_path / "baseline.json"
    file.write_text(weightdecay.audit(model, optimizer).to_json(), encoding="utf-8")
    for given in (file, str(file)):
        audit = weightdecay.audit(model, optimizer, ignore=given)
        assert audit.ok
        assert not audit.findings
        assert audit.ignored == {"coupled": 6, "decays-exempt": 7}

    model.extra = nn.Linear(4, 4)
    assert codes(weightdecay.audit(model, optimizer, ignore=file)) == [("missing", "error")]


@pytest.mark.parametrize("text", [
    "", "[]", "{}", '{"format": "weightdecay-audit", "schema_version": 99, "findings": []}',
    '{"format": "weightdecay-audit", "schema_version": 1}',
    '{"format": "weightdecay-audit", "schema_version": 1, "findings": [{"code": "new", "tensors": []}]}',
    '{"format": "weightdecay-audit", "schema_version": 1, "findings": [3]}',
])  # fmt: skip
def test_a_file_that_is_no_baseline_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    file.write_text(text, encoding="utf-8")
    model, optimizer = wrong()
    with pytest.raises(ConfigError, match=r"ignore: .*baseline\.json"):
        weightdecay.audit(model, optimizer, ignore=file)


# --- what it comes to


def test_only_errors_raise_unless_warnings_are_to() -> None:
    model, optimizer = wrong()
    audit = weightdecay.audit(model, optimizer)
    assert not audit.ok
    audit.raise_if_wrong()
    with pytest.raises(CheckFailedError) as raised:
        audit.raise_if_wrong(warnings=True)
    assert len(raised.value.faults) == len(audit) == 2
    with pytest.raises(CheckFailedError, match="decays-exempt: 7 tensors decay"):
        weightdecay.audit(model, optimizer, policy="default").raise_if_wrong()
    healthy = weightdecay.audit(model, adamw(model))
    healthy.raise_if_wrong(warnings=True)
    assert str(healthy).startswith("nothing decays otherwise than asked (13 tensors, 11,552 parameters")


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_a_table_fits_its_terminal_and_code_is_never_broken(width: int) -> None:
    model, optimizer = wrong()
    audit = weightdecay.audit(model, optimizer)
    lines = table_text(audit, width).splitlines()
    code = {f"       {line}".rstrip() for finding in audit for line in finding.fix.splitlines()}
    assert code <= set(lines)
    assert all(len(line) <= width for line in lines if line not in code)
    for finding in audit:
        assert finding.code in "".join(lines)


def test_the_document_is_strict_json_with_a_version() -> None:
    model, optimizer = wrong()
    optimizer.param_groups[0]["lr"] = 0.0
    document = json.loads(weightdecay.audit(model, optimizer).to_json())
    assert (document["format"], document["schema_version"], document["ok"]) == ("weightdecay-audit", 1, False)
    first = document["findings"][0]
    assert {"code", "severity", "tensors", "elements", "asked", "realised", "title", "fix", "why", "source"} <= set(
        first
    )
    assert isinstance(first["tensors"], list)


def test_markdown_has_a_row_and_the_code_of_each_finding() -> None:
    model, optimizer = wrong()
    audit = weightdecay.audit(model, optimizer)
    page = audit.to_markdown()
    for finding in audit:
        assert f"| {finding.severity} | `{finding.code}` | {finding.elements:,} |" in page
        assert f"```python\n{finding.fix}\n```" in page


def test_names_that_would_write_to_a_terminal_or_a_page_are_shown_as_text() -> None:
    model = nn.Sequential()
    model.add_module("\x1b[2J|<script>[red]`", nn.Linear(4, 4))
    audit = weightdecay.audit(model, torch.optim.Adam(model.parameters(), weight_decay=0.1))
    assert "\x1b" not in str(audit) + audit.to_markdown()
    assert "[red]" in table_text(audit, 200)
    assert "<script>" not in audit.to_markdown()


def test_names_are_shown_by_pattern() -> None:
    assert patterns([f"blocks.{i}.w" for i in range(12)]) == "blocks.{0-11}.w"
    assert patterns(["a", "b", "c", "d", "e"]) == "a, b, c, d … and 1 more"


def test_nothing_is_left_behind_by_an_audit() -> None:
    model, optimizer = wrong()
    train(model, optimizer)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    gradients = {p: (p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()}
    generator = torch.get_rng_state()
    groups = [dict(group) for group in optimizer.param_groups]

    weightdecay.audit(model, optimizer, steps=100, lr=Cosine(1e-3, 0.0, steps=100))

    for old, new in zip(before, (model.state_dict(), optimizer.state_dict()), strict=True):
        assert json.dumps(old, default=torch.Tensor.tolist) == json.dumps(new, default=torch.Tensor.tolist)
    for p, (grad, values) in gradients.items():
        assert p.grad is grad
        assert grad is None or (values is not None and torch.equal(grad, values))
    assert torch.equal(generator, torch.get_rng_state())
    assert [dict(group) for group in optimizer.param_groups] == groups


def test_a_tied_head_is_called_by_its_first_name_and_is_not_twice() -> None:
    model = seeded()
    model.head.weight = model.tokens.weight
    optimizer = torch.optim.Adam(two_groups(model.parameters(), 0.1), lr=1e-3)
    (finding,) = weightdecay.audit(model, optimizer)
    assert "tokens.weight" in finding.tensors
    assert "head.weight" not in finding.tensors


@pytest.mark.parametrize("lr", [1e-3, 3e-4, 1e-4, 1e-2])
def test_weights_of_few_bits_that_one_step_turns_over_together_are_no_error(lr: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(100, 64), nn.Linear(64, 256), nn.Linear(256, 100)).bfloat16()
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=lr, weight_decay=0.1)
    optimizer.train()
    ids, targets = torch.randint(100, (32,)), torch.randint(100, (32,))
    for _ in range(3):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(ids).float(), targets))
        optimizer.step()
    assert "decays-twice" not in {finding.code for finding in weightdecay.audit(model, optimizer).findings}


class DecaysOnceMore(torch.optim.Adam):
    """A wrapper that means to decouple, over a class that has decayed through the gradient already."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        decay(self)


@torch.no_grad()
def decay(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.mul_(1 - group["lr"] * group["weight_decay"])


@pytest.mark.parametrize(
    ("kind", "place"),
    covering(
        [torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam], ["before", "after", "wrapper"]
    ),
)
def test_a_decay_beside_one_through_the_gradient_is_one_too_many(kind: Any, place: str) -> None:
    model = seeded()
    kind = DecaysOnceMore if place == "wrapper" else kind
    optimizer = kind(two_groups(model.parameters(), 0.1), lr=1e-3)
    if place != "wrapper":
        hooking = optimizer.register_step_pre_hook if place == "before" else optimizer.register_step_post_hook
        hooking(decay)
    train(model, optimizer)

    audit = weightdecay.audit(model, optimizer)
    assert codes(audit) == [("decays-twice", "error")]
    assert len(audit.findings[0].tensors) == sum(p.ndim == 2 for p in model.parameters())
    names: dict[str, Any] = {"model": model, "optimizer": optimizer}
    exec(audit.findings[0].fix, names)
    assert weightdecay.audit(model, names["optimizer"]).ok


class RateByShape(torch.optim.Optimizer):
    """Muon's way: matrices with more rows than columns have a larger rate, for the update and for the decay."""

    def __init__(self, params: Any, lr: float = 0.02, weight_decay: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # noqa: ARG002  # torch hands it in
        for group in self.param_groups:
            for p in group["params"]:
                lr = group["lr"] * max(1.0, p.shape[0] / p.shape[1]) ** 0.5
                p.mul_(1 - lr * group["weight_decay"]).sub_(p.grad / p.grad.norm(), alpha=lr)


@pytest.mark.parametrize("twice", [False, True])
def test_a_rate_that_goes_with_the_shape_is_no_decay_twice(twice: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(*shape, bias=False) for shape in ((32, 32), (32, 128), (128, 32))))
    optimizer = RateByShape([{"params": [layer.weight]} for layer in model])
    if twice:
        optimizer.register_step_post_hook(decay)
    train(model, optimizer, loss=lambda model: model(torch.randn(8, 32)).square().mean())
    assert codes(weightdecay.audit(model, optimizer)) == ([("decays-twice", "error")] if twice else [])


class Sharpness(torch.optim.Optimizer):
    """SAM's way: up, and then down from where it was; it takes a closure, and says so only when it has none."""

    def __init__(self, params: Any, lr: float = 1e-3, weight_decay: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.base = torch.optim.AdamW(self.param_groups, lr=lr, weight_decay=weight_decay)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        assert closure is not None, "it goes up before it goes down"
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["before"] = p.data.clone()
                p.add_(p.grad, alpha=0.05)
        self.zero_grad()
        self.look(torch.enable_grad()(closure)())
        for group in self.param_groups:
            for p in group["params"]:
                p.data = self.state[p]["before"]
        self.base.step()

    def look(self, loss: torch.Tensor) -> None:
        """At the loss where it went up to."""


class SharpnessOfLoss(Sharpness):
    """The same, of a loss that it takes the gradient of itself."""

    def look(self, loss: torch.Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]


def test_a_step_that_asks_for_its_gradients_twice_is_seen() -> None:
    model = seeded()
    optimizer = Sharpness(two_groups(model.parameters(), 0.1))
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    assert codes(weightdecay.audit(model, optimizer)) == []


def test_of_a_step_that_cannot_be_made_no_missing_decay_is_said() -> None:
    model = seeded()
    optimizer = SharpnessOfLoss(two_groups(model.parameters(), 0.1))
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    audit = weightdecay.audit(model, optimizer)
    assert codes(audit) == [("opaque", "warning")]
    assert "it goes up before it goes down" in audit.findings[0].detail
