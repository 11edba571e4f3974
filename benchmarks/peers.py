"""The training steps of other programs, each on its own model and in its own loop, for benchmarks/train_step.py.

A peer that is not there, or not at the commit that it was checked against, is said and left out, or said and taken.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightdecay.models.config import ModelConfig
from weightdecay.models.decoder import GPT

NANOGPT_COMMIT = "3adf61e154c3fe3fca428ad6bc3818b27a3b8291"
LITGPT, TRANSFORMERS = "0.5", "5.23"
LR, WEIGHT_DECAY, BETAS, CLIP = 6e-4, 0.1, (0.9, 0.95), 1.0

Batch = tuple[Tensor, Tensor]
Step = Callable[[Batch], float]
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Peer:
    """A contestant.

    Args:
        program: whose it is.
        make: from our initial weights to its step, which gives the loss before it.
    """

    name: str
    program: str
    make: Callable[[ModelConfig, Weights], Step]


# From a precision and a device to the contestant that computes in it there.
Maker = Callable[[torch.dtype, torch.device], Peer]


def peers(nanogpt: Path | None, device: torch.device, say: Callable[[str], None]) -> Iterator[Peer]:
    """Every peer that can be had here, in float32 and in bfloat16."""
    found: dict[str, Callable[[], Maker]] = {
        "nanoGPT": lambda: _nanogpt(nanogpt, say),
        "litgpt": _litgpt,
        "transformers": _transformers,
    }
    for program, find in found.items():
        try:
            make = find()
        except (ImportError, OSError) as error:
            say(f"{program} is left out: {error}")
            continue
        for dtype in (torch.float32, torch.bfloat16):
            yield make(dtype, device)


def _step_of(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    device: torch.device,
    autocast: bool,
) -> Step:
    """Forward, backward, clip, step, as their loops have it."""
    model.train()

    def step(batch: Batch) -> float:
        tokens, targets = (part.to(device) for part in batch)
        with torch.autocast(device.type, torch.bfloat16) if autocast else nullcontext():
            loss = loss_of(tokens, targets)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


# --- nanoGPT: model.py and the optimizer that it configures; train.py's step


def _nanogpt(path: Path | None, say: Callable[[str], None]) -> Maker:
    if path is None:
        raise ImportError("give --nanogpt PATH, a checkout of karpathy/nanoGPT")
    commit = _commit(path)
    if commit != NANOGPT_COMMIT:
        say(f"nanoGPT is at {commit[:7] or 'no commit that can be told'}, and was checked at {NANOGPT_COMMIT[:7]}")
    spec = importlib.util.spec_from_file_location("nanogpt_model", path / "model.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{path / 'model.py'} is no module")
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    spec.loader.exec_module(module)

    def of(dtype: torch.dtype, device: torch.device) -> Peer:
        low = dtype == torch.bfloat16

        def make(config: ModelConfig, weights: Weights) -> Step:
            with contextlib.redirect_stdout(io.StringIO()):
                model = module.GPT(
                    module.GPTConfig(
                        block_size=config.context, vocab_size=config.vocab_size, n_layer=config.n_layers,
                        n_head=config.attention.n_heads, n_embd=config.d_model, dropout=0.0, bias=True,
                    )
                )  # fmt: skip
                model.load_state_dict(_gpt2_names(weights, "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"))
                model.to(device)
                optimizer = model.configure_optimizers(WEIGHT_DECAY, LR, BETAS, device.type)
            return _step_of(model, optimizer, lambda x, y: model(x, y)[1], device, low)

        return Peer(f"nanoGPT, {'bfloat16 autocast' if low else 'float32'}", "nanoGPT", make)

    return of


def _gpt2_names(weights: Weights, *layers: str) -> dict[str, Tensor]:
    """Our tensors under GPT-2's names."""
    ours = ("attention.qkv", "attention.out", "feedforward.up", "feedforward.down")
    pieces = dict(zip(ours, layers, strict=True)) | {"attention_norm": "ln_1", "feedforward_norm": "ln_2"}
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


def _commit(path: Path) -> str:
    if not (path / "model.py").is_file():
        raise OSError(f"{path} holds no model.py")
    told = path / ".commit"  # beside a checkout without its .git
    if told.is_file():
        return told.read_text(encoding="utf-8").strip()
    asked = subprocess.run(["git", "-C", str(path), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return asked.stdout.strip()


# --- transformers: GPT2LMHeadModel with the optimizer and the clipping of its Trainer


def _transformers() -> Maker:
    if importlib.util.find_spec("transformers") is None:
        raise ImportError("not installed; pip install 'weightdecay[hf]'")
    import transformers

    def of(dtype: torch.dtype, device: torch.device) -> Peer:
        low = dtype == torch.bfloat16

        def make(config: ModelConfig, weights: Weights) -> Step:
            model = transformers.GPT2LMHeadModel(
                transformers.GPT2Config(
                    n_positions=config.context, vocab_size=config.vocab_size, n_layer=config.n_layers,
                    n_head=config.attention.n_heads, n_embd=config.d_model, activation_function="gelu",
                    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                )
            )  # fmt: skip
            named = _gpt2_names(weights, "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
            turned = {name: x.T if ".h." in name and x.ndim == 2 else x for name, x in named.items()}
            model.load_state_dict(turned)
            model.to(device)
            decays = [p for p in model.parameters() if p.ndim >= 2]
            rest = [p for p in model.parameters() if p.ndim < 2]
            groups = [{"params": decays, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]
            optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)

            def loss_of(tokens: Tensor, targets: Tensor) -> Tensor:
                logits = model(tokens, use_cache=False).logits
                return nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

            return _step_of(model, optimizer, loss_of, device, low)

        version = transformers.__version__
        return Peer(f"transformers {version}, {'bfloat16 autocast' if low else 'float32'}", "transformers", make)

    return of


# --- litgpt: its GPT, in bf16-true as its own fastest setting on a processor


def _litgpt() -> Maker:
    if importlib.util.find_spec("litgpt") is None:
        raise ImportError("not installed; pip install litgpt")
    config_of: Any = importlib.import_module("litgpt.config").Config
    model_of: Any = importlib.import_module("litgpt.model").GPT

    def of(dtype: torch.dtype, device: torch.device) -> Peer:
        def make(config: ModelConfig, weights: Weights) -> Step:  # noqa: ARG001  # its positions are not learned
            model = model_of(
                config_of(
                    block_size=config.context, padded_vocab_size=config.vocab_size, vocab_size=config.vocab_size,
                    n_layer=config.n_layers, n_head=config.attention.n_heads, n_embd=config.d_model,
                    parallel_residual=False, rotary_percentage=0.25, bias=True,
                )
            ).to(device, dtype)  # fmt: skip
            optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)

            def loss_of(tokens: Tensor, targets: Tensor) -> Tensor:
                return nn.functional.cross_entropy(model(tokens).flatten(0, 1).float(), targets.flatten())

            return _step_of(model, optimizer, loss_of, device, autocast=False)

        return Peer(f"litgpt, {'bf16-true' if dtype == torch.bfloat16 else 'float32'}", "litgpt", make)

    return of


def initial_weights(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    """What all that can take them begin with."""
    torch.manual_seed(seed)
    return {name: tensor.detach().clone() for name, tensor in GPT(config).tensors().items()}
