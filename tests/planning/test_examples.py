"""The changes that examples/README.md shows, taken from that page and trained with in the real frameworks."""

from __future__ import annotations

import ast
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import weightdecay
from tests.planning.originals import checkout

EXAMPLES = Path(__file__).parents[2] / "examples"
VOCABULARY, WIDTH = 64, 16


def shown(heading: str) -> str:
    """The code under a heading of the page."""
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    (section,) = (part for part in re.split(r"^## ", text, flags=re.MULTILINE) if part.startswith(heading))
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    return str(code)


def defined(heading: str, **names: Any) -> dict[str, Any]:
    """What that code defines, given what a reader has imported."""
    names.update(weightdecay=weightdecay, torch=torch)
    exec(compile(shown(heading), f"examples/README.md: {heading}", "exec"), names)
    return names


class Scale(nn.Module):
    """A gain that rules on shapes decay."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, 1, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(x, x.shape[-1:]) * self.gain


def decoder() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH), Scale(), nn.Linear(WIDTH, VOCABULARY)
    )


def tokens(count: int) -> torch.Tensor:
    return torch.arange(count) * 7 % VOCABULARY


def test_the_plain_loop_trains_and_checks(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "plain_loop.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "the optimizer carries the plan" in printed
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]
    assert losses[-1] < losses[0]


@pytest.mark.long
def test_nanogpt_trains_with_the_planned_groups(tmp_path: Path) -> None:
    """Its `train.py`, run as its README says, on a data set of 2,000 tokens."""
    code = tmp_path / "nanoGPT"
    shutil.copytree(checkout("karpathy/nanoGPT", "train.py").parent, code, ignore=shutil.ignore_patterns(".git"))
    model = code / "model.py"
    model.write_text(with_optim_groups(model.read_text(encoding="utf-8"), shown("nanoGPT")), encoding="utf-8")
    data = code / "data" / "tiny"
    data.mkdir()
    for split in ("train", "val"):
        tokens(2000).numpy().astype(np.uint16).tofile(data / f"{split}.bin")
    settings = {
        "dataset": "tiny", "device": "cpu", "compile": False, "max_iters": 4, "eval_interval": 4, "eval_iters": 1,
        "log_interval": 1, "block_size": 16, "batch_size": 2, "gradient_accumulation_steps": 1, "n_layer": 2,
        "n_head": 2, "n_embd": 16, "dtype": "float32", "always_save_checkpoint": True, "out_dir": "out",
    }  # fmt: skip
    command = [sys.executable, "train.py", *(f"--{name}={value}" for name, value in settings.items())]
    done = subprocess.run(command, cwd=code, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "iter 4: loss" in done.stdout
    saved = torch.load(code / "out" / "ckpt.pt", weights_only=True)
    groups = {group["name"]: group for group in saved["optimizer"]["param_groups"]}
    assert groups["decay"]["weight_decay"] == 0.1
    assert "transformer.h.0.attn.c_attn.weight" in groups["decay"]["param_names"]
    assert groups["no_decay"]["weight_decay"] == 0.0
    assert all(re.search(r"bias|ln_", name) for name in groups["no_decay"]["param_names"])
    assert sum(len(group["params"]) for group in groups.values()) == len(saved["optimizer"]["state"])


def with_optim_groups(source: str, change: str) -> str:
    """The source with the assignment of `optim_groups` replaced by the change."""
    (statement,) = (
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "optim_groups"
    )
    assert statement.end_lineno is not None
    lines = source.splitlines()
    indented = [" " * statement.col_offset + line for line in change.splitlines()]
    return "\n".join([*lines[: statement.lineno - 1], *indented, *lines[statement.end_lineno :]]) + "\n"


@pytest.mark.long
@pytest.mark.transformers
@pytest.mark.filterwarnings("default")
def test_a_trainer_of_transformers_trains_with_the_planned_groups(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate", reason="the Trainer needs accelerate")
    trainer_class = defined("transformers", Trainer=transformers.Trainer)["PlannedTrainer"]
    torch.manual_seed(0)
    model = transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=1, state_size=4)
    )
    settings = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=3, weight_decay=0.1, use_cpu=True, report_to=[], save_strategy="no"
    )
    samples = [{"input_ids": tokens(12), "labels": tokens(12)}] * 6
    trainer = trainer_class(model, settings, train_dataset=samples)
    trainer.train()
    assert weightdecay.plan(model, weight_decay=0.1).check(trainer.optimizer.optimizer).ok
    theirs = transformers.Trainer.get_decay_parameter_names(trainer, model)
    assert {"backbone.layers.0.mixer.A_log", "backbone.norm_f.weight"} <= {*theirs}  # what the change mends


@pytest.mark.long
@pytest.mark.filterwarnings("default")
def test_torchtitan_builds_its_optimizers_from_the_planned_groups() -> None:
    container = pytest.importorskip(
        "torchtitan.components.optimizer", reason="pip install --no-deps torchtitan spmd_types"
    )
    planned = defined("torchtitan", OptimizersContainer=container.OptimizersContainer)["PlannedOptimizers"]
    config = container.default_adamw(lr=1e-2)
    config.implementation = "for-loop"
    parts = [decoder(), decoder()[1:]]
    optimizers = planned(config, model_parts=parts)
    for part, optimizer in zip(parts, optimizers, strict=True):
        plan = weightdecay.plan(part, weight_decay=config.param_groups[0].optimizer_kwargs["weight_decay"])
        assert plan.check(optimizer).ok
        part(tokens(6)[None] if part is parts[0] else torch.randn(1, 6, WIDTH)).sum().backward()
    optimizers.step()
    state = optimizers.state_dict()
    assert state["param_groups.2.gain.weight_decay"] == 0.0
    optimizers.load_state_dict(state)


@pytest.mark.long
@pytest.mark.filterwarnings("default")
def test_lightning_trains_with_the_planned_groups(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning", reason="pip install lightning")
    planned = defined("Lightning", LightningModule=lightning.LightningModule)["Planned"]

    class Module(planned):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.model = decoder()

        def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.model(batch[:, :-1]).mT, batch[:, 1:])

    samples: Any = [tokens(10)] * 6
    module = Module()
    trainer = lightning.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(samples, batch_size=2))
    assert trainer.global_step == 3
    plan = weightdecay.plan(module, weight_decay=0.1)
    assert plan.check(trainer.optimizers[0]).ok
    assert not plan["model.2.gain"].decays
