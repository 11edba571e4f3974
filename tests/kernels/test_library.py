"""The library is compiled once, and what cannot be compiled is said and done without."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from weightdecay.kernels import library
from weightdecay.models.arithmetic import weights_in
from weightdecay.models.config import ModelConfig
from weightdecay.models.decoder import GPT
from weightdecay.models.objective import Objective

TOKENS = torch.arange(16).view(2, 8)


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What this process knows of the library, put aside for the length of a test."""
    library.library.cache_clear()
    yield
    library.library.cache_clear()


def losses() -> tuple[float, torch.Tensor]:
    torch.manual_seed(0)
    objective = Objective(GPT(ModelConfig(vocab_size=16, context=8, n_layers=2, d_model=16, n_heads=2)))
    with weights_in(objective, torch.bfloat16):
        loss = objective(TOKENS, TOKENS.flip(1)).total
        loss.backward()
    return float(loss.detach()), torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])


@pytest.mark.skipif(library.library() is None, reason="no C compiler here")
@pytest.mark.parametrize("fault", ["none there", "fails"])
@pytest.mark.usefixtures("forgotten")
def test_without_a_compiler_the_same_is_computed_by_torchs_operations(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, gradient = losses()
    library.library.cache_clear()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    if fault == "fails":
        compiler = tmp_path / "gcc"
        compiler.write_text("#!/bin/sh\necho no room on the disk >&2\nexit 1\n")
        compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)

    with pytest.warns(library.KernelWarning, match="no C compiler" if fault == "none there" else "no room on the disk"):
        other, other_gradient = losses()
    assert other == pytest.approx(loss, rel=5e-3)
    assert (other_gradient - gradient).norm() <= 0.03 * gradient.norm()
    assert not list((tmp_path / "cache").rglob("*.so*"))


@pytest.mark.skipif(library.library() is None, reason="no C compiler here")
@pytest.mark.usefixtures("forgotten")
def test_it_is_compiled_once_and_then_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert library.library() is not None
    library.library.cache_clear()
    monkeypatch.setattr("subprocess.run", lambda *_a, **_k: pytest.fail("compiled again"))
    assert library.library() is not None


def test_a_library_for_another_processor_is_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    here = library._place("cc", {"a.c": ""})
    monkeypatch.setattr(library, "_processor", lambda: "another")
    assert library._place("cc", {"a.c": ""}) != here
