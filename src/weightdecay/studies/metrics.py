"""The numbers of a finished run that studies speak of: how they are called, their unit, and which way is better."""

from __future__ import annotations

from weightdecay.studies.design import Metric

MATCHED = "matched:"
"""Before a metric: its value where the run's training loss came down to the level that all runs of its text reach."""

_KNOWN = [
    Metric("val_bits_per_byte", "held-out loss", "bits per byte", "lower"),
    Metric("val_loss", "held-out loss", "nats a token", "lower"),
    Metric("best_val_bits_per_byte", "lowest held-out loss along the way", "bits per byte", "lower"),
    Metric("train_loss", "training loss, without dropout", "nats a token"),
    Metric("gap", "held-out minus training loss", "nats a token"),
    Metric("weight_rms", "size of the decaying weights (RMS)", ""),
    Metric("decay_total", "Σ of the decay per step", ""),
    Metric("grad_norm", "norm of the gradient at the end", ""),
    Metric("int8_loss", "held-out loss added by rounding to 8 bits", "nats a token", "lower"),
    Metric("int4_loss", "held-out loss added by rounding to 4 bits", "nats a token", "lower"),
    Metric("compressed_bits", "compressed size of the 8-bit weights", "bits a weight", "lower"),
    Metric("tasks", "tasks solved, less what guessing solves", "share", "higher"),
    Metric("task_bracket", "brackets closed rightly", "share", "higher"),
    Metric("task_name", "names recalled rightly", "share", "higher"),
    Metric("task_continuation", "continuations chosen rightly", "share", "higher"),
    Metric("finetuned_loss", "loss on another text after fine-tuning", "nats a token", "lower"),
    Metric("finetuning_gain", "loss on another text that fine-tuning takes off", "nats a token", "higher"),
    Metric("rotating_as_told", "hidden matrices whose rotation is within 25 % of the formula", "share", "higher"),
    Metric("rotation_spread", "spread of the rotation over the hidden matrices (std of ln angle)", ""),
    Metric("norm_end_over_peak", "norm of the hidden matrices, end over half-way", "ratio"),
    Metric("gradient_end_over_peak", "norm of the gradient, end over half-way", "ratio"),
    *[Metric(f"exposure_{n}", f"exposure of canaries planted {n} ×", "bits", "lower") for n in (0, 1, 4, 16)],
    *[
        Metric(f"extracted_{k}", f"canaries planted 16 × extracted by {k} tokens", "share", "lower")
        for k in (8, 16, 32)
    ],
]
_BY_NAME = {metric.name: metric for metric in _KNOWN}


def metric(name: str) -> Metric:
    """A metric by its name; one that is not known here is called by it."""
    if name.startswith(MATCHED):
        known = metric(name.removeprefix(MATCHED))
        return Metric(name, f"{known.label}, at equal training loss", known.unit, known.better)
    return _BY_NAME.get(name, Metric(name, name.replace("_", " "), ""))
