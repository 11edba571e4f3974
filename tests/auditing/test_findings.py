"""What is said of values that a probe may have seen: each code, and nothing where nothing is to be said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightdecay.auditing.asking import Asked
from weightdecay.auditing.findings import CODES, Finding, ranked
from weightdecay.auditing.judging import Judgement, Seat, judged, orders
from weightdecay.auditing.losing import Seen, is_lost, is_undecided, share_left
from weightdecay.auditing.probed import ProbedGroup, ProbedOptimizer, ProbedTensor
from weightdecay.auditing.reasons import formula
from weightdecay.auditing.scales import Scale, per_step, scales
from weightdecay.planning.roles.roles import Role
from weightdecay.rules import CORRECTED, DECOUPLED, FIXED, INDEPENDENT, L2, LR_SQUARED, RULES

A = 1e-4  # lr 1e-3 · λ 0.1


def group(**values: Any) -> ProbedGroup:
    known = {"lr": 1e-3, "weight_decay": 0.1, "factor": 1.0, "lr_power": 1.0}
    return ProbedGroup(optimizer=0, group=0, title="group 0", **{**known, **values})


def tensor(**values: Any) -> ProbedTensor:
    known = {"requested": A, "from_weight_decay": A, "uncertainty": 1e-9}
    return ProbedTensor("w", 0, 0, (8, 8), "float32", 64, **{**known, **values})


def seat(*, of: ProbedGroup | None = None, kind: tuple[str, ...] = ("AdamW",), **values: Any) -> Seat:
    """A matrix in AdamW, as it should be."""
    seats: dict[str, Any] = {
        "name": "w",
        "tensor": tensor(),
        "group": of or group(),
        "optimizer": ProbedOptimizer(kind[0], kind, "step"),
        "settings": {},
        "scale": Scale(DECOUPLED, told=False, peak=1e-3, off=1.0),
        "asked": Asked(decays=True, role=Role.LINEAR),
        "any_decay": True,
        "policy_is_given": False,
        "rule": None,
        "weights": torch.ones(8, 8),
    }
    return Seat(**{**seats, **values})


def codes(one: Seat) -> list[tuple[str, str]]:
    return [(found.code, found.severity) for found in judged(one)]


def test_what_is_done_as_it_was_asked_is_not_spoken_of() -> None:
    assert codes(seat()) == []


# --- amounts


@given(share=st.floats(0.53, 1.44), a=st.floats(1e-6, 1e-2))
def test_between_half_and_one_and_a_half_of_what_was_asked_no_amount_is_blamed(share: float, a: float) -> None:
    one = seat(of=group(weight_decay=a / 1e-3), tensor=tensor(requested=a, from_weight_decay=share * a))
    assert codes(one) == []


@given(share=st.floats(-3.0, 0.45), a=st.floats(1e-6, 1e-2))
def test_less_than_half_is_not_decaying(share: float, a: float) -> None:
    one = seat(of=group(weight_decay=a / 1e-3), tensor=tensor(requested=a, from_weight_decay=share * a))
    assert codes(one) == [("not-decaying", "error")]


@given(own=st.floats(0.0, 2.0), elsewhere=st.floats(0.0, 2.0))
def test_one_and_a_half_times_is_twice_whoever_does_it(own: float, elsewhere: float) -> None:
    one = seat(tensor=tensor(from_weight_decay=own * A, from_elsewhere=elsewhere * A))
    if own + elsewhere > 1.55:
        assert codes(one) == [("decays-twice", "error")]
    elif 0.55 < own + elsewhere < 1.45:
        assert codes(one) == []


@pytest.mark.parametrize(("a", "realised"), [(3.1e-8, 8.6e-8), (3.1e-8, 0.0), (2.9e-8, 0.0), (1e-8, 0.0)])
def test_one_step_near_the_floor_of_float32_tells_nothing(a: float, realised: float) -> None:
    one = seat(of=group(weight_decay=a / 1e-3), tensor=tensor(requested=a, from_weight_decay=realised, uncertainty=0.0))
    assert codes(one) == []


def test_what_is_within_four_standard_errors_is_chance() -> None:
    noisy = tensor(from_weight_decay=0.2 * A, uncertainty=0.25 * A)
    assert codes(seat(tensor=noisy)) == []
    assert codes(seat(tensor=replace(noisy, uncertainty=0.1 * A))) == [("not-decaying", "error")]


@pytest.mark.parametrize("of", [group(weight_decay=0.0), group(lr=0.0)])
def test_where_nothing_is_asked_nothing_is_judged(of: ProbedGroup) -> None:
    nothing = tensor(requested=0.0, from_weight_decay=0.0)
    assert codes(seat(of=of, tensor=nothing, asked=Asked())) == []


def test_weights_of_zero_have_no_decay_to_be_judged() -> None:
    assert codes(seat(tensor=tensor(from_weight_decay=0.0, weight_norm=0.0))) == []


def test_a_mask_spares_weights_and_nobody_is_to_blame() -> None:
    assert codes(seat(tensor=tensor(requested=0.4 * A, from_weight_decay=0.4 * A, share=0.4))) == []


def test_norms_that_are_held_by_design_are_a_note() -> None:
    one = seat(tensor=tensor(from_weight_decay=0.0))
    by_design = replace(one, optimizer=replace(one.optimizer, normalises=True))
    assert codes(by_design) == [("by-design", "note")]


# --- one tensor, one cause


def test_causes_come_in_their_order() -> None:
    """Each of these has all the faults that come after it, too."""
    one: Any = seat(
        of=group(unread_keys=("weight_decay",), coupled=True),
        kind=("Adam",),
        tensor=tensor(from_weight_decay=0.0, coupled=True, reads_weight_decay=False),
        scale=Scale(DECOUPLED, told=False, peak=1e-3, off=10.0, astray=True),
        is_lost=True,
    )
    found = []
    for mended in (
        {},
        {"is_lost": False},
        {"group": group(coupled=True), "tensor": tensor(from_weight_decay=0.0, coupled=True)},
        {"tensor": tensor(from_weight_decay=0.0), "optimizer": ProbedOptimizer("W", ("AdamW",), "step")},
        {"scale": Scale(DECOUPLED, told=False, peak=1e-3, off=1.0)},
    ):
        one = replace(one, **mended)
        found += [code for code, _ in codes(one)]
    assert found == ["lost-to-rounding", "ignored-key", "coupled", "wrong-scale", "not-decaying"]


# --- whose numbers


@pytest.mark.parametrize(("given", "disputed", "severity"), [
    (True, False, "error"), (True, True, "error"), (False, False, "warning"), (False, True, "note"),
])  # fmt: skip
def test_severity_is_by_whether_somebody_named_a_policy(given: bool, disputed: bool, severity: str) -> None:
    exempt = seat(asked=Asked(decays=False, disputed=disputed), policy_is_given=given)
    assert codes(exempt) == [("decays-exempt", severity)]
    matrix = seat(of=group(weight_decay=0.0), tensor=tensor(requested=0.0, from_weight_decay=0.0),
                  asked=Asked(decays=True, disputed=disputed), policy_is_given=given)  # fmt: skip
    assert codes(matrix) == [("exempt-matrix", severity)]


def test_a_step_in_which_nothing_moves_tells_nothing_of_its_keys() -> None:
    still = seat(of=group(unread_keys=("weight_decay", "lr"), factor=None, lr_power=None),
                 tensor=tensor(requested=None, from_weight_decay=0.0))  # fmt: skip
    assert codes(still) == []
    assert codes(replace(still, tensor=replace(still.tensor, reads_weight_decay=False))) == [("ignored-key", "error")]


def test_of_an_unknown_role_nothing_is_said() -> None:
    assert codes(seat(asked=Asked())) == []
    assert codes(seat(of=group(weight_decay=0.0), tensor=tensor(from_weight_decay=0.0), asked=Asked())) == []


def test_what_a_hook_takes_from_exempt_tensors_counts_too() -> None:
    hooked = seat(of=group(weight_decay=0.0), tensor=tensor(from_weight_decay=0.0, from_elsewhere=A),
                  asked=Asked(decays=False))  # fmt: skip
    assert codes(hooked) == [("decays-exempt", "warning")]
    assert codes(replace(hooked, usual=1000 * A)) == [("decays-exempt", "note")]


def test_a_told_decay_is_compared_with_the_groups_or_with_what_is_done() -> None:
    told = Asked(decays=True, weight_decay=0.2)
    assert codes(seat(asked=told)) == [("stale", "error")]
    assert codes(seat(asked=told, tensor=tensor(from_elsewhere=A))) == []


def test_a_share_that_the_group_declares_is_part_of_what_was_told() -> None:
    half = seat(of=group(weight_decay=0.05), tensor=tensor(requested=A / 2, from_weight_decay=A / 2),
                asked=Asked(decays=True, weight_decay=0.1), settings={"decay_multiplier": 0.5})  # fmt: skip
    assert codes(half) == []
    assert codes(replace(half, settings={})) == [("stale", "error")]


def test_without_any_decay_what_was_told_is_stale() -> None:
    none = seat(of=group(weight_decay=0.0), tensor=tensor(requested=0.0, from_weight_decay=0.0), any_decay=False)
    assert codes(none) == []
    assert codes(replace(none, asked=Asked(decays=True, weight_decay=0.1))) == [("stale", "error")]


def test_a_schedule_of_the_groups_own_is_not_stale_and_a_lost_share_is() -> None:
    scheduled = {"decay_step": 7, "decay_multiplier": 1.0}
    told = Asked(decays=True, weight_decay=0.1)
    half_way = seat(of=group(weight_decay=0.05), tensor=tensor(requested=A / 2, from_weight_decay=A / 2),
                    asked=told, settings=scheduled, policy_is_given=True)  # fmt: skip
    assert codes(half_way) == []
    assert codes(replace(half_way, settings={**scheduled, "decay_multiplier": 0.5})) == [("stale", "error")]


# --- the way through the gradient


@pytest.mark.parametrize("kind", ["Adam", "FusedAdam", "NAdam", "RMSprop", "Adam8bit"])
def test_a_class_that_says_l2_and_decouples_is_a_warning(kind: str) -> None:
    assert codes(seat(kind=(kind, "Optimizer"))) == [("decoupled", "warning")]
    assert codes(seat(kind=(kind,), settings={"decoupled_weight_decay": True})) == []
    assert codes(seat(kind=(kind,), rule=DECOUPLED, scale=Scale(DECOUPLED, True, 1e-3, 1.0))) == []


@pytest.mark.parametrize("kind", ["AdamW", "Lion", "Muon", "SGD", "Mine", "RAdam", "StableAdam", "Lars"])
def test_other_classes_may_decouple(kind: str) -> None:
    assert codes(seat(kind=(kind, "Adam") if kind == "AdamW" else (kind,))) == []


def test_l2_is_a_warning_but_where_it_is_asked_for_or_of_sgd() -> None:
    coupled = tensor(coupled=True, requested=None, from_weight_decay=3 * A)
    assert codes(seat(kind=("Adam",), tensor=coupled)) == [("coupled", "warning")]
    assert codes(seat(kind=("Adam",), tensor=coupled, rule=L2, scale=Scale(L2, True, None))) == []
    sgd = seat(kind=("SGD",), tensor=replace(coupled, from_weight_decay=A))
    assert codes(sgd) == []
    assert codes(replace(sgd, rule=DECOUPLED)) == [("coupled", "note")]


def test_nesterovs_momentum_takes_its_share_and_is_not_twice() -> None:
    nesterov = seat(kind=("SGD",), settings={"nesterov": True, "momentum": 0.9},
                    tensor=tensor(coupled=True, from_weight_decay=1.9 * A))  # fmt: skip
    assert codes(nesterov) == []
    assert codes(replace(nesterov, settings={})) == [("decays-twice", "error")]


def test_with_dampening_a_step_takes_a_part_of_it_and_the_run_all() -> None:
    damped = seat(kind=("SGD",), settings={"dampening": 0.9, "momentum": 0.9},
                  tensor=tensor(coupled=True, from_weight_decay=0.1 * A))  # fmt: skip
    assert codes(damped) == []
    assert codes(replace(damped, settings={})) == [("not-decaying", "error")]


# --- the order


def test_the_order_is_told_by_nearly_all_tensors_of_an_optimizer() -> None:
    after, before = seat(tensor=tensor(order="after")), seat(tensor=tensor(order="before"))
    assert [one.code for one in orders([after] * 10)] == ["wrong-order"] * 10
    assert orders([after, before]) == []
    assert orders([before, seat(tensor=tensor(order=None))]) == []


# --- scales

FORMS = {"decoupled": (1, 0), "independent": (1, 1), "fixed": (0, 0), "lr_squared": (2, 0), "corrected": (2, 1)}


@given(rule=st.sampled_from(sorted(FORMS)), peak=st.floats(1e-5, 0.5), part=st.floats(0.01, 0.9))
def test_a_clean_form_is_recognised_at_any_rate(rule: str, peak: float, part: float) -> None:
    power, of_peak = FORMS[rule]
    groups = [group(lr=part * peak, factor=peak**-of_peak, lr_power=float(power)) for _ in range(3)]
    found = scales(groups, [{"initial_lr": peak}] * 3, None)
    assert {one.rule.name for one in found} == {rule}
    assert all(not one.astray and one.off == pytest.approx(1.0) for one in found)


@given(rule=st.sampled_from(["independent", "corrected"]), times=st.sampled_from([0.1, 10.0, 3.0]))
def test_a_group_that_takes_anothers_peak_is_astray_and_the_others_are_not(rule: str, times: float) -> None:
    power, _ = FORMS[rule]
    usual = group(lr=5e-4, factor=1e3, lr_power=float(power))
    wrong = group(lr=5e-4 * times, factor=1e3, lr_power=float(power))
    found = scales(
        [usual, usual, wrong], [{"initial_lr": 1e-3}, {"initial_lr": 1e-3}, {"initial_lr": 1e-3 * times}], None
    )
    assert [one.astray for one in found] == [False, False, True]
    assert found[2].off == pytest.approx(times)


@pytest.mark.parametrize("settings", [
    {"initial_lr": 4e-5, "max_lr": 1e-3},  # OneCycle begins far below its peak
    {"initial_lr": 1e-3, "max_lr": 4e-5},  # a default that no group has asked for
    {"peak_lr": 1e-3, "initial_lr": 4e-5, "max_lr": 1e-4},
])  # fmt: skip
def test_a_groups_peak_is_the_highest_rate_that_it_knows_of(settings: dict[str, float]) -> None:
    (found,) = scales([group(lr=5e-4, factor=1e3)], [settings], INDEPENDENT)
    assert found.peak == 1e-3
    assert found.off == pytest.approx(1.0)
    assert not found.astray


def test_a_group_that_takes_anothers_rate_is_astray() -> None:
    found = scales([group(), group(lr=1e-4, factor=1e-3, lr_power=0.0)], [{}, {}], None)
    assert [one.astray for one in found] == [False, True]


def test_a_factor_of_all_groups_is_no_matter_of_scale() -> None:
    found = scales([group(factor=2.0), group(factor=2.0, lr=1e-4)], [{}, {}], None)
    assert [(one.astray, one.off) for one in found] == [(False, 2.0), (False, 2.0)]


def test_an_optimizer_that_finds_its_own_rate_explains_itself() -> None:
    small = tensor(requested=1e-5 * A, from_weight_decay=1e-5 * A)
    for settings in ({"scale": 1e-5, "lr": 1e-3}, {"d": 1e-6, "d0": 1e-6}, {"relative_step": True}):
        (found,) = scales([group(factor=1e-5)], [settings], None)
        assert found.explained in settings
        assert codes(seat(scale=found, tensor=small)) == []


def test_what_follows_no_rule_is_blamed_where_nothing_of_the_optimizer_decays() -> None:
    """Layer-wise rates, as LAMB's: what a layer gets is not lr·λ, and may be anything."""
    free = seat(of=group(factor=None, lr_power=None), tensor=tensor(requested=None, from_weight_decay=0.01 * A),
                others_decay=True)  # fmt: skip
    assert codes(free) == []
    assert codes(replace(free, tensor=tensor(requested=None, from_weight_decay=9 * A))) == []
    assert codes(replace(free, others_decay=False)) == [("not-decaying", "error")]
    twice = tensor(requested=None, from_weight_decay=A, from_elsewhere=A)
    assert codes(replace(free, tensor=twice)) == [("decays-twice", "error")]


