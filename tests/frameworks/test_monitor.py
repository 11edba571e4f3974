"""The monitor on the optimizers of transformers' Trainer and of Lightning: the rows of a plain loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests.frameworks.small import Tokens, llama
from weightdecay import Monitor

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("default")]
STEPS, PASSES, ROWS = 6, 2, 4


class OneSequence(Dataset[dict[str, torch.Tensor]]):
    """The same again and again, so that the order in which a framework draws does not matter."""

    def __len__(self) -> int:
        return STEPS * PASSES * ROWS

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return Tokens()[3]


def watched(model: Any) -> tuple[torch.optim.Optimizer, Monitor]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    return optimizer, Monitor(model, optimizer, interval=2)


def rows_of_a_plain_loop() -> list[dict[str, Any]]:
    model = llama()
    optimizer, monitor = watched(model)
    for number, batch in enumerate(DataLoader(OneSequence(), batch_size=ROWS)):
        (model(**batch).loss / PASSES).backward()
        if number % PASSES == PASSES - 1:
            optimizer.step()
            optimizer.zero_grad()
    return monitor.rows


def rows_of_transformers(folder: Path) -> list[dict[str, Any]]:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model = llama()
    optimizer, monitor = watched(model)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=ROWS, gradient_accumulation_steps=PASSES,
        use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no", max_grad_norm=0.0,
        lr_scheduler_type="constant", learning_rate=1e-3, weight_decay=0.1,
    )  # fmt: skip
    transformers.Trainer(model, arguments, train_dataset=OneSequence(), optimizers=(optimizer, None)).train()
    return monitor.rows


def rows_of_lightning(folder: Path) -> list[dict[str, Any]]:
    lightning: Any = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc]  # not read for types
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, _: int) -> Any:
            return self.model(**batch).loss

        def configure_optimizers(self) -> Any:
            optimizer, self.monitor = watched(self.model)
            return optimizer

    module = Module(llama())
    trainer = lightning.Trainer(
        max_epochs=1, accumulate_grad_batches=PASSES, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, DataLoader(OneSequence(), batch_size=ROWS))
    rows: list[dict[str, Any]] = module.monitor.rows
    return rows


@pytest.mark.parametrize("framework", [rows_of_transformers, rows_of_lightning])
def test_a_framework_has_the_rows_of_a_plain_loop(framework: Any, tmp_path: Path) -> None:
    plain, theirs = rows_of_a_plain_loop(), framework(tmp_path)
    assert [row["step"] for row in plain if row["kind"] == "decay"][-1] == STEPS, "steps, not backward passes"
    assert len(theirs) == len(plain)
    for one, other in zip(theirs, plain, strict=True):
        for key, value in other.items():
            near = pytest.approx(value, rel=2e-3, abs=1e-7) if isinstance(value, float) else value
            assert one[key] == near, (other["step"], other.get("name"), key)
