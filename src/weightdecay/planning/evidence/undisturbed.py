"""Running a stranger's code and leaving the process as it was.

A forward may seed random states, print, log, change the default dtype, the folder or the environment, and raise on the
way. Whatever of that is the process's, not the model's, is put back.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(before: tuple[bool, bool]) -> None:
    if _deterministic() != before:  # setting it imports torch's compiler, which takes a second
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _set_environment(before: dict[str, str]) -> None:
    if dict(os.environ) != before:
        os.environ.clear()
        os.environ.update(before)


def _set_path(before: list[str]) -> None:
    sys.path[:] = before


def _cuda_states() -> list[torch.Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]


def _set_cuda_states(states: list[torch.Tensor]) -> None:
    if states:
        torch.cuda.set_rng_state_all(states)


# what is read before and written back after
_STATES: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (random.getstate, random.setstate),
    (np.random.get_state, np.random.set_state),
    (torch.get_rng_state, torch.set_rng_state),
    (_cuda_states, _set_cuda_states),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (_deterministic, _set_deterministic),
    (lambda: torch.is_autocast_enabled("cpu"), lambda enabled: torch.set_autocast_enabled("cpu", enabled)),
    (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (lambda: logging.root.manager.disable, logging.disable),
    (lambda: logging.root.level, logging.root.setLevel),
    (lambda: dict(os.environ), _set_environment),
    (lambda: list(sys.path), _set_path),
    (os.getcwd, os.chdir),
)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Whatever runs inside leaves random states, flags, environment, warnings and standard streams as they were."""
    before = [(write, read()) for read, write in _STATES]
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            _uncompiled(),
            torch.device("cpu"),
            torch.autocast("cpu", enabled=False),
        ):
            logging.disable(logging.CRITICAL)
            warnings.simplefilter("ignore")
            yield
    finally:
        for write, state in before:
            write(state)


def _uncompiled() -> contextlib.AbstractContextManager[object]:
    """Compiled functions run as they were written; without a compiler loaded there are none."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance
