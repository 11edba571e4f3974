"""The museum: each bug is really there, gone in the mended loop, and called by its name."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from examples.museum import bitsandbytes_order
from examples.museum.__main__ import audited, faults, main
from examples.museum.collection import exhibits
from examples.museum.exhibit import Exhibit

from tests.auditing.measuring import decay_per_step

# What one tensor of each exhibit loses in a step, wrong and mended; None where λ·w goes through the moments.
MEASURED: dict[str, tuple[str, float | None, float | None]] = {
    "bitsandbytes_lion": ("head.weight", None, 1e-4),
    "bitsandbytes_order": ("head.weight", 1e-4, 1e-4),
    "diffusers_textual_inversion": ("tokens.weight", 5e-6, 0.0),
    "fast_llm_norms": ("blocks.0.norm.weight", 1e-4, 0.0),
    "flaggems_adam": ("head.weight", 1e-5, None),
    "hvpnet_missing": ("head.weight", 0.0, 5e-4),
    "labml_rwkv": ("blocks.0.time_mix_key", 1e-4, 0.0),
    "mad_lab_mamba": ("blocks.0.A_log", 1e-4, 0.0),
    "megatron_resume": ("head.weight", 3.3e-5, 1.5e-4),
    "neuron_sp_wrapper": ("head.weight", 2e-4, 1e-4),
    "olmo_resume": ("head.weight", 0.0, 1e-4),
    "onetrainer_bfloat16": ("head.weight", 0.0, 1e-4),
    "optimi_decouple_lr": ("head.weight", 5e-4, 5e-5),
    "optimi_kahan": ("head.weight", 0.0, 1e-4),
    "timm_corrected": ("head.weight", 2.5e-3, 2.5e-4),
    "timm_lr_scale": ("blocks.0.up.weight", 5e-5, 5e-5 * 0.75**3),
    "tinygrad_muon": ("blocks.0.up.weight", 0.0, 1e-4),
    "transformers_prelayernorm": ("roberta_prelayernorm.blocks.0.up.weight", 0.0, 1e-4),
    "vegiantmodel_tied": ("tokens.weight", 2e-4, 1e-4),
}


def exhibit(name: str) -> Exhibit:
    found: Exhibit = import_module(f"examples.museum.{name}").EXHIBIT
    return found


def test_every_exhibit_is_measured() -> None:
    assert {id(exhibit(name)) for name in MEASURED} == {id(one) for one in exhibits()}


@pytest.mark.parametrize("name", MEASURED)
def test_the_wrong_loop_decays_as_much_as_its_story_says_and_the_mended_one_as_was_asked(name: str) -> None:
    tensor, wrong, mended = MEASURED[name]
    one = exhibit(name)
    # A step in bfloat16 moves few weights; many are compared.
    steps, tolerance = (40, 0.2) if "bfloat16" in name or "kahan" in name else (1, 0.02)
    for make, expected in ((one.wrong, wrong), (one.mended, mended)):
        seen = decay_per_step(make, steps)[tensor]
        if expected is None:
            assert abs(seen / (1e-4 if "lion" in name else 1e-5) - 1) > 0.1
        else:
            assert seen == pytest.approx(expected, rel=tolerance, abs=1e-7 if expected == 0.0 else 0.0)


def test_what_decays_after_the_update_shrinks_the_update_too() -> None:
    w, grad = torch.randn(100, dtype=torch.float64), torch.randn(100, dtype=torch.float64)
    late, early = torch.nn.Parameter(w.clone()), torch.nn.Parameter(w.clone())
    for p, kind in ((late, bitsandbytes_order.AdamW), (early, bitsandbytes_order.MendedAdamW)):
        p.grad = grad.clone()
        kind([p], lr=1e-3, weight_decay=0.1).step()
    update = w * (1 - 1e-4) - early
    torch.testing.assert_close(late - early, 1e-4 * update, atol=1e-15, rtol=1e-6)


def test_the_page_has_a_row_for_every_exhibit() -> None:
    page = (Path(__file__).parents[2] / "examples" / "README.md").read_text(encoding="utf-8")
    for one in exhibits():
        row = next(line for line in page.splitlines() if f"]({one.reference})" in line)
        assert one.bug in row
        assert f"{one.severity} `{one.code}`" in row


@pytest.mark.parametrize("name", MEASURED)
def test_the_audit_calls_a_bug_by_its_name_and_says_nothing_of_the_mended_loop(name: str) -> None:
    one = exhibit(name)
    wrong, mended = audited(one.wrong()), audited(one.mended())
    assert faults(one, wrong, mended) == []


@pytest.mark.long
def test_the_table_has_a_row_for_every_exhibit_and_the_command_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    assert f"{len(MEASURED)} of {len(MEASURED)} exhibits are called by their names" in said


def test_an_exhibit_that_is_not_called_by_its_name_is_a_fault() -> None:
    one = exhibit("hvpnet_missing")
    assert faults(one, audited(one.mended()), audited(one.mended()))
    assert faults(one, audited(one.wrong()), audited(one.wrong()))
    assert faults(replace(one, code="doubled"), audited(one.wrong()), audited(one.mended()))
