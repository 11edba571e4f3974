"""A tiny study: what its directory holds, what counts, what is refused, and what a damaged part does to the rest."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.studies.tiny import ARMS, STEPS, TINY, in_this_process, judged, plan
from weightdecay.errors import ConfigError, RunBusyError
from weightdecay.runs import Run
from weightdecay.studies import catalogue, design
from weightdecay.studies.analysis import analyse
from weightdecay.studies.design import SIZES
from weightdecay.studies.directory import StudyDirectory, differences
from weightdecay.studies.metrics import MATCHED
from weightdecay.studies.results import value_at
from weightdecay.studies.runner import begin, tasks_of
from weightdecay.studies.worker import carried_out

Study = Callable[[], StudyDirectory]
FIRST, SECOND = "wd-0-seed0", "script-wd-3-seed0"


def run_of(results: dict[str, Any], name: str) -> dict[str, Any]:
    return next(run for run in results["runs"] if run["name"] == name)


def test_every_run_is_a_run_directory_and_the_results_are_its_numbers(study: Study) -> None:
    directory = study()
    results = directory.results()

    assert results["complete"]
    assert [run["status"] for run in results["runs"]] == ["finished"] * 4
    for run in results["runs"]:
        own = Run.open(directory.run(run["name"]).path)
        summary = own.summary()
        assert summary is not None
        assert run["values"]["val_bits_per_byte"] == summary["val_bits_per_byte"]
        assert own.config().run.seed == run["seed"]
    group = next(group for group in results["groups"] if group["metric"] == "val_loss")
    assert group["mean"] == pytest.approx(sum(value["value"] for value in group["values"]) / 2)


def test_runs_of_one_seed_begin_alike_and_differ_by_their_arm_alone(study: Study) -> None:
    directory = study()
    first, second, other = (list(directory.run(name).rows("train")) for name in (FIRST, SECOND, "wd-0-seed1"))
    assert first[0]["loss"] == second[0]["loss"] != other[0]["loss"]
    assert first[-1]["loss"] != second[-1]["loss"]


def test_a_comparison_is_of_pairs_and_all_of_them_are_counted(study: Study) -> None:
    results = study().results()
    compared = results["comparisons"][0]

    assert results["comparisons_counted"] == len(results["comparisons"]) == 2
    assert compared["difference"] == pytest.approx(sum(pair["arm"] - pair["against"] for pair in compared["pairs"]) / 2)
    assert compared["p_holm"] >= compared["p"]
    low, high = compared["interval"]
    wide_low, wide_high = compared["simultaneous"]
    assert wide_low < low < compared["difference"] < high < wide_high


def test_two_seeds_are_never_a_claim(study: Study) -> None:
    results = study().results()
    assert {compared["verdict"] for compared in results["comparisons"]} == {"too few seeds"}
    assert "too few for a claim" in results["comparisons"][0]["sentence"]
    assert any("no claim" in limit for limit in results["limits"])


def test_pictures_have_data_axes_and_units(study: Study) -> None:
    for picture in study().results()["pictures"]:
        assert picture["data"]
        assert picture["x"]["label"]
        assert picture["y"]["label"]
        assert picture["alt"]
        for row in picture["data"]:
            assert {picture["x"]["field"], picture["y"]["field"]} <= row.keys()


def test_a_hostile_arm_makes_a_plain_directory(study: Study) -> None:
    directory = study()
    assert {path.name for path in (directory.path / "runs").iterdir()} == {
        "wd-0-seed0", "wd-0-seed1", "script-wd-3-seed0", "script-wd-3-seed1",
    }  # fmt: skip
    assert all(re.fullmatch(r"[A-Za-z0-9.-]+", path.name) for path in (directory.path / "runs").iterdir())


def test_going_on_with_the_same_settings_changes_nothing(study: Study, source: Path) -> None:
    directory = study()
    before = directory.results() | {"date": ""}
    outcomes = in_this_process(directory.path, [str(source)])
    assert {outcome.outcome for outcome in outcomes.values()} == {"finished"}
    assert directory.results() | {"date": ""} == before


def test_other_settings_are_refused_with_every_difference(study: Study, source: Path) -> None:
    directory = study()
    with pytest.raises(ConfigError) as refused:
        begin(TINY, directory, size="full", n_seeds=3, sources=[str(source)])
    words = str(refused.value)
    assert "seeds: the study has [0, 1], asked for [0, 1, 2]" in words
    assert "size: the study has quick, asked for full" in words
    assert "give another --out" in words


def test_a_setting_that_came_since_a_study_was_begun_is_no_difference(study: Study, source: Path) -> None:
    directory = study()
    document = directory.study()
    del document["settings"]["run.monitor"]
    (directory.path / "study.json").write_text(json.dumps(document), encoding="utf-8")
    begin(TINY, directory, size="quick", n_seeds=2, sources=[str(source)])


def test_differences_name_rows_by_their_names() -> None:
    before = {"arms": [{"name": "a", "settings": {"lr": 1}}], "started": "then"}
    after = {"arms": [{"name": "a", "settings": {"lr": 2}}], "started": "now"}
    assert differences(before, after) == ["arms.a.settings.lr: the study has 1, asked for 2"]


def test_a_directory_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("…", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"not a study: it holds thesis\.tex"), StudyDirectory(tmp_path).lock():
        pass
    with pytest.raises(ConfigError, match=r"it has no study\.json"):
        StudyDirectory.open(tmp_path)


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    first, second = StudyDirectory(tmp_path), StudyDirectory(tmp_path)
    with first.lock(), pytest.raises(RunBusyError, match="carries out this study"), second.lock():
        pass


def test_a_run_that_another_process_writes_is_waited_for_and_told_as_running(study: Study) -> None:
    directory = study()
    run = directory.run(FIRST)
    (run.path / "summary.json").unlink()
    (run.path / "measured.json").unlink()
    task = next(task for task in tasks_of(directory) if task.name == FIRST)
    with run.lock():
        outcome = carried_out(task)
        assert run_of(judged(directory), FIRST)["status"] == "running"
    assert (outcome.outcome, "is training here" in outcome.why) == ("busy", True)


def test_a_run_on_another_text_is_named_and_not_put_on_the_same_axis(study: Study) -> None:
    directory = study()
    path = directory.run(FIRST).path / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"corpus_sha256": "f" * 64}), encoding="utf-8")

    results = judged(directory)

    run = run_of(results, FIRST)
    assert (run["status"], run["counted"], run["values"]) == ("other text", False, {})
    assert any(FIRST in limit and "other text" in limit for limit in results["limits"])
    assert results["comparisons"][0]["n"] == 1
    assert [corpus["counted"] for corpus in results["corpora"]].count(False) == 1
    assert all(row.get("run") != FIRST for picture in results["pictures"] for row in picture["data"])


def test_a_last_row_cut_off_by_a_kill_costs_that_row_alone(study: Study) -> None:
    directory = study()
    before = run_of(directory.results(), FIRST)
    path = directory.run(FIRST).metrics_path
    path.write_bytes(path.read_bytes()[:-40])
    after = run_of(judged(directory), FIRST)
    assert (after["status"], after["values"]["val_loss"]) == ("finished", before["values"]["val_loss"])


def test_a_damaged_summary_is_told_and_the_others_count(study: Study) -> None:
    directory = study()
    (directory.run(FIRST).path / "summary.json").write_text("{", encoding="utf-8")
    results = judged(directory)
    assert (run_of(results, FIRST)["status"], run_of(results, SECOND)["status"]) == ("damaged", "finished")
    assert any("damaged" in limit for limit in results["limits"])


def test_a_run_that_diverges_is_kept_named_and_not_counted(tmp_path: Path, source: Path) -> None:
    import dataclasses

    wild = dataclasses.replace(ARMS[1], settings={"optimizer.lr": 1e30, "optimizer.weight_decay": 0.0})

    def wild_plan(size: design.SizeName) -> design.Plan:
        return dataclasses.replace(plan(size), arms=(ARMS[0], wild))

    study = dataclasses.replace(TINY, plan=wild_plan)
    outcomes = in_this_process(tmp_path / "study", [str(source)], study, n_seeds=1)

    assert outcomes[SECOND].outcome == "diverged", outcomes[SECOND].why
    results = StudyDirectory.open(tmp_path / "study").results()
    run = run_of(results, SECOND)
    assert (run["status"], run["counted"]) == ("diverged", False)
    assert "not finite" in run["why"]
    assert results["complete"]
    assert [failure["name"] for failure in StudyDirectory(tmp_path / "study").failures()] == [SECOND]


def test_a_loss_that_is_not_finite_at_the_end_is_a_divergence(study: Study) -> None:
    directory = study()
    path = directory.run(FIRST).path / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"val_loss": None}), encoding="utf-8")
    assert run_of(judged(directory), FIRST)["status"] == "diverged"


def test_a_study_of_a_newer_version_is_not_guessed_at(study: Study) -> None:
    directory = study()
    path = directory.path / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"schema_version": 99}), encoding="utf-8")
    with pytest.raises(ConfigError, match="newer than this weightdecay reads"):
        directory.study()


def test_a_value_at_a_training_loss_lies_on_the_line_between_two_checkpoints() -> None:
    series = [{"train_loss": loss, "exposure": value} for loss, value in ((4.0, 1.0), (3.0, 2.0), (2.0, 6.0))]
    assert [value_at(series, "exposure", at) for at in (4.0, 3.5, 3.0, 2.25, 2.0)] == [1.0, 1.5, 2.0, 5.0, 6.0]
    assert value_at(series, "exposure", 5.0) is None  # it fitted better before anybody looked
    assert value_at(series, "exposure", 1.0) is None  # it never came there


@pytest.mark.parametrize("name", list(catalogue.studies()))
@pytest.mark.parametrize("size", SIZES)
def test_every_study_of_the_catalogue_can_be_begun_at_every_size(name: str, size: design.SizeName) -> None:
    from weightdecay.recipes.schema import recipe
    from weightdecay.studies.measuring import MEASURES
    from weightdecay.studies.runner import run_name
    from weightdecay.training.optimizers import rule_faults

    chosen = catalogue.study(name).plan(size)
    names = [arm.name for arm in chosen.arms]

    assert len({run_name(arm, 0) for arm in chosen.arms}) == len(names)
    assert set(chosen.measures) <= MEASURES.keys()
    for arm in chosen.arms:
        assert arm.text in chosen.texts
        config = recipe(chosen.recipe).config({**chosen.settings, **arm.settings})
        assert not rule_faults(config.optimizer)
    for contrast in chosen.contrasts:
        assert {contrast.arm, contrast.against} <= set(names)
    assert len(set(chosen.contrasts)) == len(chosen.contrasts)


@pytest.mark.parametrize("name", list(catalogue.studies()))
def test_a_study_without_a_finished_run_says_so(name: str, study: Study) -> None:
    directory = study()
    document = directory.study()
    document["runs"] = [run | {"name": f"never-{run['name']}"} for run in document["runs"]]
    (directory.path / "study.json").write_text(json.dumps(document), encoding="utf-8")
    results = analyse(catalogue.study(name), directory)
    assert (results["answer"], results["pictures"], results["complete"]) == ("No run has finished yet.", [], False)


def test_matched_values_are_taken_where_every_run_has_come_to() -> None:
    from weightdecay.studies.results import RunResult, _add_matched

    runs = [
        RunResult(str(i), "a", i, "finished", series=[
            {"step": 1, "train_loss": 4.0, "exposure_16": 1.0}, {"step": 2, "train_loss": end, "exposure_16": 3.0},
        ])
        for i, end in enumerate((2.0, 3.0))
    ]  # fmt: skip
    _add_matched(runs)
    assert [run.values["matched_train_loss"] for run in runs] == [3.0, 3.0]
    assert [run.values[f"{MATCHED}exposure_16"] for run in runs] == [2.0, 3.0]


def test_an_unknown_study_is_told_its_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'lambda'|lambda"):
        catalogue.study("lamda")


def test_the_tiny_study_takes_the_steps_it_was_asked_for(study: Study) -> None:
    summary = study().run(FIRST).summary()
    assert summary is not None
    assert summary["steps"] == STEPS
