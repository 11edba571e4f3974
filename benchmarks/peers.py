"""The training steps of other programs, each on its own model and in its own loop, for benchmarks/train_step.py.

A peer that is not there, or not as it was checked, is said and left out, or said and taken.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contestants import BETAS, CLIP, LR, WEIGHT_DECAY, Batch, Contestant, Here, Setting, Shape, Step, Weights

NANOGPT_COMMIT = "3adf61e"
NANOGPT_SHA256 = "7c01703240dbec5d554527dc666e35b3df8391d0b117fddc07afcf325a21d11c"  # of its model.py there
CHECKED = {"litgpt": "0.5", "transformers": "5."}
PROGRAMS = ("nanoGPT", "litgpt", "transformers")

# From a precision and a device to a contestant's name and what makes its step.
Maker = Callable[[torch.dtype, torch.device], tuple[str, Callable[[Shape, Weights], Step]]]


def peers(
    programs: tuple[str, ...], nanogpt: Path | None, setting: Setting, say: Callable[[str], None], *, compiled: bool
) -> Iterator[Contestant]:
    """Every one of these programs' peers that can be had in this Python, in float32 and in bfloat16.

    Args:
        compiled: their bfloat16 models once more, through `torch.compile`, where they offer that themselves.
    """
    found: dict[str, dict[str, Callable[[], Maker]]] = {
        "nanoGPT": {"nanoGPT": lambda: _nanogpt(nanogpt, say, compiled=False)},
        "litgpt": {"litgpt": lambda: _litgpt(say, compiled=False)},
        "transformers": {"transformers": lambda: _transformers(say), "transformers' Trainer": _trainer},
    }
    if compiled:
        found["nanoGPT"]["nanoGPT, compiled"] = lambda: _nanogpt(nanogpt, lambda _: None, compiled=True)
        found["litgpt"]["litgpt, compiled"] = lambda: _litgpt(lambda _: None, compiled=True)

    for program in programs:
        for label, find in found[program].items():
            try:
                maker = find()
            except (ImportError, OSError) as error:
                say(f"{label} is left out: {error}")
                continue
            for dtype in (torch.float32, torch.bfloat16):
                name, make = maker(dtype, setting.device)
                if "compiled" in name and dtype == torch.float32:
                    continue

                def run(shape: Shape, weights: Weights, make: Any = make) -> Here:
                    return Here(make(shape, weights), setting)

                yield Contestant(name, program, run)


def _step_of(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    device: torch.device,
    autocast: bool,
) -> Step:
    """Forward, backward, clip, step, as their loops have it."""
    model.train()

    def step(batch: Batch) -> Tensor:
        tokens, targets = (part.to(device) for part in batch)
        with torch.autocast(device.type, torch.bfloat16) if autocast else nullcontext():
            loss = loss_of(tokens, targets)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def _named(program: str, dtype: torch.dtype, low: str = "bfloat16 autocast", *, compiled: bool = False) -> str:
    return f"{program}, {low if dtype == torch.bfloat16 else 'float32'}" + (", compiled" if compiled else "")


# --- nanoGPT: model.py and the optimizer that it configures; train.py's step


def _nanogpt(path: Path | None, say: Callable[[str], None], *, compiled: bool) -> Maker:
    if path is None:
        raise ImportError("give --nanogpt PATH, a checkout of karpathy/nanoGPT")
    if hashlib.sha256((path / "model.py").read_bytes()).hexdigest() != NANOGPT_SHA256:
        say(f"{path / 'model.py'} is not nanoGPT's at {NANOGPT_COMMIT}, which was checked; what it is, is measured")
    spec = importlib.util.spec_from_file_location("nanogpt_model", path / "model.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{path / 'model.py'} is no module")
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    spec.loader.exec_module(module)

    def of(dtype: torch.dtype, device: torch.device) -> tuple[str, Callable[[Shape, Weights], Step]]:
        def make(shape: Shape, weights: Weights) -> Step:
            with contextlib.redirect_stdout(io.StringIO()):
                model = module.GPT(
                    module.GPTConfig(
                        block_size=shape.context, vocab_size=shape.vocabulary, n_layer=shape.layers,
                        n_head=shape.heads, n_embd=shape.width, dropout=0.0, bias=True,
                    )
                )  # fmt: skip
                model.load_state_dict(_gpt2_names(weights))
                model.to(device)
                optimizer = model.configure_optimizers(WEIGHT_DECAY, LR, BETAS, device.type)
            forward = torch.compile(model) if compiled else model
            return _step_of(model, optimizer, lambda x, y: forward(x, y)[1], device, dtype == torch.bfloat16)

        return _named("nanoGPT", dtype, compiled=compiled), make

    return of


def _gpt2_names(weights: Weights) -> dict[str, Tensor]:
    """Our tensors under GPT-2's names."""
    pieces = {
        "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj", "feedforward.up": "mlp.c_fc",
        "feedforward.down": "mlp.c_proj", "attention_norm": "ln_1", "feedforward_norm": "ln_2",
    }  # fmt: skip
    found = {"lm_head.weight": weights["embedding.weight"], "transformer.wte.weight": weights["embedding.weight"],
             "transformer.wpe.weight": weights["positions.weight"]}  # fmt: skip
    for name, tensor in weights.items():
        if name.startswith("blocks."):
            _, layer, rest = name.split(".", 2)
            piece, part = rest.rsplit(".", 1)
            found[f"transformer.h.{layer}.{pieces[piece]}.{part}"] = tensor
        elif name.startswith("norm."):
            found[f"transformer.ln_f.{name.removeprefix('norm.')}"] = tensor
    return found


