"""From a run to a directory of transformers, and on from there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.commands import Command
from weightdecay.data.prepare import prepare_text
from weightdecay.errors import ConfigError, DamagedError
from weightdecay.evaluation.exporting import export
from weightdecay.evaluation.trained import load
from weightdecay.models.decoder import GPT
from weightdecay.models.loading import load_weights
from weightdecay.recipes.schema import recipe
from weightdecay.recipes.settings import TrainConfig
from weightdecay.runs import Run
from weightdecay.training.pretrained import with_pretrained_shape
from weightdecay.training.progress import SilentReporter
from weightdecay.training.trainer import train


class Notes(SilentReporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def small(text: Path, out: Path, name: str = "llama2:nano", **values: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "data.sources": (str(text),), "data.tokenizer": "bpe:300", "model.n_layers": 2, "model.d_model": 32,
        "model.n_heads": 4, "model.context": 16, "run.batch_tokens": 128, "run.steps": 8, "run.out": str(out),
    }  # fmt: skip
    return recipe(name).config(settings | {key.replace("__", "."): value for key, value in values.items()})


@pytest.fixture(scope="module")
def run(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(small(small_text, tmp_path_factory.mktemp("run") / "llama"), reporter=SilentReporter())


@pytest.fixture(scope="module")
def exported(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = export(run, tmp_path_factory.mktemp("export") / "hf", print)
    assert (made.architecture, made.remark, made.step) == ("LlamaForCausalLM", "", 8)
    return made.path


@pytest.mark.transformers
def test_transformers_loads_an_exported_run_with_its_tokenizer_and_logits(run: Run, exported: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    trained = load(run, print)
    text = "7 squared is 49"
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert ids[0].tolist() == trained.tokenizer.encode(text)
    assert tokenizer.eos_token_id == trained.tokenizer.end_of_text_id == theirs.config.eos_token_id
    with torch.no_grad():
        torch.testing.assert_close(theirs(input_ids=ids).logits, trained.model(ids), rtol=1e-4, atol=1e-5)


def test_a_training_goes_on_from_an_exported_directory_under_another_recipe(
    run: Run, exported: Path, small_text: Path, tmp_path: Path
) -> None:
    """The shape comes from there, the optimizer and the decay from the recipe."""
    config = small(
        small_text, tmp_path / "on", "gpt3:nano", run__init_from=str(exported), run__steps=3,
        data__tokenizer=str(exported / "tokenizer.json"), optimizer__lr=1e-5,
    )  # fmt: skip
    further = train(config, reporter=SilentReporter())
    assert further.config().model.as_function() == run.config().model.as_function()
    assert further.config().optimizer.beta2 == 0.95
    first = next(iter(further.rows("train")))
    last = [*run.rows("train")][-1]
    assert abs(first["loss"] - last["loss"]) < 0.5
    tensors = json.loads((further.path / "plan.json").read_text())["tensors"]
    assert {tensor["name"]: tensor["multiplier"] for tensor in tensors}["blocks.0.attention.qkv.weight"] == 1.0


def test_export_and_start_change_no_bit(run: Run, exported: Path, small_text: Path, tmp_path: Path) -> None:
    config = small(
        small_text, tmp_path / "on", run__init_from=str(exported), run__steps=1, optimizer__lr=0.0,
        data__tokenizer=str(exported / "tokenizer.json"),
    )  # fmt: skip
    further = train(config, reporter=SilentReporter())
    before, after = (dict(load(one, print).model.named_parameters()) for one in (run, further))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_another_tokenizer_than_the_datas_is_refused(exported: Path, small_text: Path, tmp_path: Path) -> None:
    config = small(small_text, tmp_path / "on", run__init_from=str(exported), data__tokenizer="byte")
    with pytest.raises(ConfigError, match=r"speak another tokenizer than the data: give --tokenizer .*tokenizer\.json"):
        train(config, reporter=SilentReporter())


@pytest.mark.parametrize("source", ["exported", "run"])
def test_beside_prepared_data_the_advice_is_one_that_can_be_followed(
    source: str, run: Run, exported: Path, small_text: Path, tmp_path: Path
) -> None:
    """--tokenizer is refused there, so that the text has to be prepared once more."""
    prepared = prepare_text([str(small_text)], tmp_path / "prepared", "bpe:280").path
    start = exported if source == "exported" else run.path
    config = small(prepared, tmp_path / "on", run__init_from=str(start))
    with pytest.raises(ConfigError) as refused:
        train(config, reporter=SilentReporter())
    [advice] = re.findall(r"weightdecay data prepare SRC… --tokenizer (\S+) --out DIR", str(refused.value))
    again = prepare_text([str(small_text)], tmp_path / "again", advice).path
    train(small(again, tmp_path / "on", run__init_from=str(start)), reporter=SilentReporter())


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(
    exported: Path, small_text: Path, tmp_path: Path
) -> None:
    config = small(small_text, tmp_path / "on", run__init_from=str(exported), data__tokenizer="bpe:400")
    with pytest.raises(ConfigError, match="has 300 tokens, the data's tokenizer"):
        train(config, reporter=SilentReporter())


def test_a_padded_vocabulary_and_lower_precision_are_taken_and_said(
    exported: Path, small_text: Path, tmp_path: Path
) -> None:
    padded = tmp_path / "padded"
    padded.mkdir()
    tensors = load_file(exported / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat((tensors[name], torch.zeros(20, 32)))
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, padded / "model.safetensors")
    document = json.loads((exported / "config.json").read_text()) | {"vocab_size": 320}
    (padded / "config.json").write_text(json.dumps(document))
    reporter = Notes()
    tokenizer = str(exported / "tokenizer.json")
    config = small(small_text, tmp_path / "on", run__init_from=str(padded), run__steps=1, data__tokenizer=tokenizer)
    further = train(config, reporter=reporter)
    assert further.config().model.vocab_size == 320
    said = "\n".join(reporter.notes)
    assert "weights in bfloat16 become float32" in said
    assert "has no tokenizer.json" in said


def test_a_directory_with_wrong_tensors_is_refused_with_all_their_names(
    exported: Path, small_text: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    tensors = load_file(exported / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["model.extra"] = torch.ones(2)
    save_file(tensors, broken / "model.safetensors")
    (broken / "config.json").write_text((exported / "config.json").read_text())
    (broken / "tokenizer.json").write_text((exported / "tokenizer.json").read_text())
    config = small(
        small_text, tmp_path / "on", run__init_from=str(broken), data__tokenizer=str(exported / "tokenizer.json")
    )
    with pytest.raises(DamagedError) as caught:
        train(config, reporter=SilentReporter())
    assert "model.norm.weight" in str(caught.value)
    assert "model.extra" in str(caught.value)
    assert not (tmp_path / "on" / "checkpoints").exists()


@pytest.mark.parametrize("name", ["palm:nano", "grok1:nano", "gpt3:nano"])
def test_a_model_without_a_counterpart_says_so_and_comes_back_from_our_format(
    name: str, small_text: Path, tmp_path: Path
) -> None:
    shape = {"model__n_kv_heads": 4, "model__head_dim": 8, "model__d_ff": 64}
    made = train(small(small_text, tmp_path / "run", name, run__steps=2, **shape), reporter=SilentReporter())
    out = export(made, tmp_path / "out", print)
    assert out.architecture == ""
    assert "transformers has no counterpart" in out.remark
    config = small(
        small_text, tmp_path / "on", "llama2:nano", run__init_from=str(out.path), run__steps=1,
        data__tokenizer=str(out.path / "tokenizer.json"),
    )  # fmt: skip
    further = train(config, reporter=SilentReporter())
    assert further.config().model.as_function() == made.config().model.as_function()
    model = GPT(made.config().model)
    load_weights(model, dict(load(made, print).model.named_parameters()), out.path)


def test_the_command_exports_and_refuses_a_directory_that_holds_something(
    run: Run, tmp_path: Path, weightdecay: Command
) -> None:
    done = weightdecay("export", run.path, tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "schema_version": 1, "out": str(tmp_path / "out"), "step": 8, "architecture": "LlamaForCausalLM", "remark": "",
        "dtype": "float32", "files": ["model.safetensors"],
    }  # fmt: skip
    again = weightdecay("export", run.path, tmp_path / "out")
    assert again.returncode == 2
    assert "not an empty directory" in again.stderr
    assert weightdecay("export", tmp_path / "nowhere", tmp_path / "new").returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("absent", "no such directory: give a run, a checkpoint or a Hugging Face directory"),
        ("empty", r"neither a run \(run.toml\) nor a checkpoint"),
        ("no weights", "no weights: neither model.safetensors"),
    ],
)
def test_a_start_from_nothing_is_refused_before_any_work(
    broken: str, words: str, exported: Path, small_text: Path, tmp_path: Path
) -> None:
    start = tmp_path / "start"
    if broken != "absent":
        start.mkdir()
    if broken == "no weights":
        (start / "config.json").write_text((exported / "config.json").read_text())
    notes = Notes()
    with pytest.raises(ConfigError, match=words):
        train(small(small_text, tmp_path / "out", run__init_from=str(start)), reporter=notes)
    assert not notes.notes  # not even the data was read
    assert not (tmp_path / "out" / "run.toml").exists()


def test_how_a_size_was_scaled_is_not_said_of_another_shape(run: Run, exported: Path, small_text: Path) -> None:
    changed = small(small_text, run.path).scaling
    assert changed.endswith("; given anew: model.attention.n_heads, model.context, model.d_model, model.n_layers")
    assert changed.startswith(recipe("llama2:nano").scaling)
    assert with_pretrained_shape(small(small_text, run.path, run__init_from=str(exported))).scaling == ""
