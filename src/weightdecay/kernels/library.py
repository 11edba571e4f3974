"""The compiled library: made once for each machine and version of the sources, and called with tensors."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from weightdecay.storage import cache_directory

# Sums may be split among a vector's lanes; NaN and infinity stay what they are.
_FLAGS = (
    "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros",
    "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC", "-std=c11",
)  # fmt: skip
_WIDE_VECTORS = "-mprefer-vector-width=512"  # gcc's own choice is 256 bits
_COMPILE_S = 120

# One thread takes what is smaller: waking the others would cost more.
_WORTH_THREADS = 1 << 15

# What a kernel takes, letter by letter: tensors of bfloat16 (b), float32 (w), float64 (d) and int64 (t), or none in
# their place, and numbers: int64 (l), int (i) and float (f), and arrays of int64 (s); views of bfloat16 (v) lie as such
# strides say. An address (p) is of another kernel. The number of threads, which all take, comes last.
_SIGNATURES = {
    **dict.fromkeys(("relu", "relu_squared", "gelu", "gelu_tanh", "swiglu", "geglu", "geglu_tanh"), "bwbbll"),
    "times_slopes": "bbbwlll",
    "norm_forward": "bwwffibwwll",
    "norm_backward": "bbbwfiwwbwwwll",
    "add_branch": "bbwll",
    "column_sums": "bwll",
    "sums_of_squares": "ssdll",
    "add_rows": "wtwll",
    "split_heads": "bwwlbbblllll",
    "split_heads_backward": "bbbwwlbwlllll",
    "move_rows": "bbillllll",
    "softmax_forward": "bwwffllllllll",
    "softmax_backward": "bbwwffllllllll",
    "cross_entropy": "btwwffffill",
    "turn_heads": "bwwlilllll",
    "product": "bbwbblll",
    "input_gradient": "bbblll",
    "weight_gradient": "bbwilll",
    "causal_forward": "vvvsbwwfflllllll",
    "causal_backward": "bvvvsvvvswwfflllllll",
    "attention_branch": "bwwffbwwwwffbwbwbwbbs",
    "attention_branch_backward": "bbwfwbbwbbbwwwffbwwwwwws",
    "feedforward_branch": "bwwffbwpbwbwbbbbs",
    "feedforward_branch_backward": "bbwfwbbbbbbwwwwwws",
}
_NUMBERS = {"l": ctypes.c_int64, "i": ctypes.c_int, "f": ctypes.c_float}
_TENSORS = {"b": torch.bfloat16, "v": torch.bfloat16, "w": torch.float32, "d": torch.float64, "t": torch.int64}
_KINDS = {
    name: tuple((_TENSORS.get(letter), letter != "v") for letter in signature)
    for name, signature in _SIGNATURES.items()
}


class KernelWarning(UserWarning):
    """The kernels cannot be had here; training goes by torch's own operations."""