# --- transformers: GPT2LMHeadModel in a plain loop, and in its own Trainer


def _checked_version(program: str, say: Callable[[str], None], install: str) -> tuple[Any, str]:
    """The program's module and version, which may be said to be another than the one that was checked."""
    if importlib.util.find_spec(program) is None:
        raise ImportError(
            f"not installed in {sys.executable}; pip install {install}, or give --python {program}=PYTHON"
        )
    module: Any = importlib.import_module(program)
    version = importlib.metadata.version(program)
    if not version.startswith(CHECKED[program]):
        say(f"{program} is {version}, and was checked at {CHECKED[program].rstrip('.')}")
    return module, version


def _gpt2(transformers: Any, shape: Shape, weights: Weights) -> Any:
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_positions=shape.context, vocab_size=shape.vocabulary, n_layer=shape.layers, n_head=shape.heads,
            n_embd=shape.width, activation_function="gelu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    named = _gpt2_names(weights)
    model.load_state_dict({name: x.T if ".h." in name and x.ndim == 2 else x for name, x in named.items()})
    return model


def _transformers(say: Callable[[str], None]) -> Maker:
    module, version = _checked_version("transformers", say, "'weightdecay[hf]'")

    def of(dtype: torch.dtype, device: torch.device) -> tuple[str, Callable[[Shape, Weights], Step]]:
        def make(shape: Shape, weights: Weights) -> Step:
            model = _gpt2(module, shape, weights).to(device)
            decays = [p for p in model.parameters() if p.ndim >= 2]
            rest = [p for p in model.parameters() if p.ndim < 2]
            groups = [{"params": decays, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]
            optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)

            def loss_of(tokens: Tensor, targets: Tensor) -> Tensor:
                logits = model(tokens, use_cache=False).logits
                return nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

            return _step_of(model, optimizer, loss_of, device, dtype == torch.bfloat16)

        return _named(f"transformers {version}", dtype), make

    return of


def _trainer() -> Maker:
    """The Trainer's own `training_step`, and after it what its loop does after it: clip, step, schedule."""
    module, version = _checked_version("transformers", lambda _: None, "'weightdecay[hf]'")
    if importlib.util.find_spec("accelerate") is None:
        raise ImportError(f"it needs accelerate, which is not installed in {sys.executable}")

    def of(dtype: torch.dtype, device: torch.device) -> tuple[str, Callable[[Shape, Weights], Step]]:
        def make(shape: Shape, weights: Weights) -> Step:
            arguments = module.TrainingArguments(
                output_dir=tempfile.gettempdir(), max_steps=1_000_000, bf16=dtype == torch.bfloat16,
                use_cpu=device.type == "cpu", optim="adamw_torch_fused", learning_rate=LR, weight_decay=WEIGHT_DECAY,
                adam_beta1=BETAS[0], adam_beta2=BETAS[1], max_grad_norm=CLIP, lr_scheduler_type="constant",
                report_to=[], disable_tqdm=True,
            )  # fmt: skip
            trainer = module.Trainer(_gpt2(module, shape, weights), arguments)
            trainer.create_optimizer_and_scheduler(arguments.max_steps)
            model, optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
            trainer.optimizer, trainer.current_gradient_accumulation_steps = optimizer, 1

            def step(batch: Batch) -> Tensor:
                tokens, targets = batch
                inputs = {"input_ids": tokens, "labels": tokens, "shift_labels": targets}
                loss: Tensor = trainer.training_step(model, inputs)
                trainer.accelerator.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                trainer.lr_scheduler.step()
                model.zero_grad()
                return loss

            return step

        return _named(f"transformers' Trainer {version}", dtype, "bf16=True"), make

    return of


# --- litgpt: its GPT and its loss, tied as ours is; in bf16-true, which it takes where a processor can


def _litgpt(say: Callable[[str], None], *, compiled: bool) -> Maker:
    _, version = _checked_version("litgpt", say, "litgpt")
    config_of: Any = importlib.import_module("litgpt.config").Config
    model_of: Any = importlib.import_module("litgpt.model").GPT
    loss: Any = importlib.import_module("litgpt.utils").chunked_cross_entropy

    def of(dtype: torch.dtype, device: torch.device) -> tuple[str, Callable[[Shape, Weights], Step]]:
        def make(shape: Shape, weights: Weights) -> Step:  # noqa: ARG001  # its positions are not learned
            model = model_of(
                config_of(
                    block_size=shape.context, padded_vocab_size=shape.vocabulary, vocab_size=shape.vocabulary,
                    n_layer=shape.layers, n_head=shape.heads, n_embd=shape.width, parallel_residual=False,
                    rotary_percentage=0.25, bias=True,
                )
            )  # fmt: skip
            model.transformer.wte.weight = model.lm_head.weight
            model.to(device, dtype)
            optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)
            forward = torch.compile(model) if compiled else model
            return _step_of(model, optimizer, lambda x, y: loss(forward(x), y), device, autocast=False)

        return _named(f"litgpt {version}", dtype, "bf16-true", compiled=compiled), make

    return of
