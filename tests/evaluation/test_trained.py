"""A trained model is the same in a run, in one of its checkpoints and where it was exported to."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightdecay import checkpoint
from weightdecay.data.prepare import prepare_text
from weightdecay.data.tokenizer import ByteTokenizer
from weightdecay.errors import ConfigError, DamagedError
from weightdecay.evaluation.exporting import export
from weightdecay.evaluation.loss import loss_on, own_text, text_of
from weightdecay.evaluation.sampling import continuation
from weightdecay.evaluation.trained import find, load
from weightdecay.models.generate import _nucleus, generate
from weightdecay.recipes.schema import recipe
from weightdecay.recipes.settings import DataSettings
from weightdecay.runs import Run
from weightdecay.training.progress import SilentReporter
from weightdecay.training.trainer import train


@pytest.fixture(scope="module")
def run(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    settings: dict[str, Any] = {
        "data.sources": (str(small_text),), "data.tokenizer": "bpe:300", "model.n_layers": 2, "model.d_model": 32,
        "model.n_heads": 4, "model.context": 16, "run.batch_tokens": 128, "run.steps": 6, "run.eval_every": 2,
        "run.checkpoint_every": 2, "run.keep": 9, "optimizer.lr": 0.02,
        "run.out": str(tmp_path_factory.mktemp("runs") / "llama"),
    }  # fmt: skip
    return train(recipe("llama2:nano").config(settings), reporter=SilentReporter())


@pytest.fixture
def copy(run: Run, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(run.path, tmp_path / "copy")))


def tensors(path: Path, which: str = "newest") -> dict[str, torch.Tensor]:
    return load(find(path, print, which), print).model.tensors()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_is_chosen_by_its_step_as_the_best_or_by_its_path(run: Run) -> None:
    of_step = {one.step: tensors(one.path) for one in checkpoint.checkpoints(run.checkpoints)}
    assert set(of_step) == {2, 4, 6}
    assert not same(of_step[2], of_step[6])
    for step in of_step:
        assert same(of_step[step], tensors(run.path, str(step)))
        assert find(run.path, print, str(step)).step == step
    assert find(run.path, print).step == 6
    champion = checkpoint.best(run.checkpoints)
    assert champion is not None
    assert find(run.path, print, "best").path == champion.path


@pytest.mark.parametrize("which", ["newest", "best", "4"])
def test_what_was_exported_is_the_model_that_was_chosen(which: str, run: Run, tmp_path: Path) -> None:
    made = export(run.path, tmp_path / "out", print, which=which)
    assert same(tensors(made.path), tensors(run.path, which))
    again = export(made.path, tmp_path / "again", print)
    assert same(tensors(again.path), tensors(run.path, which))
    assert (made.step, again.step) == (find(run.path, print, which).step, None)
    drawn = [
        "".join(continuation(load(stored, print), "7 sq", max_tokens=20, temperature=1.0, top_k=0, seed=3))
        for stored in (find(run.path, print, which), find(made.path, print))
    ]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("prompt", ["", "7 sq"])
def test_a_prompt_is_read_behind_an_end_of_text_token_as_in_training(prompt: str, run: Run) -> None:
    """Which a tokenizer of transformers does not put there: its greedy text is another unless somebody does."""
    trained = load(find(run.path, print), print)
    seen: list[list[int]] = []
    trained.model.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten().tolist()))
    "".join(continuation(trained, prompt, max_tokens=1, temperature=0.0, top_k=0, seed=0))
    assert seen[0] == [trained.tokenizer.end_of_text_id, *trained.tokenizer.encode(prompt)]


def test_a_model_without_a_counterpart_in_transformers_is_taken_all_the_same(small_text: Path, tmp_path: Path) -> None:
    config = recipe("gpt3:nano").config({
        "data.sources": (str(small_text),), "data.tokenizer": "byte", "model.n_layers": 2, "model.d_model": 32,
        "model.n_heads": 2, "model.context": 16, "run.batch_tokens": 64, "run.steps": 2, "run.out": str(tmp_path / "r"),
    })  # fmt: skip
    made = export(train(config, reporter=SilentReporter()), tmp_path / "out", print)
    assert made.architecture == ""
    trained = load(find(made.path, print), print)
    assert "".join(continuation(trained, "a", max_tokens=5, temperature=0.0, top_k=0, seed=0)) is not None
    assert same(trained.model.tensors(), tensors(tmp_path / "r"))


@pytest.mark.parametrize(
    ("which", "words"),
    [("3", "none of that step, but of 2, 4, 6"), ("oldest", "newest, best, or the number"), ("-1", "newest, best")],
)
def test_a_checkpoint_that_is_not_there_is_named_with_those_that_are(which: str, words: str, run: Run) -> None:
    with pytest.raises(ConfigError, match=words):
        find(run.path, print, which)


def test_what_holds_no_model_is_refused_with_what_can_be_given(run: Run, tmp_path: Path) -> None:
    (tmp_path / "ckpt.pt").write_bytes(b"")
    for path in (tmp_path, tmp_path / "gone", tmp_path / "ckpt.pt", run.checkpoints):
        with pytest.raises(ConfigError, match=r"run\.toml.*manifest\.json.*config\.json"):
            find(path, print)
    with pytest.raises(ConfigError, match="no run with checkpoints"):
        find(checkpoint.of_step(run.checkpoints, 2).path, print, "best")


def test_a_run_does_not_speak_through_another_tokenizer(copy: Run) -> None:
    copy.tokenizer_path.write_text(ByteTokenizer().to_json())
    for path in (copy.path, copy.checkpoints / "step-00000004"):
        with pytest.raises(DamagedError, match=r"tokenizer\.json: its SHA-256 is .* the run was trained with"):
            load(find(path, print), print)


def test_a_damaged_checkpoint_is_passed_over_only_where_the_newest_good_one_was_asked_for(copy: Run) -> None:
    weights = checkpoint.of_step(copy.checkpoints, 6).path / checkpoint.MODEL
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    said: list[str] = []
    assert find(copy.path, said.append).step == 4
    assert "step 6 is damaged" in said[0]
    for path, which in ((copy.path, "6"), (weights.parent, "newest")):
        with pytest.raises(DamagedError, match="SHA-256"):
            find(path, print, which)


def test_the_loss_on_the_runs_own_text_is_the_one_it_logged_bit_for_bit(run: Run) -> None:
    logged = {row["step"]: row for row in run.rows("eval")}
    dtype = getattr(torch, run.config().run.dtype)
    for step in (2, 6):
        trained = load(find(run.path, print, str(step)), print)
        found = loss_on(trained, own_text(run, trained.tokenizer), max_tokens=run.config().run.eval_tokens, dtype=dtype)
        assert (found.loss, found.tokens) == (logged[step]["val_loss"], logged[step]["val_tokens"])
        assert found.bits_per_byte == logged[step]["val_bits_per_byte"]
        assert found.perplexity == logged[step]["val_perplexity"]


def test_the_loss_on_any_text_is_the_mean_over_its_tokens(run: Run, tmp_path: Path) -> None:
    text = "3 squared is 9, and 3 cubed is 27.\n" * 9
    (tmp_path / "text.txt").write_text(text)
    trained = load(find(run.path, print), print)
    judged = text_of(DataSettings(sources=(str(tmp_path / "text.txt"),)), trained.tokenizer)
    found = loss_on(trained, judged)
    end = trained.tokenizer.end_of_text_id
    ids = [end, *trained.tokenizer.encode(text), end]
    nats = 0.0
    for start in range(0, len(ids) - 1, 16):
        window, targets = ids[start : start + 16], ids[start + 1 : start + 17]
        with torch.inference_mode():
            logits = trained.model(torch.tensor([window[: len(targets)]]))[0]
        nats += float(torch.nn.functional.cross_entropy(logits, torch.tensor(targets), reduction="sum"))
    assert found.tokens == len(ids) - 1
    assert found.loss == pytest.approx(nats / found.tokens, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / len(text), rel=1e-5)
    part = loss_on(
        trained, text_of(DataSettings(sources=(str(tmp_path / "text.txt"),)), trained.tokenizer, 40), max_tokens=40
    )
    assert part.tokens == 40
    lengths = trained.tokenizer.byte_lengths()
    assert lengths is not None
    assert part.bits_per_byte == pytest.approx(part.loss * 40 / math.log(2) / lengths[ids[1:41]].sum())


def test_prepared_data_of_another_tokenizer_means_nothing_to_a_model(
    run: Run, small_text: Path, tmp_path: Path
) -> None:
    trained = load(find(run.path, print), print)
    for spec, same_tokenizer in (("byte", False), (str(run.tokenizer_path), True)):
        made = prepare_text([str(small_text)], tmp_path / str(same_tokenizer), spec)
        settings = DataSettings(sources=(str(made.path),))
        if same_tokenizer:
            assert text_of(settings, trained.tokenizer).part == "held out"
        else:
            with pytest.raises(ConfigError, match="another tokenizer"):
                text_of(settings, trained.tokenizer)


def test_the_runs_own_text_is_the_one_it_was_trained_on_or_none(
    copy: Run, small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = Path(shutil.copytree(small_text, tmp_path / "text"))
    run_toml = copy.path / "run.toml"
    run_toml.write_text(run_toml.read_text().replace(str(small_text), str(moved)))
    tokenizer = find(copy.path, print).tokenizer()
    kept = own_text(copy, tokenizer)  # from the cache
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))
    again = own_text(copy, tokenizer)
    assert (again.sha256, again.tokens.tolist()) == (kept.sha256, kept.tokens.tolist())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "third cache"))
    (moved / "part0.txt").write_text("something else\n")
    with pytest.raises(ConfigError, match=r"corpus_sha256 .* name a text with --data"):
        own_text(copy, tokenizer)
    run_toml.write_text(run_toml.read_text().replace(str(moved), "-"))
    with pytest.raises(ConfigError, match=r"came through stdin .*--data"):
        own_text(copy, tokenizer)


probabilities = st.lists(st.floats(0.001, 1), min_size=1, max_size=30).map(
    lambda raw: torch.tensor(raw, dtype=torch.float64) / sum(raw)
)


@given(p=probabilities, top_p=st.floats(0.01, 1))
def test_a_nucleus_is_the_fewest_likeliest_tokens_that_reach_the_sum(p: torch.Tensor, top_p: float) -> None:
    kept = _nucleus(p, top_p)
    chosen = kept > 0
    assert torch.equal(kept[chosen], p[chosen])
    assert kept.sum() >= min(top_p, float(p.sum())) - 1e-9
    assert kept.sum() - kept[chosen].min() < top_p + 1e-9
    if not chosen.all():
        assert p[~chosen].max() <= p[chosen].min()


def test_a_tiny_top_p_draws_what_no_temperature_draws_and_wrong_ones_are_refused(run: Run) -> None:
    trained = load(find(run.path, print), print)
    greedy = list(generate(trained.model, [1], max_tokens=8, temperature=0))
    assert list(generate(trained.model, [1], max_tokens=8, temperature=1.5, top_p=1e-9, seed=5)) == greedy
    assert list(generate(trained.model, [1], max_tokens=8, seed=5)) == list(
        generate(trained.model, [1], max_tokens=8, seed=5, top_p=1.0)
    )
    for top_p in (0.0, -1.0, 1.5, math.nan):
        with pytest.raises(ConfigError, match=re.escape(f"top-p {top_p}")):
            list(generate(trained.model, [1], max_tokens=1, top_p=top_p))
