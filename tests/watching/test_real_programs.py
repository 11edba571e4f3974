"""Training programs that others wrote, unchanged, on a processor: what is found in them, and that they train as before.

Their sources are told by variables of the environment, and left alone:

    WEIGHTDECAY_NANOGPT           a checkout of karpathy/nanoGPT
    WEIGHTDECAY_NANOCHAT          a checkout of karpathy/nanochat; its packages in WEIGHTDECAY_NANOCHAT_PYTHON
    WEIGHTDECAY_LITGPT_PYTHON     a Python with litgpt and this package
    WEIGHTDECAY_LIGHTNING_PYTHON  a Python with lightning, accelerate, transformers and this package
"""

from __future__ import annotations

import array
import importlib.util
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.watching.running import script

pytestmark = pytest.mark.long

_TIMES = re.compile(r"time [\d.]+ms.*|dt: .*|total time: .*|iter time: .*|'train_(runtime|samples|steps).*")


def told(variable: str) -> str:
    """The variable's value; the test is skipped by its name where nobody has set it."""
    value = os.environ.get(variable, "")
    if not value:
        pytest.skip(f"{variable} is not set")
    return value


def python_with(package: str, variable: str) -> str:
    return sys.executable if importlib.util.find_spec(package) and variable not in os.environ else told(variable)


