"""Steps in compiled loops: what they compute, when they are taken, and what happens without a compiler."""

from __future__ import annotations

import copy
import os
import shutil
import sysconfig
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from tests.forking import ForkServer
from weightdecay.errors import OptimizerError
from weightdecay.optim import elementwise
from weightdecay.optim.adamw import AdamL2, AdamW
from weightdecay.optim.compiled import usable_loop
from weightdecay.optim.pieces import SMALL
from weightdecay.rules import Rule

SHAPES = ((300, 70), (5,), (1,), (40, 3, 11), (400, 300))  # the last is large enough to go in parts
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
COMBINATIONS: list[tuple[Any, torch.dtype, str, dict[str, Any]]] = [
    ("cautious", F32, "nearest", {"maximize": True, "amsgrad": True}),
    ("decoupled", BF16, "stochastic", {}),
    ("l2", F16, "master", {}),
    (Rule("mine", lr_power=2, mask="strictly_agreeing", target="one"), BF16, "kahan", {}),
]
REST: list[tuple[Any, torch.dtype, str, dict[str, Any]]] = [
    ("cautious", F32, "nearest", {}),
    ("independent", BF16, "kahan", {"maximize": True, "amsgrad": True}),
    ("towards_one", F32, "nearest", {"maximize": True, "amsgrad": True}),
    ("towards_initial", BF16, "stochastic", {"maximize": True, "amsgrad": True}),
    ("towards_initial", F16, "kahan", {}),
    ("cautious", BF16, "kahan", {}),
    ("fixed", BF16, "master", {}),
    (Rule("mine", lr_power=2, mask="agreeing"), F32, "nearest", {}),
    (Rule("mine", lr_power=1, peak_power=1, target="initial", mask="agreeing"), BF16, "master", {}),
    ("l2", BF16, "kahan", {"amsgrad": True}),
]


needs_compiler = pytest.mark.skipif(
    not (shutil.which(os.environ.get("CXX", "g++")) and Path(sysconfig.get_path("include"), "Python.h").exists()),
    reason="torch.compile needs a C++ compiler and Python's headers",
)


def made(
    rule: Any, dtype: torch.dtype, rounding: str, *, compiled: bool | None, shapes: Any = SHAPES, **settings: Any
) -> Any:
    torch.manual_seed(0)
    params = [nn.Parameter((0.3 * torch.randn(shape)).to(dtype)) for shape in shapes]
    cls: Any = AdamL2 if rule == "l2" else AdamW
    weight_decay = 1e-3 if rule == "fixed" else 0.1
    settings |= {} if rule == "l2" else {"rule": rule}
    return cls(params, lr=1e-2, weight_decay=weight_decay, rounding=rounding, fused=True, compiled=compiled, **settings)


def stepped(optimizer: Any, steps: int = 4) -> list[Tensor]:
    """The weights after steps with noise for gradients, under an lr that falls."""
    torch.manual_seed(1)
    params = optimizer.param_groups[0]["params"]
    for step in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape).to(p.dtype)
        optimizer.param_groups[0]["lr"] = 1e-2 / (step + 1)
        optimizer.step()
    return [p.detach() for p in params]


@needs_compiler
@pytest.mark.parametrize(
    ("rule", "dtype", "rounding", "settings"),
    [*COMBINATIONS, *(pytest.param(*each, marks=pytest.mark.long) for each in REST)],
)
def test_a_loop_computes_what_the_pieces_do_up_to_rounding(
    rule: Any, dtype: torch.dtype, rounding: str, settings: dict[str, Any]
) -> None:
    pieces = made(rule, dtype, rounding, compiled=False, **settings)
    loops = made(rule, dtype, rounding, compiled=True, **settings)
    expected, seen = stepped(pieces), stepped(loops)
    # Low precision turns a difference of 1e-7 into one of its last digit, but for few of the weights.
    last_digit = {F32: 2e-6, BF16: 2.0**-7, F16: 2.0**-10}[dtype]
    for one, other in zip(expected, seen, strict=True):
        torch.testing.assert_close(other.float(), one.float(), rtol=last_digit, atol=2e-7)
        assert float((one != other).float().mean()) < (1.0 if dtype == F32 else 0.01)
    tolerance = 1e-4 if rule == "l2" else 1e-6  # rounded weights come back in the gradient
    for p, q in zip(pieces.state, loops.state, strict=True):
        assert set(pieces.state[p]) == set(loops.state[q])
        for key, value in pieces.state[p].items():
            assert loops.state[q][key].dtype == value.dtype
            if key != "compensation":
                torch.testing.assert_close(loops.state[q][key].float(), value.float(), rtol=tolerance, atol=tolerance)
    if rounding == "kahan":  # the compiler may take what bfloat16 loses for nothing
        assert float(next(iter(loops.state.values()))["compensation"].abs().max()) > 0