def usable(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether the kernels take a tensor of this kind, or of `dtype` where it is, here; not under autocast, which has an
    arithmetic of its own."""
    if (dtype or x.dtype) != torch.bfloat16 or x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return not torch.is_autocast_enabled("cpu") and library() is not None


def call(name: str, *arguments: Any) -> None:
    """Run a kernel.

    Raises:
        TypeError: a tensor is not of the kind that the kernel reads, or does not lie in one piece on the processor.
    """
    kernels = library()
    assert kernels is not None
    passed: list[Any] = []
    most = 0
    # A small model's step makes dozens of calls, and each argument is looked at once.
    for argument, (dtype, whole) in zip(arguments, _KINDS[name], strict=True):
        if dtype is None or argument is None:
            passed.append(argument)
            continue
        if type(argument) is FakeTensor:
            return  # where only the memory is asked for, see `training.footprint`
        if argument.dtype is not dtype or (whole and not argument.is_contiguous()) or not argument.is_cpu:
            raise TypeError(f"{name}: takes contiguous {dtype} on the processor, got {argument.dtype}")
        if (count := argument.numel()) > most:
            most = count
        passed.append(argument.data_ptr())

    threads = worth_threads(most)
    if not torch.autograd.profiler._is_profiler_enabled:
        getattr(kernels, name)(*passed, threads)
        return
    with torch.profiler.record_function(f"kernel:{name}"):
        getattr(kernels, name)(*passed, threads)


def worth_threads(count: int) -> int:
    """How many threads work on so many numbers."""
    return torch.get_num_threads() if count >= _WORTH_THREADS else 1


def places(tensors: Sequence[Tensor], dtype: torch.dtype) -> Any:
    """Where whole tensors lie, an array for a kernel.

    Raises:
        TypeError: a tensor is of another dtype, does not lie in one piece, or not on the processor.
    """
    if not all(x.dtype is dtype and x.is_contiguous() and x.is_cpu for x in tensors):
        raise TypeError(f"takes contiguous {dtype} on the processor")
    return (ctypes.c_int64 * len(tensors))(*(0 if type(x) is FakeTensor else x.data_ptr() for x in tensors))


@functools.lru_cache(maxsize=256)
def numbers(*values: int) -> Any:
    """An array of int64 for a kernel."""
    return (ctypes.c_int64 * len(values))(*values)


@functools.cache
def address(name: str) -> int:
    """Where a kernel is, for another that calls it."""
    return ctypes.cast(getattr(library(), name), ctypes.c_void_p).value or 0


def sums_over_rows(width: int) -> Tensor:
    """Room for each thread's sums, of which a kernel leaves the whole ones in the first row."""
    return torch.empty(torch.get_num_threads(), width)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels; None, said once, where they cannot be had."""
    try:
        kernels = ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.SubprocessError, LookupError) as error:
        said = getattr(error, "stderr", "") or str(error)
        reason = said.strip().splitlines()[0] if said.strip() else type(error).__name__
        warnings.warn(
            f"no compiled kernels ({reason}): bfloat16 steps on this processor go by torch's own operations, at about "
            "half the speed; install a C compiler (gcc or clang, with OpenMP)",
            KernelWarning,
            stacklevel=2,
        )
        return None
    kernels.tiles_usable()  # asks the system for the right to them
    for name, signature in _SIGNATURES.items():
        function = getattr(kernels, name)
        function.argtypes = [*(_NUMBERS.get(letter, ctypes.c_void_p) for letter in signature), ctypes.c_int]
        function.restype = None
    return kernels


@functools.cache
def has_tiles() -> bool:
    """Whether the kernels multiply matrices themselves, as they do where the processor has AMX or AVX-512 for it."""
    kernels = library()
    return kernels is not None and bool(kernels.tiles_usable())


def _compiled() -> Path:
    """The library's file, compiled if the cache has none for these sources, this compiler and this processor."""
    if sys.platform != "linux":
        raise LookupError(f"made for Linux, and this is {sys.platform}")
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    if not compiler:
        raise LookupError("no C compiler")

    folder = resources.files(__package__) / "source"
    sources = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}
    place = _place(compiler, sources)
    if place.is_file():
        return place

    place.parent.mkdir(parents=True, exist_ok=True)
    with resources.as_file(folder) as here:
        partial = place.with_suffix(f".{os.getpid()}")
        files = [str(here / name) for name in sorted(sources) if name.endswith(".c")]
        command = [compiler, *_flags(), *files, "-o", str(partial), "-lm"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_COMPILE_S)
            partial.replace(place)  # whole, or not there
        finally:
            partial.unlink(missing_ok=True)
    return place


def _place(compiler: str, sources: Mapping[str, str]) -> Path:
    """Where the library of these sources is kept."""
    identity = repr((sorted(sources.items()), compiler, _flags(), _processor()))
    return cache_directory() / "kernels" / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.so"


def _flags() -> list[str]:
    return [*_FLAGS, *([_WIDE_VECTORS] if platform.machine() == "x86_64" else [])]


def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    told = (line for line in lines if line.startswith(("model", "flags", "Features", "CPU part")))
    return "\n".join(sorted(set(told)))
