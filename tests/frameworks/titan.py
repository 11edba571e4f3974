"""torchtitan's own Trainer on a processor: its llama3 debugmodel, made small, FSDP2 over gloo, on drawn tokens.

    torchrun … -m tests.frameworks.titan OUT [plan] [audit]

Its device module asks a GPU for its memory; a processor's has no such numbers, and is given some.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

STEPS = 3


class Processor:
    """torch.cpu with the answers that torchtitan wants of a device."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    def set_device(self, device: Any) -> None:
        del device

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def get_device_name(self, device: Any) -> str:
        del device
        return "cpu"

    def get_device_properties(self, device: Any) -> Any:
        del device
        return type("Properties", (), {"total_memory": 1 << 30})

    def memory_stats(self, device: Any = None) -> dict[str, int]:
        del device
        return {}

    def reset_peak_memory_stats(self) -> None:
        """There are none."""

    def empty_cache(self) -> None:
        """There is none."""


def on_a_processor() -> None:
    import torchtitan.tools.utils as titan

    titan.device_type, titan.device_module = "cpu", Processor()
    import torchtitan.distributed.utils as distributed

    # It calls what torch has only in its nightly builds; shorter time-outs are of no use here.
    distributed.set_pg_timeouts = lambda **_: None


def config(folder: Path, steps: int) -> Any:
    """The debugmodel with two small layers."""
    on_a_processor()
    from torchtitan.components.dataloader import BaseDataLoader
    from torchtitan.components.metrics import MetricsProcessor
    from torchtitan.components.tokenizer import BaseTokenizer
    from torchtitan.models.common import ScaledDotProductAttention
    from torchtitan.models.llama3 import model_registry
    from torchtitan.models.llama3.config_registry import llama3_debugmodel

    made = llama3_debugmodel()
    made.model_spec = model_registry("debugmodel")
    made.model_spec.model.layers = made.model_spec.model.layers[:2]
    for layer in made.model_spec.model.layers:
        layer.attention.inner_attention = ScaledDotProductAttention.Config()  # the others want a compiler or a GPU
    made.dump_folder = str(folder)
    made.training.steps, made.training.seq_len, made.training.local_batch_size = steps, 32, 2
    made.training.disable_cuda_graphs = True
    made.training.mixed_precision_param = "float32"
    made.checkpoint.enable = False
    made.validator.enable = False
    made.metrics = MetricsProcessor.Config(log_freq=1, enable_tensorboard=True)
    made.debug.seed = 0
    made.activation_checkpoint = None
    made.parallelism.spmd_backend = "partial_dtensor"

    class Tokens(BaseDataLoader):  # type: ignore[misc]  # torchtitan is not read for types
        """The same drawn tokens each time."""

        @dataclass(kw_only=True, slots=True)
        class Config(BaseDataLoader.Config):  # type: ignore[misc]
            """Likewise."""

        def __init__(self, **_: Any) -> None:
            super().__init__()

        def __iter__(self) -> Iterator[Any]:
            generator = torch.Generator().manual_seed(0)
            while True:
                tokens = torch.randint(2048, (2, 33), generator=generator)
                yield {"input": tokens[:, :-1]}, tokens[:, 1:]

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            del state_dict

    class Bytes(BaseTokenizer):  # type: ignore[misc]
        """Nobody asks it: the tokens are drawn."""

        @dataclass(kw_only=True, slots=True)
        class Config(BaseTokenizer.Config):  # type: ignore[misc]
            """torchtitan makes the class around it."""

        def __init__(self, **_: Any) -> None:
            super().__init__()

        def encode(self, *args: Any, **options: Any) -> list[int]:
            del options
            return list(str(args[0]).encode())

        def decode(self, *args: Any, **options: Any) -> str:
            del options
            return bytes(args[0]).decode()

        def get_vocab_size(self) -> int:
            return 256

    made.dataloader, made.tokenizer = Tokens.Config(), Bytes.Config()
    return made


def main(folder: Path, *wanted: str) -> None:
    """Train, and write what was found and lost."""
    made = config(folder, STEPS)
    from torch.distributed.fsdp import FSDPModule

    from weightdecay.integrations.torchtitan import PlannedOptimizers, audited

    if "plan" in wanted:
        made.optimizer = PlannedOptimizers.Config(param_groups=made.optimizer.param_groups, implementation="fused")
    trainer = made.build()
    for module in trainer.model_parts[0].modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)  # gloo multiplies no sums
    losses: list[float] = []
    log = trainer.metrics_processor.log

    def logged(step: int, loss: float, *more: Any, **named: Any) -> None:
        losses.append(loss)
        log(step, loss, *more, **named)

    trainer.metrics_processor.log = logged
    with audited(trainer, at_steps=(1, STEPS)) if "audit" in wanted else nullcontext() as audits:
        trainer.train()
    found = {step: audit.document() for step, audit in audits.audits.items()} if audits else {}
    groups = [[group["weight_decay"], group["param_names"]] for group in trainer.optimizers.optimizers[0].param_groups]
    (folder / "found.json").write_text(json.dumps({"losses": losses, "audits": found, "groups": groups}), "utf-8")
    trainer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
