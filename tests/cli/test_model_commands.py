"""`sample`, `eval`, `export`, `runs` and `train --track`: on every form of a trained model, and with wrong values."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.cli.conftest import Answer
from weightdecay import checkpoint
from weightdecay.recipes.schema import recipe
from weightdecay.runs import MetricsWriter, Row, Run
from weightdecay.training.progress import SilentReporter
from weightdecay.training.trainer import train


def small(text: Path, out: Path, **values: Any) -> Any:
    return recipe("llama2:nano").config({
        "data.sources": (str(text),), "data.tokenizer": "byte", "model.n_layers": 2, "model.d_model": 32,
        "model.n_heads": 4, "model.context": 16, "run.batch_tokens": 128, "run.steps": 4, "run.eval_every": 2,
        "run.checkpoint_every": 2, "run.keep": 9, "run.out": str(out), **values,
    })  # fmt: skip


class Listed:
    """A tracker that keeps what it is sent."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def start(self, run: Run, step: int) -> None:
        self.events.append(("start", run.path, step))

    def row(self, row: Row) -> None:
        self.events.append(row)

    def close(self) -> None:
        self.events.append("close")


@pytest.fixture(scope="module")
def run(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(small(small_text, tmp_path_factory.mktemp("runs") / "one"), reporter=SilentReporter())


def test_every_form_of_a_trained_model_continues_the_same_text(
    command: Callable[..., Answer], run: Run, tmp_path: Path
) -> None:
    assert command("export", run.path, tmp_path / "out", "--checkpoint", "2")[0] == 0
    forms: list[list[str | Path]] = [
        [run.path, "--checkpoint", "2"], [checkpoint.of_step(run.checkpoints, 2).path], [tmp_path / "out"]
    ]  # fmt: skip
    (tmp_path / "prompt.txt").write_text("\ufeff7 sq", "utf-8")
    prompts: list[list[str | Path]] = [
        ["--prompt", "7 sq"],
        ["--prompt", "-"],
        ["--prompt-file", tmp_path / "prompt.txt"],
    ]
    drawn = {
        command("sample", *form, *prompt, "--max-tokens", "20", "--top-p", "0.9", stdin="7 sq")[1]
        for form, prompt in zip(forms, prompts, strict=True)
    }
    assert len(drawn) == 1
    assert drawn.pop().startswith("7 sq")


def test_a_talk_goes_on_with_what_was_said_until_it_is_left(command: Callable[..., Answer], run: Run) -> None:
    talk = ("sample", run.path, "--interactive", "--max-tokens", "5", "--temperature", "0")
    code, said, told = command(*talk, stdin="7 sq\n/new\n7 sq\n8\n/quit\nnever read\n")
    assert code == 0
    assert "/quit" in told
    first = command("sample", run.path, "--prompt", "7 sq\n", "--max-tokens", "5", "--temperature", "0")[1]
    answer = first.removeprefix("7 sq\n")
    assert said.startswith(answer * 2)
    assert len(said) > len(answer * 2)
    assert command(*talk, stdin="")[1] == ""


def test_the_loss_is_given_for_the_runs_text_any_text_and_an_exported_model(
    command: Callable[..., Answer], run: Run, small_text: Path, tmp_path: Path
) -> None:
    summary = run.summary()
    assert summary is not None
    own = json.loads(command("eval", run.path, "--json")[1])
    assert (own["loss"], own["bits_per_byte"]) == (summary["val_loss"], summary["val_bits_per_byte"])
    assert own["text"]["part"] == "held out"
    command("export", run.path, tmp_path / "out")
    rows = tmp_path / "rows.csv"
    rows.write_text("n,body\n1,7 squared is 49\n2,8 squared is 64\n")
    options = ("--data", rows, "--text-key", "body", "--dtype", "float32", "--json")
    others = [json.loads(command("eval", model, *options)[1]) for model in (run.path, tmp_path / "out")]
    assert others[0]["loss"] == others[1]["loss"]
    assert others[0]["tokens"] == len("7 squared is 49") * 2 + 2
    piped = json.loads(command("eval", run.path, "--data", small_text / "part0.txt", "--tokens", "9", "--json")[1])
    assert piped["tokens"] == 9
    code, said, _ = command("eval", run.path)
    assert code == 0
    assert "bits per byte on" in said
    assert "of the held-out part of" in said


WRONG = {
    "sample": [
        (["--top-p", "0"], "--top-p 0: must be"), (["--top-p", "nan"], "--top-p nan"), (["--top-p", "2"], "--top-p 2"),
        (["--prompt", "a", "--prompt-file", "b"], "give one"), (["--prompt-file", "gone"], "gone: cannot be read"),
        (["--interactive", "--json"], "--interactive"), (["--checkpoint", "7"], "but of 2, 4"),
        (["--checkpoint", "worst"], "newest, best, or the number"),
    ],
    "eval": [
        (["--tokens", "0"], "--tokens 0"), (["--tokens", "few"], "--tokens few"), (["--dtype", "int8"], "--dtype int8"),
        (["--missing-text", "ignore"], "--missing-text ignore"), (["--encoding-errors", "x"], "--encoding-errors x"),
        (["--data", "gone"], "gone: no such file"), (["--checkpoint", "9"], "but of 2, 4"),
    ],
    "export": [(["--checkpoint", "9"], "but of 2, 4"), (["--checkpoint", ""], "--checkpoint '': an empty value")],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "more", "words"), [(name, more, words) for name, cases in WRONG.items() for more, words in cases]
)
def test_a_wrong_value_of_a_flag_is_named(
    name: str, more: list[str], words: str, command: Callable[..., Answer], run: Run, tmp_path: Path
) -> None:
    out = [tmp_path / "out"] if name == "export" else []
    code, said, told = command(name, run.path, *out, *more)
    assert code == 2
    assert ("exit_code" in said) == ("--json" in more)
    assert words in told
    assert "Traceback" not in told