def run(python: str, cwd: Path, *words: str, **environment: str) -> str:
    """What a program prints, less its clock."""
    done = subprocess.run(
        [python, *words], cwd=cwd, capture_output=True, text=True, timeout=1200, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return _TIMES.sub("", done.stdout)


def found(path: Path) -> dict[str, list[str]]:
    document = json.loads(path.read_text())
    assert len(document["watch"]["audits"]) == 1
    assert document["watch"]["audits"][0]["failed"] == ""
    return {one["code"]: one["tensors"] for one in document["findings"]}


def watch(python: str, cwd: Path, out: Path, *words: str, **environment: str) -> str:
    return run(python, cwd, "-m", "weightdecay", "watch", "--out", str(out), "--", *words, **environment)


def assert_same_tensors(one: Path, other: Path, python: str = sys.executable) -> None:
    """Two files that the programs wrote, read in a process that trusts them and knows their classes."""
    code = (
        "import sys, torch\none, other = (torch.load(p, weights_only=False) for p in sys.argv[1:])\n"
        "one, other = (d.get('model', d) for d in (one, other))\n"
        "assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one), 'they differ'"
    )
    subprocess.run([python, "-c", code, str(one), str(other)], check=True)


def test_nanogpt_trains_as_before_and_nothing_in_it_decays_wrongly(tmp_path: Path) -> None:
    folder = tmp_path / "nanoGPT"
    shutil.copytree(told("WEIGHTDECAY_NANOGPT"), folder, ignore=shutil.ignore_patterns(".git"))
    text = (folder / "train.py").read_text() * 20
    letters = sorted(set(text))
    ids = array.array("H", map(letters.index, text))
    data = folder / "data" / "tiny"
    data.mkdir()
    (data / "train.bin").write_bytes(ids[:-5000].tobytes())
    (data / "val.bin").write_bytes(ids[-5000:].tobytes())
    meta = {"vocab_size": len(letters), "itos": dict(enumerate(letters)), "stoi": {c: i for i, c in enumerate(letters)}}
    (data / "meta.pkl").write_bytes(pickle.dumps(meta))
    words = [
        "train.py", "config/train_shakespeare_char.py", "--dataset=tiny", "--device=cpu", "--compile=False",
        "--eval_iters=1", "--eval_interval=3", "--log_interval=1", "--block_size=64", "--batch_size=12", "--n_layer=4",
        "--n_head=4", "--n_embd=128", "--max_iters=3", "--lr_decay_iters=2000", "--always_save_checkpoint=True",
    ]  # fmt: skip
    plain = run(sys.executable, folder, *words, "--out_dir=out")
    checkpoint = (folder / "out" / "ckpt.pt").rename(tmp_path / "plain.pt")
    assert watch(sys.executable, folder, tmp_path / "found.json", *words, "--out_dir=out") == plain
    assert found(tmp_path / "found.json") == {}
    assert_same_tensors(checkpoint, folder / "out" / "ckpt.pt")


def test_nanochats_base_training_is_as_before(tmp_path: Path) -> None:
    checkout, python = Path(told("WEIGHTDECAY_NANOCHAT")), told("WEIGHTDECAY_NANOCHAT_PYTHON")
    environment = {"NANOCHAT_BASE_DIR": str(tmp_path / "base"), "PYTHONDONTWRITEBYTECODE": "1"}
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    texts = [path.read_text(errors="ignore")[:20_000] for path in sorted(Path(os.__file__).parent.glob("*.py"))]
    data = tmp_path / "base" / "base_data_climbmix"
    data.mkdir(parents=True)
    for shard in range(2):  # the last one is held out
        parquet.write_table(pyarrow.table({"text": texts}), data / f"shard_{shard:05d}.parquet", row_group_size=64)
    run(python, checkout, "-m", "scripts.tok_train", "--max-chars=2000000", "--vocab-size=1024", **environment)
    words = [
        "-m", "scripts.base_train", "--depth=2", "--head-dim=32", "--aspect-ratio=32", "--window-pattern=L",
        "--max-seq-len=64", "--device-batch-size=2", "--total-batch-size=256", "--eval-every=-1", "--eval-tokens=128",
        "--core-metric-every=-1", "--sample-every=-1", "--num-iterations=4", "--model-tag=run",
    ]  # fmt: skip
    saved = tmp_path / "base" / "base_checkpoints" / "run" / "model_000004.pt"
    run(python, checkout, *words, **environment)
    plain = saved.rename(tmp_path / "plain.pt")
    watch(python, checkout, tmp_path / "found.json", *words, **environment)
    assert "resid_lambdas" in found(tmp_path / "found.json")["decays-exempt"]
    assert_same_tensors(plain, saved)


TRAINER = """
    import sys, torch
    from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments, set_seed

    set_seed(0)
    small = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2)
    if sys.argv[1] == "mamba2":
        small |= dict(num_heads=4, head_dim=16, n_groups=1, state_size=8, chunk_size=8)
    else:
        small |= dict(intermediate_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
                      num_local_experts=4, num_experts_per_tok=2)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(sys.argv[1], **small))
    data = [{"input_ids": row, "labels": row} for row in torch.randint(0, 64, (32, 16))]
    settings = TrainingArguments("out", max_steps=3, per_device_train_batch_size=4, weight_decay=0.1, logging_steps=1,
                                 learning_rate=1e-3, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True)
    Trainer(model, settings, train_dataset=data).train()
    for name, p in model.named_parameters():
        print(name, p.detach().double().sum().item().hex())
"""


@pytest.mark.parametrize(
    ("kind", "exempt"),
    [
        ("mamba2", [*(f"backbone.layers.{n}.mixer.{p}" for n in (0, 1) for p in ("A_log", "D")),
                    "backbone.norm_f.weight"]),
        ("gpt_oss", [f"model.layers.{n}.self_attn.sinks" for n in (0, 1)]),
    ],
)  # fmt: skip
def test_a_trainer_of_transformers_is_as_before_and_what_it_decays_is_found(
    tmp_path: Path, kind: str, exempt: list[str]
) -> None:
    python = python_with("accelerate", "WEIGHTDECAY_LIGHTNING_PYTHON")  # without which Trainer does not begin
    script(tmp_path, TRAINER)
    plain = run(python, tmp_path, "train.py", kind)
    assert watch(python, tmp_path, tmp_path / "found.json", "train.py", kind) == plain
    assert sorted(found(tmp_path / "found.json")["decays-exempt"]) == sorted(exempt)


LITGPT = """
    import torch
    from pathlib import Path
    from torch.utils.data import DataLoader
    import litgpt.pretrain
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.config import Config
    from litgpt.data.base import DataModule

    class Own(DataModule):
        def connect(self, tokenizer=None, batch_size=1, max_seq_length=None):
            self.batch_size = batch_size

        def train_dataloader(self):
            generator = torch.Generator().manual_seed(0)
            return DataLoader([torch.randint(0, 64, (17,), generator=generator) for _ in range(64)], self.batch_size)

        val_dataloader = train_dataloader

    if __name__ == "__main__":
        config = Config(name="tiny", block_size=16, vocab_size=64, padded_vocab_size=64, n_layer=2, n_head=2, n_embd=16)
        litgpt.pretrain.setup(
            "tiny", config, Path("out"), "32-true", data=Own(), devices=1, logger_name="csv",
            train=TrainArgs(global_batch_size=4, micro_batch_size=2, max_tokens=256, max_norm=1.0, lr_warmup_steps=2),
            eval=EvalArgs(interval=1000, max_iters=1, final_validation=False))
"""


def test_litgpts_pretraining_is_as_before(tmp_path: Path) -> None:
    python = python_with("litgpt", "WEIGHTDECAY_LITGPT_PYTHON")
    script(tmp_path, LITGPT)
    uncompiled = {"TORCH_COMPILE_DISABLE": "1"}  # minutes, of which none is ours
    run(python, tmp_path, "train.py", "tiny", **uncompiled)  # litgpt reads the command line itself, at its end
    plain = (tmp_path / "out" / "final" / "lit_model.pth").rename(tmp_path / "plain.pth")
    watch(python, tmp_path, tmp_path / "found.json", "train.py", "tiny", **uncompiled)
    assert "transformer.ln_f.weight" in found(tmp_path / "found.json")["decays-exempt"]
    assert_same_tensors(plain, tmp_path / "out" / "final" / "lit_model.pth", python)


LIGHTNING = """
    import sys, torch, lightning
    from torch.utils.data import DataLoader, TensorDataset

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.Sequential(
                torch.nn.Embedding(50, 16), torch.nn.LayerNorm(16), torch.nn.Dropout(0.1), torch.nn.Linear(16, 50))

        def training_step(self, batch, index):
            loss = torch.nn.functional.cross_entropy(self.model(batch[0]).flatten(0, 1), batch[0].flatten())
            print(loss.item().hex())
            return loss

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.1)
            return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 2))]

    if __name__ == "__main__":
        lightning.seed_everything(0)
        quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        trainer = lightning.Trainer(max_steps=4, accelerator="cpu", **quiet)
        trainer.fit(Module(), DataLoader(TensorDataset(torch.randint(0, 50, (40, 8))), batch_size=8))
"""

ACCELERATE = """
    import torch
    from accelerate import Accelerator

    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = torch.nn.Sequential(torch.nn.Embedding(50, 16), torch.nn.LayerNorm(16), torch.nn.Linear(16, 50))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    for step in range(8):
        x = torch.randint(0, 50, (8, 8))
        with accelerator.accumulate(model):
            loss = torch.nn.functional.cross_entropy(model(x).flatten(0, 1), x.flatten())
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        print(loss.item().hex())
"""


@pytest.mark.parametrize("source", [LIGHTNING, ACCELERATE], ids=["lightning", "accelerate"])
def test_what_a_framework_wraps_is_as_before_and_audited_once(tmp_path: Path, source: str) -> None:
    python = python_with("lightning", "WEIGHTDECAY_LIGHTNING_PYTHON")
    script(tmp_path, source)
    plain = run(python, tmp_path, "train.py")
    assert watch(python, tmp_path, tmp_path / "found.json", "train.py") == plain
    document: Any = json.loads((tmp_path / "found.json").read_text())
    assert document["watch"]["audits"][0]["optimizers"] == ["AdamW"]
    assert len(found(tmp_path / "found.json")["decays-exempt"]) == 3
