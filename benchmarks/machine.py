"""What a figure was measured on, in words."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

# Instructions that multiply matrices of bfloat16.
_PRODUCTS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 bf16"}


def described(device: torch.device) -> str:
    """The processor or the card."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    told = _cpuinfo()
    name = told.get("model name") or platform.processor() or platform.machine()
    flags = set(told.get("flags", "").split())
    able = [words for flag, words in _PRODUCTS.items() if flag in flags] or ["no bfloat16 products"]
    return f"{name} ({', '.join(able)}), {len(os.sched_getaffinity(0))} cores"


def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
