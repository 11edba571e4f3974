"""TRL's SFTTrainer and PEFT's adapters: the frozen base is none of ours, and DoRA's magnitudes are no matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import weightdecay
from tests.frameworks.small import LENGTH, VOCABULARY, Tokens, codes, llama, loss_of

peft = pytest.importorskip("peft")

from weightdecay.integrations.peft import loraplus_groups  # noqa: E402
from weightdecay.integrations.transformers import AuditCallback, PlannedDecay  # noqa: E402

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("default")]


def adapted(**options: Any) -> Any:
    torch.manual_seed(0)
    return peft.get_peft_model(llama(), lora(**options))


def lora(**options: Any) -> Any:
    return peft.LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM", **options
    )


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(VOCABULARY)}
    made = Tokenizer(models.WordLevel(words, unk_token="w3"))
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="w0", bos_token="w1", eos_token="w2")


def sft(folder: Path, callback: Any, bases: tuple[type, ...] = (), **options: Any) -> Any:
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    cls = type("Trainer", (*bases, trl.SFTTrainer), {})
    args = trl.SFTConfig(
        output_dir=str(folder), max_steps=2, per_device_train_batch_size=4, weight_decay=0.1, learning_rate=1e-3,
        use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, save_strategy="no", max_length=LENGTH, seed=0,
        gradient_checkpointing=False,
    )  # fmt: skip
    rows = Dataset.from_list([{"input_ids": Tokens()[index]["input_ids"].tolist()} for index in range(32)])
    trainer = cls(
        model=llama(), args=args, train_dataset=rows, processing_class=tokenizer(), callbacks=[callback], **options
    )
    trainer.train()
    return trainer


def test_an_sft_trainer_is_silent_on_a_whole_model_and_on_its_adapters(tmp_path: Path) -> None:
    whole, adapters = AuditCallback(at_steps=(1, 2)), AuditCallback(at_steps=(1, 2))
    sft(tmp_path, whole)
    trained = sft(tmp_path, adapters, peft_config=lora())
    for callback in (whole, adapters):
        assert list(callback.audits) == [1, 2]
        assert all(audit.ok for audit in callback.audits.values()), callback.audits
    probe = adapters.audits[1].probe
    assert probe is not None
    trains = {name for name, parameter in trained.model.named_parameters() if parameter.requires_grad}
    assert {f"base_model.model.{tensor.name}" for tensor in probe} == trains


def test_an_sft_trainer_decays_the_magnitudes_of_dora_and_not_under_a_plan(tmp_path: Path) -> None:
    callback, planned = AuditCallback(), AuditCallback()
    sft(tmp_path, callback, peft_config=lora(use_dora=True))
    sft(tmp_path, planned, (PlannedDecay,), peft_config=lora(use_dora=True))
    (wrong,) = codes(callback.audits[1]).values()
    assert wrong
    assert all("lora_magnitude_vector" in name for name in wrong)
    assert planned.audits[1].ok, planned.audits[1]


def step(model: Any, optimizer: Any) -> None:
    loss: Any = loss_of(_Logits(model), Tokens()[3]["input_ids"][None])
    loss.backward()
    optimizer.step()


class _Logits(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=tokens).logits
        return logits


def test_lora_plus_by_plan_has_pefts_rates_and_leaves_magnitudes_alone() -> None:
    from peft.optimizers import create_loraplus_optimizer

    theirs, ours = adapted(use_dora=True), adapted(use_dora=True)
    of_peft = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16, loraplus_weight_decay=0.1
    )
    planned = torch.optim.AdamW(loraplus_groups(ours, lr=1e-3, lr_ratio=16, weight_decay=0.1))
    step(theirs, of_peft)
    step(ours, planned)
    wrong = weightdecay.audit(theirs, of_peft)
    assert set(codes(wrong)) == {"decays-exempt"}
    assert all("lora_magnitude_vector" in name for name in codes(wrong)["decays-exempt"])
    assert weightdecay.audit(ours, planned).ok

    def rates(model: Any, optimizer: Any) -> dict[str, float]:
        names = {id(p): name for name, p in model.named_parameters()}
        return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}

    matrices = {name: rate for name, rate in rates(theirs, of_peft).items() if "magnitude" not in name}
    assert {name: rates(ours, planned)[name] for name in matrices} == pytest.approx(matrices)
    assert set(matrices.values()) == {1e-3, 16e-3}


def test_what_has_no_adapter_is_refused() -> None:
    with pytest.raises(weightdecay.ConfigError, match="get_peft_model"):
        loraplus_groups(llama(), lr=1e-3, lr_ratio=16, weight_decay=0.1)
    model = peft.get_peft_model(llama(), peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]))
    with pytest.raises(weightdecay.ConfigError, match="no LoRA adapter"):
        loraplus_groups(model, lr=1e-3, lr_ratio=16, weight_decay=0.1)
