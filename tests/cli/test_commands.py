from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import SMALL, Command
from tests.forking import ForkServer
from weightdecay.cli import main

COMMANDS = ("train", "sample", "eval", "export", "runs", "plan", "convert", "data", "verify", "forensics", "recipes")


@pytest.fixture(scope="module")
def run_directory(small_text: Path, tmp_path_factory: pytest.TempPathFactory, weightdecay: Command) -> Path:
    out = tmp_path_factory.mktemp("runs") / "a [red]run[/red]"
    done = weightdecay("train", "gpt3:nano", "--data", small_text, "--steps", "12", "--out", out, *SMALL, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["run"] == str(out)
    assert document["summary"]["status"] == "finished"
    assert "step 12/12" in done.stderr
    return out


# Each command in a fork of a process that has imported no more than the command line.
HELP = """
import os, sys
from weightdecay.cli import main
for command in ("", *sys.argv[1:]):
    if os.fork() == 0:
        try:
            main([*command.split(), "--help"])
        except SystemExit as done:
            assert done.code == 0
        loaded = {"torch", "numpy", "pydantic", "rich.progress", "tokenizers"} & set(sys.modules)
        print("help of", command, "loaded", sorted(loaded), flush=True)
        os._exit(0)
    os.wait()
"""


def test_help_imports_neither_torch_nor_numpy() -> None:
    done = subprocess.run([sys.executable, "-c", HELP, *COMMANDS], capture_output=True, text=True, check=True)
    helps = done.stdout.split("usage: weightdecay")[1:]
    assert len(helps) == 1 + len(COMMANDS), done.stderr
    for command, said in zip(("", *COMMANDS), helps, strict=True):
        assert said.endswith(f"help of {command} loaded []\n")


def test_the_flags_of_train_are_those_that_are_promised(weightdecay: Command) -> None:
    text = weightdecay("train", "--help").stdout
    promised = (
        "--data --tokenizer --steps --tokens --batch-tokens --context --lr --weight-decay --policy --rule --dtype "
        "--compile --seed --out --checkpoint-every --keep --resume --init-from --nproc --set --dry-run --json"
    )
    for flag in promised.split():
        assert re.search(rf"{flag}\b", text), flag


def test_every_fault_of_a_command_line_is_told_at_once(weightdecay: Command, tmp_path: Path) -> None:
    done = weightdecay(
        "train", "gtp3:nano", "--lr", "fast", "--dtype", "float61", "--resume", "maybe", "--set", "model.n_laers=3",
        "--set", "nonsense", "--out", tmp_path / "run", "--policy", "defalt", "--rule", "decopled", "--tokenizer",
        "bytes", "--data", tmp_path / "nowhere",
    )  # fmt: skip
    assert done.returncode == 2
    faults = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(faults) == 10
    for expected in (
        "did you mean 'default'",
        "did you mean 'decoupled'",
        "did you mean 'byte'",
        "nowhere: no such file or folder",
        "did you mean 'gpt3'",
        "must be a number",
        "'float32'",
        "--resume maybe",
        "model.n_layers",
        "KEY=VALUE",
    ):
        assert expected in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "run").exists()


def test_names_that_are_not_there_are_told_together_too_and_no_directory_is_made(
    weightdecay: Command, tmp_path: Path
) -> None:
    wrong = ["--policy", "defalt", "--rule", "decopled", "--tokenizer", "bytes", "--data", tmp_path / "nowhere"]
    done = weightdecay("train", "gpt3:nano", *wrong, "--out", tmp_path / "runs" / "new")
    assert done.returncode == 2
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 4
    assert not (tmp_path / "runs" / "new").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "0"], "the run's length is missing: give --steps or --tokens, at least 1"),
        (["--weight-decay", "nan"], "optimizer.weight_decay = 'nan': must be a number of at least 0, or auto"),
        (["--out", b"caf\xe9"], "run.out = 'caf\\udce9': must be UTF-8 text"),
    ],
)
def test_values_that_look_like_others_are_refused(weightdecay: Command, more: list[str], message: str) -> None:
    done = weightdecay("train", "gpt3:nano", *map(os.fsdecode, more), "--dry-run")
    assert (done.returncode, done.stderr) == (2, f"error: {message}\n")


def test_a_name_that_would_command_a_terminal_is_shown_instead(
    weightdecay: Command, small_text: Path, tmp_path: Path
) -> None:
    """Paths are resolved by the operating system alone: `../` is where it says, and markup is a name like others."""
    (tmp_path / "a").mkdir()
    out = tmp_path / "a" / ".." / "\x1b[31mrun[" / "red]"
    done = weightdecay("train", "gpt3:nano", "--data", small_text, "--steps", "2", "--out", out, *SMALL)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "run: " in done.stdout
    assert "\\x1b[31mrun[/red]" in done.stdout
    assert (tmp_path / "\x1b[31mrun[" / "red]" / "summary.json").is_file()
    long = weightdecay("train", "gpt3:nano", "--data", small_text, "--steps", "2", "--out", tmp_path / ("n" * 300))
    assert long.returncode == 2
    assert long.stderr.endswith("(File name too long): give another --out\n")
    damaged = weightdecay("sample", tmp_path / "\x1b[31mnone")
    assert damaged.stderr.startswith(f"error: {tmp_path}/\\x1b[31mnone: no such directory: give a run (run.toml)")