def test_what_is_taken_evenly_has_no_layer_wise_rate_and_its_amount_counts() -> None:
    from weightdecay.auditing.seating import _are_even

    def several(*amounts: float, uncertainty: float = 1e-9) -> list[Seat]:
        values = [tensor(requested=None, from_weight_decay=a * A, uncertainty=uncertainty) for a in amounts]
        return [seat(of=group(factor=None, lr_power=None), tensor=one) for one in values]

    assert _are_even(several(2.0, 1.98, 2.02))
    assert _are_even(several(0.0, 0.01))
    assert not _are_even(several(2.0, 0.5, 1.0))
    assert not _are_even(several(2.0))
    assert not _are_even(several(2.0, 2.0, uncertainty=A))
    (first, _) = several(2.0, 2.0)
    assert codes(replace(first, is_even=True)) == [("decays-twice", "error")]


@pytest.mark.parametrize("key", ["wd", "weigth_decay", "l2"])
def test_a_decay_under_another_name_is_called_by_it(key: str) -> None:
    assert [one.about for one in judged(seat(ignored_key=key))] == [key]
    exempt = seat(ignored_key=key, of=group(weight_decay=0.0), tensor=tensor(from_weight_decay=0.0))
    assert codes(replace(exempt, asked=Asked(decays=False))) == []