@pytest.mark.parametrize("name", ["sample", "eval", "export"])
def test_what_is_no_model_is_refused_with_what_can_be_given(
    name: str, command: Callable[..., Answer], tmp_path: Path
) -> None:
    out = [tmp_path / "out"] if name == "export" else []
    for path in (tmp_path, tmp_path / "gone"):
        code, _, told = command(name, path, *out)
        assert code == 2
        assert "run.toml" in told


def test_an_exported_model_has_no_text_of_its_own(command: Callable[..., Answer], run: Run, tmp_path: Path) -> None:
    command("export", run.path, tmp_path / "out")
    code, _, told = command("eval", tmp_path / "out")
    assert (code, "name one with --data" in told) == (2, True)


def test_an_export_that_transformers_has_no_form_for_is_planned_like_its_run(
    command: Callable[..., Answer], small_text: Path, tmp_path: Path
) -> None:
    banded = recipe("gpt3:nano").config({
        "data.sources": (str(small_text),), "data.tokenizer": "byte", "model.n_layers": 2, "model.d_model": 16,
        "model.n_heads": 2, "model.context": 16, "run.batch_tokens": 64, "run.steps": 1,
        "run.out": str(tmp_path / "run"),
    })  # fmt: skip
    train(banded, reporter=SilentReporter())
    assert command("export", tmp_path / "run", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "weightdecay.json").is_file()
    plans = [json.loads(command("plan", tmp_path / where, "--json")[1])["tensors"] for where in ("run", "out")]
    assert plans[0] == plans[1] != []


def test_a_runs_settings_are_no_recipe_and_are_told_where_to_go(command: Callable[..., Answer], run: Run) -> None:
    for words in (["train", run.path / "run.toml"], ["recipes", "show", run.path / "run.toml"]):
        code, _, told = command(*words)
        assert code == 2
        assert f"holds settings, as a run's run.toml does, and no recipe: give it by --config {run.path}" in told


def test_a_lock_is_not_written_and_compared_with_at_once(command: Callable[..., Answer], tmp_path: Path) -> None:
    lock = tmp_path / "lock.json"
    code, _, told = command("plan", "gpt3:nano", "--trace", "off", "--lock", lock, "--check", lock)
    assert (code, "give one of them" in told, lock.exists()) == (2, True, False)


def test_runs_are_listed_with_where_they_stand(command: Callable[..., Answer], run: Run, tmp_path: Path) -> None:
    for name in ("finished", "deep/stopped", "damaged"):
        shutil.copytree(run.path, tmp_path / name)
    (tmp_path / "deep/stopped/summary.json").unlink()
    Run(tmp_path / "deep/stopped").forget_rows_after(3)
    (tmp_path / "damaged/run.toml").write_text("model = ")
    document = json.loads(command("runs", tmp_path, "--json")[1])
    found = {Path(each["run"]).name: each for each in document["runs"]}
    assert [each["status"] for each in document["runs"]] == ["damaged", "stopped", "finished"]
    assert (found["stopped"]["step"], found["stopped"]["steps"]) == (3, 4)
    evaluations = [row["val_loss"] for row in run.rows("eval")]
    assert found["finished"]["val_loss"] == evaluations[-1]
    assert found["finished"]["best_val_loss"] == min(evaluations)
    assert (found["finished"]["recipe"], found["finished"]["weight_decay"]) == ("llama2:nano", 0.1)
    with run.lock():
        assert json.loads(command("runs", run.path.parent, "--json")[1])["runs"][0]["status"] == "running"
    code, said, told = command("runs", tmp_path)
    assert code == 4
    assert "llama2:nano" in said
    assert "run.toml: cannot be read" in told


