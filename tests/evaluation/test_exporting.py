"""What an export writes beside the plain case: several files, other dtypes, little memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.commands import Command
from tests.forking import ForkServer
from weightdecay import checkpoint
from weightdecay.cli import main
from weightdecay.errors import ConfigError
from weightdecay.evaluation.exporting import export
from weightdecay.evaluation.trained import load
from weightdecay.models import huggingface
from weightdecay.models.decoder import GPT
from weightdecay.recipes.schema import recipe
from weightdecay.recipes.settings import TrainConfig
from weightdecay.runs import Run
from weightdecay.training.progress import SilentReporter
from weightdecay.training.trainer import train


def small(text: Path, out: Path, name: str = "llama2:nano", **values: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "data.sources": (str(text),), "data.tokenizer": "bpe:300", "model.n_layers": 2, "model.d_model": 32,
        "model.n_heads": 4, "model.context": 16, "run.batch_tokens": 128, "run.steps": 2, "run.out": str(out),
    }  # fmt: skip
    return recipe(name).config(settings | {key.replace("__", "."): value for key, value in values.items()})


@pytest.fixture(scope="module")
def run(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(small(small_text, tmp_path_factory.mktemp("run") / "llama"), reporter=SilentReporter())


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load(run, print).model.tensors()


def read(path: Path, notes: list[str] | None = None) -> dict[str, torch.Tensor]:
    report = notes.append if notes is not None else print
    return huggingface.read_weights(path, huggingface.read_config(path), report)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_file_is_larger_than_asked_unless_one_tensor_is(run: Run, tmp_path: Path, dtype: str) -> None:
    limit = 30_000
    made = export(run, tmp_path / "out", print, shard_bytes=limit, dtype=dtype)
    assert len(made.files) > 2
    assert made.files == [f"model-{n:05}-of-{len(made.files):05}.safetensors" for n in range(1, len(made.files) + 1)]
    index = json.loads((made.path / "model.safetensors.index.json").read_text())
    seen: dict[str, str] = {}
    total = 0
    for name in made.files:
        with safe_open(made.path / name, "pt") as file:
            sizes = {key: file.get_tensor(key).nbytes for key in file.keys()}  # noqa: SIM118  # not a dict
        assert sum(sizes.values()) <= limit or len(sizes) == 1
        seen |= dict.fromkeys(sizes, name)
        total += sum(sizes.values())
    assert index == {"metadata": {"total_size": total}, "weight_map": dict(sorted(seen.items()))}


@pytest.mark.parametrize("name", ["llama2:nano", "palm:nano"])
def test_files_of_weights_are_put_together_again_bit_for_bit(name: str, small_text: Path, tmp_path: Path) -> None:
    shape = {"model__n_kv_heads": 4, "model__head_dim": 8, "model__d_ff": 64} if name == "palm:nano" else {}
    made = train(small(small_text, tmp_path / "run", name, **shape), reporter=SilentReporter())
    out = export(made, tmp_path / "out", print, shard_bytes=10_000)
    assert len(out.files) > 2
    before, after = weights(made), read(out.path)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.transformers
def test_transformers_loads_several_files_and_generates_with_the_settings(run: Run, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    one, several = export(run, tmp_path / "one", print), export(run, tmp_path / "more", print, shard_bytes=20_000)
    ids = torch.tensor([[1, 2, 3]])
    logits, drawn = [], []
    for made in (one, several):
        model = transformers.AutoModelForCausalLM.from_pretrained(made.path).eval()
        with torch.no_grad():
            logits.append(model(input_ids=ids).logits)
        drawn.append(model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False))
        end = load(run, print).tokenizer.end_of_text_id
        settings = model.generation_config
        assert settings.eos_token_id == settings.bos_token_id == settings.pad_token_id == end
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(drawn[0], drawn[1])


@pytest.mark.transformers
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_in_fewer_bits_are_the_rounded_ones_and_training_says_what_they_become(
    run: Run, small_text: Path, tmp_path: Path, dtype: str
) -> None:
    transformers = pytest.importorskip("transformers")
    made = export(run, tmp_path / "out", print, dtype=dtype)
    kind = getattr(torch, dtype)
    assert made.remark == f"the weights are rounded to {dtype}, the checkpoint's are float32"
    assert transformers.AutoModelForCausalLM.from_pretrained(made.path, dtype="auto").dtype == kind
    notes: list[str] = []
    after = read(made.path, notes)
    assert f"weights in {dtype} become float32" in notes[0]
    assert all(torch.equal(after[name], weight.to(kind).float()) for name, weight in weights(run).items())
    config = small(
        small_text, tmp_path / "on", run__init_from=str(made.path), run__steps=1,
        data__tokenizer=str(made.path / "tokenizer.json"),
    )  # fmt: skip
    further = train(config, reporter=SilentReporter())
    assert json.loads((further.path / "plan.json").read_text()) == json.loads((run.path / "plan.json").read_text())


def test_what_a_dtype_cannot_hold_is_refused_with_every_tensor(run: Run, tmp_path: Path) -> None:
    copy = Run(tmp_path / "copy")
    found = checkpoint.newest_good(run.checkpoints, print)
    assert found
    tensors = load_file(found.path / checkpoint.MODEL)
    tensors["norm.weight"][3] = 1e5
    tensors["head.weight"][0, 0] = -7e4
    checkpoint.save(copy.checkpoints, 1, model=tensors, optimizer={"a": torch.ones(1)}, state={})
    for name in ("run.toml", "tokenizer.json"):
        (copy.path / name).write_text((run.path / name).read_text())
    with pytest.raises(ConfigError) as caught:
        export(copy, tmp_path / "out", print, dtype="float16")
    assert sorted(caught.value.faults) == [
        "head.weight: holds 70000, which float16 cannot: give another dtype",
        "norm.weight: holds 100000, which float16 cannot: give another dtype",
    ]
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    assert export(copy, tmp_path / "out", print, dtype="bfloat16").dtype == "bfloat16"


def test_the_command_takes_sizes_and_dtypes_and_refuses_others_together(
    run: Run, tmp_path: Path, weightdecay: Command
) -> None:
    wrong = weightdecay("export", run.path, tmp_path / "out", "--dtype", "bfloat61", "--shard-size", "lots")
    assert wrong.returncode == 2
    assert "did you mean 'bfloat16'" in wrong.stderr
    assert "--shard-size lots: must be a size over 0 like 5GB" in wrong.stderr
    done = weightdecay("export", run.path, tmp_path / "out", "--dtype", "bfloat16", "--shard-size", "20 kb", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["dtype"] == "bfloat16"
    assert len(document["files"]) > 1


@pytest.mark.long
def test_a_large_model_is_exported_in_little_memory(run: Run, tmp_path: Path) -> None:
    """Peaks of private memory, looked at every millisecond: 320 MB of weights in files of 20 MB, and a tiny model."""
    config = run.config().replace(model__n_layers=40, model__d_model=512, model__n_heads=8, model__n_kv_heads=8,
                                  model__head_dim=64, model__d_ff=768)  # fmt: skip
    large = Run(tmp_path / "large")
    shapes = GPT(config.model).tensors()
    tensors = {name: torch.full_like(tensor, 0.5) for name, tensor in shapes.items()}
    assert sum(tensor.nbytes for tensor in tensors.values()) > 300e6
    checkpoint.save(large.checkpoints, 1, model=tensors, optimizer={"a": torch.ones(1)}, state={})
    large.write_config(config)
    (large.path / "tokenizer.json").write_text((run.path / "tokenizer.json").read_text())
    peaks = [peak_of_export(one.path, tmp_path / f"out-{index}") for index, one in enumerate((run, large))]
    assert peaks[1] - peaks[0] < 100e6


def peak_of_export(run: Path, out: Path) -> float:
    """The most private memory that the command had, in bytes."""
    command = [sys.executable, "-m", "weightdecay", "export", str(run), str(out), "--shard-size", "20MB"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        found = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")]
        peak = max(peak, *(1024 * float(kilobytes) for kilobytes in found), 0.0)
        time.sleep(0.001)
    assert process.returncode == 0
    assert list(out.glob("model*.safetensors"))
    return peak


def export_to_little_room(run: str, out: str) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    main(["export", run, out])


def test_a_disk_that_refuses_leaves_nothing(forks: ForkServer, run: Run, tmp_path: Path) -> None:
    process = forks.call(export_to_little_room, str(run.path), str(tmp_path / "out"))
    said, _ = process.communicate()
    assert process.returncode == 1, said
    assert "out: cannot write" in said
    assert list(tmp_path.iterdir()) == []


def test_files_from_elsewhere_are_read_too(run: Run, tmp_path: Path) -> None:
    """An index that names files otherwise, as other tools do."""
    made = export(run, tmp_path / "out", print)
    tensors = load_file(made.path / "model.safetensors")
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, made.path / file)
    weight_map = {name: file for file, part in halves.items() for name in part}
    (made.path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (made.path / "model.safetensors").unlink()
    after = read(made.path)
    assert all(torch.equal(after[name], weight) for name, weight in weights(run).items())