def test_a_groups_own_rule_comes_before_that_of_most_and_a_told_one_before_both() -> None:
    corrected = group(factor=1e3, lr_power=2.0)
    settings: list[dict[str, Any]] = [{"initial_lr": 1e-3}, {"initial_lr": 1e-3, "rule": "corrected"}]
    assert [one.rule for one in scales([group(), corrected], settings, None)] == [DECOUPLED, CORRECTED]
    assert [one.rule for one in scales([group(), corrected], settings, FIXED)] == [FIXED, FIXED]


def test_every_rule_has_a_formula() -> None:
    assert [formula(Scale(rule, True, 1.0)) for rule in (DECOUPLED, INDEPENDENT, FIXED, LR_SQUARED, CORRECTED)] == [
        "λ·lr", "λ·lr/peak", "λ", "λ·lr²", "λ·lr²/peak",
    ]  # fmt: skip
    for rule in RULES.values():
        if not rule.coupled:
            assert per_step(rule, 0.1, 1e-3, 1e-2) == pytest.approx(rule.decay_per_step(1e-3, 0.1, 1e-2))


# --- rounding


@pytest.mark.parametrize(("dtype", "a", "low", "high"), [
    (torch.bfloat16, 2.0**-10, -0.01, 0.01),
    (torch.bfloat16, 2.0**-8 * 1.01, 0.7, 1.6),
    (torch.float32, 1e-3, 0.99, 1.01),
    (torch.float32, 2.9e-8, -0.01, 0.01),
    (torch.float32, 3.1e-8, 1.5, 3.0),
    (torch.float64, 1e-10, 0.99, 1.01),
    (torch.float16, 1e-4, -0.01, 0.01),
])  # fmt: skip
def test_what_rounding_leaves_of_a_decay(dtype: torch.dtype, a: float, low: float, high: float) -> None:
    torch.manual_seed(0)
    weights = torch.randn(200, 100, dtype=torch.float64).to(dtype)
    assert low <= share_left(weights, a) <= high
    real = weights.clone().mul_(1 - a)
    done = (weights.double() * (weights.double() - real.double())).sum() / (a * weights.double().square().sum())
    assert share_left(weights, a) == pytest.approx(float(done), abs=1e-6)