def test_json_faults_are_a_document_too(weightdecay: Command) -> None:
    done = weightdecay("train", "gpt3:nano", "--lr", "-1", "--seed", "x", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["faults"] == [
        "optimizer.lr = '-1': must be a number of at least 0",
        "run.seed = 'x': must be a whole number from 0 to below 2^64",
    ]


def test_unknown_flags_are_all_named(weightdecay: Command) -> None:
    done = weightdecay("train", "--learning-rate", "1", "--weigth-decay", "2")
    assert done.returncode == 2
    assert "--learning-rate" in done.stderr
    assert "--weigth-decay" in done.stderr


def test_a_dry_run_says_everything_and_writes_nothing(weightdecay: Command, small_text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["train", "gpt3:nano", "--data", small_text, "--steps", "20", "--out", out, *SMALL, "--dry-run"]
    text = weightdecay(*arguments)
    assert text.returncode == 0, text.stderr
    for expected in (
        "decay plan: policy default, λ = 0.1",
        "embedding.weight",
        "6 documents",
        "held out, hash",
        "parameters, recipe gpt3:nano; 20 steps of 256 tokens, 5,120 in all",
        "the published λ is kept",
        "Σ of the decay per step",
        "does next to nothing in this run",
        "would matter: 1/(η·T·τ)",
        "weightdecay advise says what speaks for it",
        '[optimizer] name = "adamw"',
        "beta2 = 0.95",
    ):
        assert expected in " ".join(text.stdout.split()), expected
    document = json.loads(weightdecay(*arguments, "--json").stdout)
    assert document["decay"]["matters"] is False
    assert document["decay"]["total"] == pytest.approx(6e-3 * 0.1 * (20 + 1) / 2, rel=0.1)
    assert not out.exists()


def test_auto_says_which_weight_decay_it_takes_and_why(weightdecay: Command, small_text: Path) -> None:
    arguments = ["train", "gpt3:nano", "--data", small_text, "--steps", "50", *SMALL, "--dry-run", "--json"]
    plain = json.loads(weightdecay(*arguments).stdout)
    assert plain["config"]["optimizer.weight_decay_source"] == ""
    assert plain["decay"]["weight_decay_that_matters"] == pytest.approx(1 / (6e-3 * 50 * 1.084 * 20**-0.527))
    chosen = json.loads(weightdecay(*arguments, "--weight-decay", "auto").stdout)
    assert chosen["config"]["optimizer.weight_decay"] == 0.1
    assert "nearest published runs (" in chosen["config"]["optimizer.weight_decay_source"]
    assert chosen["origins"]["optimizer.weight_decay_source"] == "worked out"


def test_a_published_size_can_be_described_without_its_memory(weightdecay: Command, small_text: Path) -> None:
    done = weightdecay("train", "gpt3:175b", "--data", small_text, "--tokenizer", "byte", "--context", "64", "--tokens",
                       "300e9", "--dry-run", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"] == pytest.approx(173.95e9, rel=1e-3)


def test_a_sample_is_text_that_its_seed_decides(weightdecay: Command, run_directory: Path) -> None:
    def draw(*more: str) -> str:
        done = weightdecay("sample", run_directory, "--prompt", "7 sq", "--max-tokens", "30", *more)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert draw().startswith("7 sq")
    assert draw("--seed", "1") == draw("--seed", "1") != draw("--seed", "2")
    document = json.loads(draw("--json", "--seed", "1"))
    assert document["prompt"] + document["continuation"] + "\n" == draw("--seed", "1")
    assert document["step"] == 12


def test_faults_of_a_sample_are_told_at_once(weightdecay: Command, run_directory: Path, tmp_path: Path) -> None:
    done = weightdecay("sample", run_directory, "--temperature", "-1", "--top-k", "few", "--max-tokens", "-3")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 3
    no_text = weightdecay("sample", run_directory, "--prompt", os.fsdecode(b"\xff"))
    assert (no_text.returncode, no_text.stdout) == (2, "")
    assert "lone surrogate" in no_text.stderr
    nowhere = weightdecay("sample", tmp_path / "nowhere")
    assert nowhere.returncode == 2
    assert "no such directory" in nowhere.stderr


def test_the_plan_of_gpt2_is_the_briefs(weightdecay: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """Linear weights and embedding matrices decay; biases, LayerNorm weights and all that is 1-D do not."""
    there = weightdecay("plan", "gpt2:124m", "--json")
    assert there.returncode == 0, there.stderr
    with pytest.raises(SystemExit):
        main(["plan", "gpt2:124m", "--json"])
    assert there.stdout == capsys.readouterr().out  # the same order in every process: each hashes in a way of its own
    tensors = json.loads(there.stdout)["tensors"]
    blocks = [f"blocks.{layer}" for layer in range(12)]
    matrices = ("attention.qkv.weight", "attention.out.weight", "feedforward.up.weight", "feedforward.down.weight")
    expected = {"embedding.weight", "positions.weight", *(f"{block}.{name}" for block in blocks for name in matrices)}
    assert {tensor["name"] for tensor in tensors if tensor["multiplier"] == 1.0} == expected
    assert {tensor["multiplier"] for tensor in tensors} == {0.0, 1.0}
    assert [tensor["name"] for tensor in tensors if tensor.get("aliases")] == ["embedding.weight"]
    assert sum(_size(tensor["shape"]) for tensor in tensors) == 124_439_808


def _size(shape: list[int]) -> int:
    return shape[0] * _size(shape[1:]) if shape else 1


def test_a_plan_can_be_asked_about_one_tensor(weightdecay: Command, run_directory: Path) -> None:
    done = weightdecay("plan", run_directory, "--why", "blocks.0.attention_norm.bias")
    assert done.returncode == 0, done.stderr
    assert re.search(r"role: +bias\n", done.stdout)
    assert "λ = 0" in done.stdout
    missing = weightdecay("plan", run_directory, "--why", "blocks.0.atention_norm.bias")
    assert missing.returncode == 2
    assert "did you mean 'blocks.0.attention_norm.bias'" in missing.stderr


def test_the_run_directory_holds_what_the_design_promises(run_directory: Path) -> None:
    names = {path.name for path in run_directory.iterdir()} - {".lock"}
    assert names == {
        "run.toml", "environment.json", "plan.json", "tokenizer.json", "metrics.jsonl", "checkpoints", "summary.json",
        "loss.svg",
    }  # fmt: skip
    rows = [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()]
    first = rows[0]
    assert first["kind"] == "train"
    assert first["decay_per_step"] == pytest.approx(first["lr"] * first["weight_decay"])
    assert {"step", "tokens", "loss", "lr", "weight_decay", "penalty", "grad_norm", "tokens_per_s"} <= first.keys()
    assert {"val_loss", "val_perplexity", "val_bits_per_byte"} <= next(r for r in rows if r["kind"] == "eval").keys()
    environment = json.loads((run_directory / "environment.json").read_text())
    assert len(environment["corpus_sha256"]) == len(environment["tokenizer_sha256"]) == 64
    checkpoint = run_directory / "checkpoints/step-00000012"
    assert {path.name for path in checkpoint.iterdir()} == {
        "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json",
    }  # fmt: skip


def test_a_run_is_verified_and_told_what_a_resume_would_change(weightdecay: Command, run_directory: Path) -> None:
    sound = weightdecay("verify", run_directory)
    assert sound.returncode == 0, sound.stderr
    assert "step 12: as it was written" in sound.stdout
    asked = ["--weight-decay", "0.5", "--policy", "no-embeddings", "--set", "run.seed=3"]
    document = json.loads(weightdecay("verify", run_directory, *asked, "--json").stdout)
    possible = {row["change"].split(":")[0]: row["possible"] for row in document["changes"]}
    assert possible == {"optimizer.weight_decay": True, "optimizer.policy": True, "run.seed": False}
    assert document["resumes_from"] == 12
    assert any(line.startswith("embedding.weight: multiplier 1 → 0") for line in document["tensors"])
    assert any(line.endswith("qkv.weight: λ 0.1 → 0.5") for line in document["tensors"])
    unknown = ["--rule", "decuopled", "--policy", "defualt"]
    wrong = weightdecay("verify", run_directory, "--lr", "fast", "--set", "optimizer.lrr=1", *unknown)
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 4
    assert weightdecay("verify", run_directory, "--rule", "decuopled").returncode == 2


def test_a_damaged_checkpoint_is_found(weightdecay: Command, run_directory: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run_directory, copy)
    path = copy / "checkpoints/step-00000012/state.json"
    path.write_text(path.read_text().replace("12", "13"))
    done = weightdecay("verify", copy)
    assert done.returncode == 4
    assert "state.json: its SHA-256 is not the manifest's" in done.stdout


def test_recipes_are_listed_and_shown_with_their_sources(weightdecay: Command) -> None:
    table = weightdecay("recipes").stdout
    assert "175b" in table
    assert "unpublished" in table
    assert "lr² per step" in " ".join(table.split())
    listed = json.loads(weightdecay("recipes", "--json").stdout)
    assert {"gpt2:nano", "gpt2:124m", "gpt3:nano", "gpt3:125m"} <= {row["name"] for row in listed}
    shown = json.loads(weightdecay("recipes", "show", "gpt3:125m", "--json").stdout)
    assert shown["values"]["optimizer.weight_decay"] == {
        "value": 0.1, "status": "confirmed", "source": "paper, appendix B", "note": "",
    }  # fmt: skip
    assert "Brown et al. 2020" in weightdecay("recipes", "show", "gpt3:125m").stdout
    rows = json.loads(weightdecay("recipes", "diff", "llama2:7b", "llama2:70b", "--json").stdout)
    assert {row["key"] for row in rows} == {
        "model.attention.n_heads", "model.attention.n_kv_heads", "model.d_ff", "model.d_model", "model.n_layers",
        "optimizer.lr",
    }  # fmt: skip
    assert "1.5e-04" in (text := weightdecay("recipes", "diff", "llama2:7b", "llama2:70b").stdout) or "0.00015" in text
    wrong = weightdecay("recipes", "shwo", "gpt3")
    assert wrong.returncode == 2
    assert weightdecay("recipes", "show", "gpt5").returncode == 2


def test_data_is_prepared_inspected_and_trained_on(weightdecay: Command, small_text: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    made = weightdecay("data", "prepare", small_text, "--out", shards, "--tokenizer", "byte", "--json")
    assert made.returncode == 0, made.stderr
    document = json.loads(made.stdout)
    assert document["vocab_size"] == 257
    assert document == json.loads(weightdecay("data", "inspect", shards, "--json").stdout)
    assert "squared is" in weightdecay("data", "inspect", shards).stdout
    done = weightdecay("train", "gpt3:nano", "--data", shards, "--steps", "2", "--out", tmp_path / "run", *SMALL)
    assert done.returncode == 0, done.stderr
    assert f'tokenizer = "{shards}/tokenizer.json"' in (tmp_path / "run" / "run.toml").read_text()
    assert f"tokens ({shards}/tokenizer.json)" in " ".join(done.stdout.split())
    path = shards / "train.bin"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert weightdecay("data", "inspect", shards).returncode == 4
    nowhere = weightdecay("data", "prepare", tmp_path / "none", "--encoding-errors", "ignore", "--tokenizer", "bytes")
    assert nowhere.returncode == 2
    assert len(nowhere.stderr.splitlines()) == 4


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (None, [], "no such file"),
        ("", [], "empty"),
        ("short\n", ["--context", "64"], "fewer than one window"),
        (b"good\n\xff\xfe bad" * 100, [], "byte 5"),
    ],
    ids=["missing", "empty", "short", "not UTF-8"],
)
def test_data_that_cannot_be_trained_on_is_refused(
    weightdecay: Command, tmp_path: Path, content: str | bytes | None, more: list[str], message: str
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    done = weightdecay("train", "gpt3:nano", "--data", path, "--steps", "2", "--out", tmp_path / "run", *SMALL, *more)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", ["recipes show gpt3:125m", "recipes --json", "train --help"])
def test_a_pipe_that_closes_early_is_no_fault(arguments: str) -> None:
    command = [sys.executable, "-m", "weightdecay", *arguments.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # before Python is up
        said = process.stderr.read()
    assert (process.returncode, said) == (0, "")


def test_a_run_goes_on_when_nobody_reads_what_it_says(forks: ForkServer, small_text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    theirs, ours = os.pipe()
    command = ["train", "gpt3:nano", "--data", str(small_text), "--steps", "12", "--out", str(out), *SMALL]
    process = forks.start(*command, merged=False, stdout=ours)
    os.close(ours)
    with open(theirs) as said:  # noqa: PTH123 (a descriptor)
        said.readline()
    _, complaints = process.communicate()
    assert (process.returncode, complaints) == (0, "")
    assert json.loads((out / "summary.json").read_text())["status"] == "finished"


def in_ascii(*arguments: str) -> None:
    """As with `PYTHONIOENCODING=ascii`."""
    sys.stdout.reconfigure(encoding="ascii", errors="strict")  # type: ignore[union-attr]
    sys.stderr.reconfigure(encoding="ascii", errors="backslashreplace")  # type: ignore[union-attr]
    main(list(arguments))


def test_a_terminal_without_greek_shows_the_rest(forks: ForkServer) -> None:
    done = forks.call(in_ascii, "convert", "0.1", "--lr", "6e-4", "--json")
    said, _ = done.communicate()
    assert done.returncode == 0, said
    told = forks.call(in_ascii, "recipes", "show", "gpt3:125m")
    said, _ = told.communicate()
    assert told.returncode == 0, said
    assert "Brown et al. 2020" in said