@needs_compiler
@pytest.mark.parametrize("rounding", ["stochastic", "kahan", "master"])
def test_nan_and_infinities_stay_what_they_are_in_a_compiled_loop(rounding: str) -> None:
    p = nn.Parameter(torch.ones(3_000).bfloat16())
    p.data[:2] = torch.tensor([torch.inf, -torch.inf])
    optimizer = AdamW([p], rounding=rounding, compiled=True)  # type: ignore[arg-type]
    for _ in range(3):
        p.grad = torch.ones_like(p)
        p.grad[5] = torch.nan
        optimizer.step()
    assert p.isnan().nonzero().tolist() == [[5]]
    assert p[:2].tolist() == [torch.inf, -torch.inf]


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "rounding", "loops"), [pytest.param(F32, "nearest", 1, marks=pytest.mark.long), (BF16, "kahan", 2)]
)
def test_one_loop_serves_all_shapes_steps_and_numbers(dtype: torch.dtype, rounding: str, loops: int) -> None:
    """Two do where large tensors go in parts."""
    torch._dynamo.reset()
    usable_loop.cache_clear()
    counters.clear()
    stepped(made("cautious", dtype, rounding, compiled=True))
    stepped(made("cautious", dtype, rounding, compiled=True, betas=(0.8, 0.9), shapes=((7, 3, 2, 2), (1 << 17,))))
    assert counters["stats"]["unique_graphs"] == loops


@needs_compiler
def test_loops_are_taken_unasked_where_there_are_weights_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    large = ((3,), (SMALL + 7,))
    few, enough, plain = (made("cautious", F32, "nearest", compiled=None, shapes=large) for _ in range(3))
    unfused = AdamW([nn.Parameter(torch.randn(500, 300))], rule="cautious")
    stepped(few)
    monkeypatch.setattr(elementwise, "ENOUGH", 1_000)
    stepped(enough)
    stepped(unfused)
    assert few._loop(few.param_groups[0]["params"][1], few._work()[0]) is None
    small, big = enough.param_groups[0]["params"]
    assert enough._loop(big, enough._work()[0]) is not None
    assert enough._loop(small, enough._work()[0]) is None  # which goes with other small ones
    assert unfused._goes_in_pieces(unfused.param_groups[0]["params"][0], unfused._work()[0])
    for group in plain.param_groups:
        group["rule"] = "decoupled"  # torch's own kernel is faster for it
    stepped(plain)
    assert not any(plain._goes_in_pieces(p, plain._work()[0]) for p in plain.param_groups[0]["params"])


def test_copies_compile_as_their_original() -> None:
    optimizer = made("cautious", F32, "nearest", compiled=True)
    assert copy.deepcopy(optimizer)._workspace.compiled is True


def step_without_a_compiler(folder: str) -> None:
    """Prints what is said and seen, a line each."""
    os.environ |= {"CXX": f"{folder}/no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": folder}
    import torch._inductor.config as inductor

    inductor.cpp.cxx = (None, os.environ["CXX"])  # where it has been read before
    vars(elementwise)["ENOUGH"] = 1

    def one(compiled: bool | None) -> tuple[nn.Parameter, AdamW]:
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(400, 300))
        p.grad = torch.randn(400, 300)
        return p, AdamW([p], rule="cautious", fused=True, compiled=compiled)

    p, optimizer = one(None)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        optimizer.step()
        optimizer.step()
    print([str(w.message) for w in seen if w.category.__name__ == "CompileWarning"])
    q, reference = one(False)
    reference.step()
    reference.step()
    print("equal", torch.equal(p, q))
    r, asked = one(True)
    before = r.clone()
    try:
        asked.step()
    except OptimizerError as error:
        print("refused", error)
    print("unchanged", torch.equal(before, r) and not asked.state)


def test_without_a_compiler_steps_go_in_pieces_and_say_so_once(forks: ForkServer, tmp_path: Path) -> None:
    process = forks.call(step_without_a_compiler, str(tmp_path), merged=False)
    out, complaints = process.communicate()
    assert process.returncode == 0, complaints
    said, equal, refused, unchanged = out.strip().splitlines()
    assert said.count("torch.compile failed") == 1
    assert "install a C++ compiler" in said
    assert equal == "equal True"
    assert refused.startswith("refused compiled=True: torch.compile failed")
    assert unchanged == "unchanged True"
