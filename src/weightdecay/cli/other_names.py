"""What other trainers call the settings of `train`: who asks by their names is told ours."""

from __future__ import annotations

from collections.abc import Iterator

_A_RECIPE = "the first argument, [RECIPE[:SIZE]]"
_A_SEQUENCE = "--context N"
_CLIPPING = "--set optimizer.grad_clip=X"
_RECOMPUTING = "--set run.activation_checkpointing=true"
_SAVING = "--checkpoint-every N"
_TOKENS = "--tokens N, in tokens instead of epochs"
_TOKENS_A_STEP = "--batch-tokens N, in tokens instead of sequences"
_WARMUP = "--set schedule.warmup_steps=N"

# nanoGPT's, litgpt's, torchtitan's, Megatron's and transformers' names, and those of common speech.
OTHER_NAMES = {
    "--activation-checkpointing": _RECOMPUTING,
    "--batch-size": _TOKENS_A_STEP,
    "--beta1": "--set optimizer.beta1=X",
    "--beta2": "--set optimizer.beta2=X",
    "--block-size": _A_SEQUENCE,
    "--clip-grad": _CLIPPING,
    "--dataset": "--data PATH",
    "--dropout": "--set model.training.dropout=X",
    "--epochs": _TOKENS,
    "--eval-interval": "--set run.eval_every=N",
    "--global-batch-size": _TOKENS_A_STEP,
    "--grad-clip": _CLIPPING,
    "--gradient-checkpointing": _RECOMPUTING,
    "--learning-rate": "--lr X",
    "--max-grad-norm": _CLIPPING,
    "--max-iters": "--steps N",
    "--max-lr": "--lr X",
    "--max-steps": "--steps N",
    "--max-tokens": "--tokens N",
    "--micro-batch-size": "--set run.micro_batch_tokens=N, in tokens instead of sequences",
    "--model": _A_RECIPE,
    "--n-head": "--set model.attention.n_heads=N",
    "--n-layer": "--set model.n_layers=N",
    "--num-layers": "--set model.n_layers=N",
    "--num-train-epochs": _TOKENS,
    "--optimizer": "--set optimizer.name=NAME",
    "--out-dir": "--out DIR",
    "--output": "--out DIR",
    "--output-dir": "--out DIR",
    "--per-device-train-batch-size": _TOKENS_A_STEP,
    "--precision": "--dtype {bfloat16,float32}",
    "--recipe": _A_RECIPE,
    "--save-every": _SAVING,
    "--save-interval": _SAVING,
    "--save-steps": _SAVING,
    "--seq-len": _A_SEQUENCE,
    "--seq-length": _A_SEQUENCE,
    "--sequence-length": _A_SEQUENCE,
    "--train-iters": "--steps N",
    "--warmup-iters": _WARMUP,
    "--warmup-steps": _WARMUP,
    "--wd": "--weight-decay X",
}


def names_here(arguments: list[str]) -> Iterator[str]:
    """For each flag on a command line of `train` that has another name here, which."""
    if arguments[:1] != ["train"]:
        return
    for argument in arguments[1:]:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag in OTHER_NAMES:
            yield f"{flag}: here it is {OTHER_NAMES[flag]}"
