"""Advice: reference values, a range and never a bare number, and words for what it must warn of."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightdecay import Advice, advise
from weightdecay.advisor.advice import SHARE
from weightdecay.advisor.wording import as_text
from weightdecay.errors import ConfigError
from weightdecay.laws import TAGS
from weightdecay.recipes.settings import OptimizerSettings

SMALL: dict[str, Any] = {"params": 10e6, "tokens": 200e6, "batch_tokens": 65_536, "lr": 1e-3}
INSIDE: dict[str, Any] = {**SMALL, "parametrization": "mup", "schedule": "linear-to-zero"}
GPT2: dict[str, Any] = {"params": 124e6, "tokens": 2.5e9, "batch_tokens": 0.5e6, "lr": 6e-4}

amounts = st.floats(1e-12, 1e18, allow_nan=False)


def flat(advice: Advice) -> str:
    """Its words in one line."""
    return " ".join(str(advice).split())


@pytest.mark.parametrize(
    ("given", "expected"),
    [(INSIDE, 1.466), ({**INSIDE, "params": 3e6, "tokens": 60e6, "batch_tokens": 16_384, "lr": 3e-3}, 0.407)],
)
def test_the_reference_values_are_reproduced_where_the_law_holds(given: dict[str, Any], expected: float) -> None:
    advice = advise(**given)
    assert advice.law.applies
    assert advice.law.weight_decay == pytest.approx(expected, abs=6e-4)
    assert f"λ = {expected:.4g}"[:8] in str(advice)
    assert advice.document()["law"]["weight_decay"] == advice.law.weight_decay


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"parametrization": "standard"}, "the parametrization is standard"),
        ({"parametrization": "unknown"}, "the parametrization is unknown"),
        ({"schedule": "unknown"}, "the schedule is unknown"),
        ({"schedule": "cosine-to-zero"}, "the schedule is cosine-to-zero"),
        ({"tokens": 190e6}, "here are 19"),
        ({"tokens": 20e9}, "here are 2e+03"),
        ({"optimizer": "muon"}, "not on muon"),
    ],
)
def test_outside_its_domain_the_law_gives_no_single_number_and_says_why(change: dict[str, Any], reason: str) -> None:
    advice = advise(**INSIDE | change)
    assert not advice.law.applies
    assert advice.law.weight_decay is None
    assert advice.document()["law"]["weight_decay"] is None
    assert reason in " ".join(advice.law.reasons)
    assert reason in flat(advice)
    assert advice.law.span.low < advice.law.span.high
    assert "as one voice among others" in flat(advice)


def test_both_ways_to_count_the_parameters_are_shown() -> None:
    """For 124M at the usual batch: 1.5 with all, 1.83 without the 39.4M of its tables."""
    advice = advise(**GPT2, embeddings=39.4e6)
    assert advice.law.all_counted == pytest.approx(1.5, abs=0.005)
    assert advice.law.without_embeddings.low == advice.law.without_embeddings.high == pytest.approx(1.83, abs=0.01)
    assert "1.5 with all parameters, 1.83 without embeddings" in flat(advice)
    unknown = advise(**GPT2).law
    assert not unknown.embeddings_given
    assert unknown.without_embeddings.low < 1.83 < unknown.without_embeddings.high


def test_where_the_two_countings_disagree_on_the_domain_it_is_said() -> None:
    inside = {**INSIDE, "tokens": 10e6 * 1200}
    assert "whether the law holds depends on how N is counted" in flat(advise(**inside, embeddings=5e6))
    assert "whether the law holds" not in flat(advise(**inside, embeddings=0))


def lambdas(document: Any) -> Iterator[dict[str, Any]]:
    """Every table of a document that holds a λ."""
    if isinstance(document, dict):
        if {"weight_decay", "low", "batch_tokens"} & document.keys():
            yield document
        for value in document.values():
            yield from lambdas(value)
    elif isinstance(document, list):
        for value in document:
            yield from lambdas(value)


@pytest.mark.parametrize("given", [SMALL, INSIDE, GPT2, {**SMALL, "optimizer": "muon", "epochs": 20, "width": 512}])
def test_no_number_of_the_advice_stands_without_equation_source_and_tag(given: dict[str, Any]) -> None:
    document = advise(**given).document()
    for voice in (document["range"], document["law"], document["nanochat"], document["batch"], *document["carried"]):
        assert voice["equation"]
        assert voice["source"]
        assert set(voice["tag"].split(", ")) <= TAGS.keys()
    assert document["range"]["low"] < document["range"]["high"]
    for run in document["range"]["runs"]:
        assert run["source"]
        assert run["tag"] in TAGS
    told = {round(one["weight_decay"], 12) for one in lambdas(document["memories"])}
    named = {document["range"][key] for key in ("low", "median", "high")} | {document["law"]["weight_decay"]}
    named |= {document["law"]["counting_all"], *document["law"]["without_embeddings"].values()}
    assert told <= {round(value, 12) for value in named if value is not None}


def test_every_tag_in_the_words_is_explained() -> None:
    for planned in (GPT2, {**SMALL, "epochs": 20, "optimizer": "muon"}):
        words = flat(advise(**planned, width=64))
        for tag in ("V2", "R", "A", "C", "D"):
            assert f"[{tag}] {TAGS[tag]}" in words


def test_what_a_weight_decay_amounts_to_is_told_in_steps_tokens_and_epochs() -> None:
    advice = advise(**{**GPT2, "tokens": 250e9, "batch_tokens": 50e6, "epochs": 4, "schedule": "cosine-to-tenth"})
    for memory in advice.memories:
        a = memory.weight_decay * 6e-4
        assert memory.steps == pytest.approx(1 / a)
        assert memory.tokens == pytest.approx(memory.steps * 50e6)
        assert memory.epochs == pytest.approx(memory.tokens / (250e9 / 4))
        assert memory.part == pytest.approx(memory.steps / 5000)
        assert memory.half_life_tokens == pytest.approx(math.log(2) * memory.tokens)
        assert memory.total == pytest.approx(a * 5000 * 0.55, rel=1e-3)
        found = advice.planned.origins(memory.weight_decay)
        assert math.fsum(found.coefficients) + found.start == pytest.approx(1, abs=1e-12)
        if memory.last_part is not None:
            late = found.coefficients[-round(memory.last_part * 5000) :]
            assert SHARE <= math.fsum(late) <= SHARE + 2 * a
    assert {memory.last_part is None for memory in advice.memories} == {True, False}
    assert "never: 74 % is the start's" in flat(advise(**GPT2))
    assert "95 % of the final weights come from the last X % of the run" in flat(advice)
    assert f"the last {advice.memories[-1].last_part:.1%}" in flat(advice)


def test_the_rules_that_hold_for_any_weight_decay_are_always_said() -> None:
    for planned in (SMALL, INSIDE, GPT2):
        words = flat(advise(**planned))
        assert "do not choose λ by held-out loss alone" in words
        assert "the range is what was used, not what is best" in words


def test_the_counter_example_stands_where_the_law_gives_far_more_than_practice() -> None:
    assert "3.692 to 3.643, and the law's 0.337" in flat(advise(**GPT2))
    assert "the law gives at least 15 times more" in flat(advise(**GPT2))
    near = advise(params=2.6e9, tokens=627e9, batch_tokens=3.93e6, lr=1.2e-3)  # as BTLM, where law and practice agree
    assert "the law gives at least" not in flat(near)


def test_many_epochs_are_told_as_another_regime() -> None:
    words = flat(advise(**SMALL, epochs=16))
    assert "16 epochs are another regime" in words
    assert "arXiv:2509.14786 [A]" in words
    assert "against it: GPT-2s" in words
    assert "another regime" not in flat(advise(**SMALL, epochs=4))


def test_a_weight_decay_that_does_nothing_in_this_run_is_told() -> None:
    words = flat(advise(**GPT2))
    assert "λ of 0.1 and less does next to nothing in this run: Σ of the decay per step is 0.3" in words
    assert "next to nothing" not in flat(advise(params=125e6, tokens=300e9, batch_tokens=0.5e6, lr=6e-4))
    assert "float32 rounds 1 − ηλ to 1" in flat(advise(**{**GPT2, "lr": 1e-7}))
    assert "would remove more than the whole weight" in flat(advise(**{**GPT2, "lr": 20.0}))


def test_a_carried_weight_decay_that_no_step_could_follow_is_told() -> None:
    """One step of the kind of a run of thousands: the same timescale would take more than the whole weight."""
    short = advise(params=2e6, tokens=1e5, batch_tokens=1e5, lr=1e-2)
    timescale = next(one for one in short.carried if one.law.name == "same timescale")
    assert timescale.weight_decay * 1e-2 > 1
    assert f"{timescale.weight_decay:.3g}, over 1/η: none" in flat(short)
    assert "over 1/η" not in flat(advise(**GPT2))


def test_a_run_far_from_all_others_is_told_as_far() -> None:
    assert "no published run of the database is near" in flat(
        advise(params=2e6, tokens=2e6, batch_tokens=2048, lr=1e-3)
    )
    assert "no published run" not in flat(advise(**GPT2))


def test_a_batch_far_from_the_best_is_told() -> None:
    best = advise(**GPT2).batch_tokens
    assert best == pytest.approx(2**19 * (2.5e9 / 1_321_210_944) ** 0.383)
    assert "times larger than B_opt" in flat(advise(**{**GPT2, "batch_tokens": 5 * best}))
    assert "times smaller than B_opt" in flat(advise(**{**GPT2, "batch_tokens": best / 5}))
    assert "than B_opt" not in flat(advise(**GPT2))


@settings(max_examples=20)
@given(st.floats(1.2, 30.0))
def test_carried_weight_decay_is_proportional_to_the_batch(times: float) -> None:
    """λ ∝ B at fixed η and D, as far as whole steps allow."""
    one, more = (
        {carried.law.name: carried.weight_decay for carried in advise(**{**GPT2, "batch_tokens": batch}).carried}
        for batch in (1e6, 1e6 * times)
    )
    assert more["same timescale"] == pytest.approx(times * one["same timescale"], rel=0.02)
    assert more["same memory"] == pytest.approx(times * one["same memory"])
    assert more["independent"] == one["independent"]


def test_an_optimizer_without_theory_gets_no_number_but_the_reason() -> None:
    names = set(get_args(get_type_hints(OptimizerSettings)["name"])) - {"adamw", "muon"}
    for name in names:
        with pytest.raises(ConfigError, match=f"optimizer = {name}: no theory here"):
            advise(**SMALL, optimizer=name)
    with pytest.raises(ConfigError, match=r"PaLM removed η² of a weight"):
        advise(**SMALL, optimizer="adafactor")


def test_all_faults_are_told_at_once() -> None:
    wrong: dict[str, Any] = {"params": -1, "tokens": math.nan, "batch_tokens": 0, "lr": True, "epochs": "many",
                             "schedule": "linear", "optimizer": "sgd", "width": 0.5}  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        advise(**wrong)
    told = "\n".join(caught.value.faults)
    assert len(caught.value.faults) == 8, told
    for words in ("params", "tokens", "batch_tokens", "lr", "epochs", "did you mean 'linear-to-zero'", "sgd", "width"):
        assert words in told


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_tokens": 3e8}, "not one step"),
        ({"embeddings": 10e6}, "params must count all"),
        ({"embeddings": -1}, "embeddings"),
        ({"lr": math.inf}, "lr"),
        ({"parametrization": "µP"}, "known are: unknown, standard, mup|known are: mup, standard, unknown|did you mean"),
    ],
)
def test_a_run_that_cannot_be_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        advise(**SMALL | change)


@settings(max_examples=40)
@given(amounts, amounts, st.floats(1.0, 1e6), amounts, st.floats(1e-3, 1e6), st.sampled_from(["adamw", "muon"]))
def test_values_outside_every_laws_domain_still_get_a_range_and_finite_numbers(
    params: float, batch: float, steps: float, lr: float, epochs: float, optimizer: str
) -> None:
    advice = advise(
        params=params,
        tokens=batch * steps,
        batch_tokens=batch,
        lr=lr,
        epochs=epochs,
        optimizer=optimizer,
        schedule="constant",
    )
    assert 0 < advice.range.low < advice.range.high
    assert advice.law.weight_decay is None
    json.dumps(advice.document(), allow_nan=False)


@pytest.mark.parametrize("width", [40, 80, 100, 140])
def test_the_words_fit_any_terminal_and_lose_nothing(width: int) -> None:
    advice = advise(**GPT2)
    text = as_text(advice, width)
    assert max(map(len, text.split("\n"))) <= width
    words = "".join(text.split())
    for run in advice.near.runs:
        assert run.name in words or width < 140
    assert "arXiv:2505.13738" in words