def test_a_run_that_cannot_be_read_has_its_row_and_its_fault(
    command: Callable[..., Answer], run: Run, tmp_path: Path
) -> None:
    """Whatever of it is damaged or lost, and none of it keeps the sound ones from being listed."""
    damages: dict[str, Callable[[Path], object]] = {
        "no-settings": lambda path: (path / "run.toml").unlink(),
        "settings": lambda path: (path / "run.toml").write_bytes(b"\xff"),
        "a-row": lambda path: (path / "metrics.jsonl").write_bytes(b'{"ki\n' + (path / "metrics.jsonl").read_bytes()),
        "no-row": lambda path: (path / "metrics.jsonl").write_text("[]\n"),
        "summary": lambda path: (path / "summary.json").write_text("{"),
    }
    for name, damage in damages.items():
        damage(Path(shutil.copytree(run.path, tmp_path / name)))
    shutil.copytree(run.path, tmp_path / "sound")
    code, said, _ = command("runs", tmp_path, "--json")
    found = {Path(each["run"]).name: each for each in json.loads(said)["runs"]}
    assert code == 4
    assert {name for name, each in found.items() if each["status"] == "damaged" and each["faults"]} == damages.keys()
    assert found["sound"]["status"] == "finished"
    code, said, told = command("runs", tmp_path)
    assert said.count("damaged") == told.count("\n") == len(damages)
    assert "metrics.jsonl: line 1 is damaged" in told


@pytest.mark.parametrize("empty", [True, False])
def test_a_folder_without_runs_and_one_that_is_not_there(
    empty: bool, command: Callable[..., Answer], tmp_path: Path
) -> None:
    code, said, told = command("runs", tmp_path if empty else tmp_path / "gone")
    assert (code, said) == ((0, "") if empty else (2, ""))
    assert ("no run in it" if empty else "no such directory") in told


def test_a_tracker_is_sent_every_row_that_is_written_and_where_a_resume_begins(
    small_text: Path, tmp_path: Path
) -> None:
    first, second = Listed(), Listed()
    made = train(small(small_text, tmp_path / "run"), reporter=SilentReporter(), tracker=first)
    rows = list(made.rows())
    assert first.events == [("start", made.path, 0), *rows, "close"]
    longer = small(small_text, tmp_path / "run", **{"run.steps": 6})
    train(longer, on_change="override", reporter=SilentReporter(), tracker=second)
    assert second.events[0] == ("start", made.path, 4)
    assert second.events[1:-1] == [row for row in made.rows() if row["step"] > 4]


def test_a_tracker_is_closed_however_a_run_ends(tmp_path: Path) -> None:
    tracker = Listed()
    with pytest.raises(RuntimeError), MetricsWriter(Run(tmp_path), tracker):
        raise RuntimeError
    assert tracker.events[-1] == "close"


def test_tensorboard_shows_the_rows_by_step(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from weightdecay.integrations.tensorboard import FOLDER, TensorBoard

    copy = Run(Path(shutil.copytree(run.path, tmp_path / "run")))
    with MetricsWriter(copy, TensorBoard()) as metrics:
        for row in run.rows():
            metrics.write(row)
    events = EventAccumulator(str(copy.path / FOLDER)).Reload()
    for kind, key in (("train", "loss"), ("train", "weight_decay"), ("eval", "val_loss")):
        wanted = [(row["step"], row[key]) for row in run.rows(kind)]
        shown = [(event.step, event.value) for event in events.Scalars(f"{kind}/{key}")]
        assert [step for step, _ in shown] == [step for step, _ in wanted]
        assert [value for _, value in shown] == pytest.approx([value for _, value in wanted])


def test_an_unknown_tracker_is_a_fault_like_others(command: Callable[..., Answer]) -> None:
    code, _, told = command("train", "gpt3:nano", "--track", "tensorbord", "--lr", "fast")
    assert code == 2
    assert "--track tensorbord: did you mean 'tensorboard'?" in told
    assert "lr" in told


def test_a_runs_picture_is_of_its_losses(run: Run) -> None:
    picture = ElementTree.fromstring((run.path / "loss.svg").read_text("utf-8"))
    text = "".join(picture.itertext())
    summary = run.summary()
    assert summary is not None
    assert f"training {summary['loss']:.3f}" in text
    assert f"held-out {summary['val_loss']:.3f}" in text