def test_nothing_is_lost_of_what_is_empty_infinite_or_not_asked_for() -> None:
    assert share_left(torch.zeros(3), 1e-3) == 1.0
    assert share_left(torch.full((3,), torch.inf), 1e-3) == 1.0
    assert share_left(torch.ones(3), 0.0) == 1.0
    assert share_left(torch.ones(3, dtype=torch.int64), 1e-3) == 1.0


def test_few_elements_tell_nothing_alone_and_something_together() -> None:
    one = Seen(tensor(from_weight_decay=0.0, uncertainty=0.8 * A), A)
    assert not is_lost([one])
    assert is_undecided([one])
    assert is_lost([one] * 12)
    assert not is_lost([Seen(tensor(from_weight_decay=0.9 * A, uncertainty=0.1 * A), A)] * 12)


# --- findings as values


def test_findings_are_ranked_by_severity_and_then_by_how_much_is_wrong() -> None:
    def finding(code: Any, severity: Any, elements: int, realised: float | None) -> Finding:
        return Finding(code, severity, ("w",), elements, "", asked=1.0, realised=realised)

    few = finding("not-decaying", "error", 10, 0.0)
    many_a_little = finding("stale", "error", 1000, 0.9)
    unknown = finding("missing", "error", 200, None)
    warning = finding("coupled", "warning", 10**6, 0.0)
    note = finding("idle-decay", "note", 10**9, 0.0)
    assert ranked([note, few, warning, many_a_little, unknown]) == [unknown, many_a_little, few, warning, note]


def test_every_code_has_a_title_and_a_reason() -> None:
    from weightdecay.auditing.reasons import _TITLES, _WHY

    assert set(CODES) <= set(_TITLES)
    assert set(CODES) - {"decays-exempt", "exempt-matrix"} == set(_WHY)


def test_a_judgement_of_what_could_not_be_seen_says_why() -> None:
    (found,) = judged(seat(tensor=tensor(opaque="its step needs a closure")))
    assert isinstance(found, Judgement)
    assert (found.code, found.severity, found.about) == ("opaque", "warning", "its step needs a closure")
