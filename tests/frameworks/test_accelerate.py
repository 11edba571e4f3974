"""A loop that Accelerate prepared, audited from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import weightdecay
from tests.frameworks.small import Tokens, codes, decoder, loss_of

accelerate = pytest.importorskip("accelerate")

from weightdecay.integrations.accelerate import audited  # noqa: E402

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("default")]
STEPS = 4


def train(make: Any, folder: Path, audit: bool = True, **asked: Any) -> tuple[Any, list[float], Any]:
    """Four steps of two batches each."""
    accelerator = accelerate.Accelerator(
        cpu=True, gradient_accumulation_steps=2, project_dir=str(folder), log_with="tensorboard"
    )
    accelerator.init_trackers("run")
    model = decoder()
    model, optimizer, batches = accelerator.prepare(model, make(model), DataLoader(Tokens(), batch_size=8))
    losses = []
    with audited(accelerator, model, optimizer, (1, STEPS) if audit else (), **asked) as audits:
        for batch in batches:
            with accelerator.accumulate(model):
                loss = loss_of(model, batch["input_ids"])
                losses.append(loss.item())
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
    accelerator.end_training()
    return model, losses, audits


def planned(model: Any) -> Any:
    return torch.optim.AdamW(weightdecay.plan(model, weight_decay=0.1).param_groups(lr=1e-3))


def coupled(model: Any) -> Any:
    return torch.optim.Adam(weightdecay.plan(model, weight_decay=0.1).param_groups(lr=1e-3))


def test_a_healthy_training_is_silent_and_the_same_as_its_twin_that_nobody_audits(tmp_path: Path) -> None:
    model, losses, audits = train(planned, tmp_path / "audited", weight_decay=0.1, policy="default")
    twin, alone, _ = train(planned, tmp_path / "alone", audit=False)
    assert list(audits.audits) == [1, STEPS]
    assert all(audit.ok for audit in audits.audits.values()), audits.audits
    assert losses == alone
    assert len(losses) == 2 * STEPS
    for here, there in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(here, there)


def test_a_coupled_decay_is_found_and_its_trackers_get_the_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, _, audits = train(coupled, tmp_path)
    assert set(codes(audits.audits[1])) == {"coupled"}
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("audit/warnings")]
    assert shown == [(1, 1.0), (STEPS, 1.0)]


def test_no_hook_is_left_behind(tmp_path: Path) -> None:
    from torch.optim import optimizer as torchs

    before = dict(torchs._global_optimizer_pre_hooks)
    with pytest.raises(weightdecay.CheckFailedError):
        train(coupled, tmp_path, fail_on="warning")
    assert dict(torchs._global_optimizer_pre_hooks) == before
