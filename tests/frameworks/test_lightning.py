"""Lightning's Trainer, audited by our callback."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import weightdecay
from tests.frameworks.small import Tokens, codes, decoder, loss_of

lightning: Any = pytest.importorskip("lightning")

from weightdecay.integrations.lightning import AuditCallback  # noqa: E402

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("default")]
STEPS = 4


class Module(lightning.LightningModule):  # type: ignore[misc]  # not read for types
    """A decoder whose optimizer is made from the groups that a function makes of it."""

    def __init__(self, groups: Any) -> None:
        super().__init__()
        self.decoder, self.groups = decoder(), groups
        self.losses: list[float] = []

    def training_step(self, batch: Any, _: int) -> Any:
        loss = loss_of(self.decoder, batch["input_ids"])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.groups(self), lr=1e-3, weight_decay=0.1)


class InTurns(Module):
    """Two optimizers, stepped by hand; the second has no decay for what should decay."""

    def __init__(self) -> None:
        super().__init__(None)
        self.automatic_optimization = False

    def training_step(self, batch: Any, _: int) -> None:
        loss = loss_of(self.decoder, batch["input_ids"])
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        groups = weightdecay.plan(self, weight_decay=0.1).param_groups(lr=1e-3)
        last: Any = self.decoder[3].weight
        for group in groups:
            names = [(p, n) for p, n in zip(group["params"], group["param_names"], strict=True) if p is not last]
            group["params"], group["param_names"] = map(list, zip(*names, strict=True))
        return [torch.optim.AdamW(groups), torch.optim.AdamW([last], lr=1e-3, weight_decay=0.0)]


def planned(module: Any) -> Any:
    return weightdecay.plan(module, weight_decay=0.1).param_groups(lr=1e-3)


def by_dimensions(module: Any) -> Any:
    """nanoGPT's rule, which decays a gain of shape (1, 1, 16)."""
    large = [p for p in module.parameters() if p.dim() >= 2]
    return [{"params": large}, {"params": [p for p in module.parameters() if p.dim() < 2], "weight_decay": 0.0}]


def train(module: Any, folder: Path, *callbacks: Any, **options: Any) -> Any:
    trainer = lightning.Trainer(
        default_root_dir=folder, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=[*callbacks], **{"logger": False, "max_steps": STEPS, **options},
    )  # fmt: skip
    trainer.fit(module, DataLoader(Tokens(), batch_size=4))
    return module


def test_a_healthy_training_is_silent_and_the_same_as_its_twin_that_nobody_audits(tmp_path: Path) -> None:
    callback = AuditCallback(at_steps=(1, STEPS), weight_decay=0.1, policy="default")
    audited = train(Module(planned), tmp_path, callback, accumulate_grad_batches=2)
    alone = train(Module(planned), tmp_path, accumulate_grad_batches=2)
    assert list(callback.audits) == [1, STEPS]
    assert all(audit.ok for audit in callback.audits.values()), callback.audits
    assert audited.losses == alone.losses
    assert len(alone.losses) == 2 * STEPS
    for here, there in zip(audited.parameters(), alone.parameters(), strict=True):
        assert torch.equal(here, there)


def test_a_gain_that_decays_by_its_shape_is_found(tmp_path: Path) -> None:
    callback = AuditCallback(at_steps=(), every=2)
    train(Module(by_dimensions), tmp_path, callback)
    assert list(callback.audits) == [2, 4]
    assert codes(callback.audits[2]) == {"decays-exempt": ("decoder.2.gain",)}


def test_two_optimizers_are_audited_together_and_a_batch_is_a_step(tmp_path: Path) -> None:
    callback = AuditCallback(at_steps=(1, STEPS), weight_decay=0.1)
    train(InTurns(), tmp_path, callback, max_steps=2 * STEPS)  # Lightning counts both optimizers' steps
    assert list(callback.audits) == [1, STEPS]
    wrong = codes(callback.audits[1])
    assert {name for names in wrong.values() for name in names} == {"decoder.3.weight"}


def test_its_loggers_get_the_numbers(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path)
    train(Module(by_dimensions), tmp_path, AuditCallback(at_steps=(2,)), logger=logger)
    logger.save()
    with (Path(logger.log_dir) / "metrics.csv").open(encoding="utf-8") as file:
        (line,) = csv.DictReader(file)
    assert (line["step"], float(line["audit/warnings"]), float(line["audit/errors"])) == ("2", 1.0, 0.0)
    assert float(line["audit/decay_realised"]) == pytest.approx(1e-4, rel=1e-3)
