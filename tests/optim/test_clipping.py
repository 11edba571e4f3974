from __future__ import annotations

import copy
import math
import os
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import weightdecay
from tests.forking import ForkServer
from weightdecay.errors import OptimizerError
from weightdecay.optim.adamw import AdamW
from weightdecay.optim.clipping import NonfiniteGradientError, clipped_step, total_norm
from weightdecay.optim.scheduling import apply_schedules
from weightdecay.optim.sgdw import SGDW

SHAPES = ((40, 70), (3, 1_500), (9,), ())


def parameters(scale: float = 1.0, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
    for p in params:
        p.grad = (scale * torch.randn(p.shape, generator=generator)).to(dtype)
    return params


def snapshot(optimizer: torch.optim.Optimizer) -> Any:
    return copy.deepcopy(([p.detach() for g in optimizer.param_groups for p in g["params"]], optimizer.state_dict()))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def test_the_norm_by_rows_keeps_the_digits_that_torch_loses() -> None:
    """A GPT-2 embedding: torch's own float32 norm is off by 2.7e-3, the norm of the rows' norms by less than 1e-7."""
    matrix = torch.randn(50_304, 768, generator=torch.Generator().manual_seed(0))
    exact = float(torch.linalg.vector_norm(matrix, dtype=torch.float64))
    assert abs(float(total_norm([matrix])) / exact - 1) < 1e-7
    assert abs(float(torch.linalg.vector_norm(matrix)) / exact - 1) > 1e-3


@settings(max_examples=40)
@given(shapes=st.lists(st.lists(st.integers(0, 60), max_size=3), max_size=4), seed=st.integers(0, 99))
def test_the_total_norm_is_that_of_all_numbers_together(shapes: list[list[int]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    exact = math.sqrt(sum(float(t.double().square().sum()) for t in tensors))
    assert float(total_norm(tensors)) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("size", [7, 5_000])
def test_large_gradients_have_a_norm_though_their_squares_have_no_float32(size: int) -> None:
    p = nn.Parameter(torch.zeros(size))
    p.grad = torch.full((size,), 1e25)
    assert float(total_norm([p.grad])) == pytest.approx(1e25 * size**0.5, rel=1e-6)
    done = clipped_step(torch.optim.SGD([p], lr=1.0, fused=True), 1.0)
    assert not done.skipped
    assert float(p.detach().norm()) == pytest.approx(1.0, rel=1e-5)
    p.grad = torch.full((size,), torch.inf)
    assert clipped_step(torch.optim.SGD([p]), 1.0, on_nonfinite="skip").skipped


def test_strided_low_precision_and_complex_tensors_have_a_norm() -> None:
    tensor = torch.randn(30, 40)
    assert float(total_norm([tensor.T])) == pytest.approx(float(total_norm([tensor])), rel=1e-6)
    assert float(total_norm([tensor.bfloat16()])) == pytest.approx(float(tensor.bfloat16().double().norm()), rel=1e-6)
    assert float(total_norm([torch.complex(tensor, tensor)])) == pytest.approx(float(tensor.norm()) * 2**0.5, rel=1e-5)


@pytest.mark.parametrize("path", [{}, {"foreach": True}, {"fused": True}], ids=["for-loop", "foreach", "fused"])
@pytest.mark.parametrize("rule", ["decoupled", "cautious"])
@pytest.mark.parametrize("scale", [0.001, 1.0], ids=["gentle", "clipped"])
def test_a_clipped_step_is_clipping_and_then_a_step(path: dict[str, bool], rule: str, scale: float) -> None:
    ours, theirs = parameters(scale), parameters(scale)
    mine, reference = (AdamW(params, lr=0.01, rule=rule, **path) for params in (ours, theirs))  # type: ignore[arg-type]
    for _ in range(3):
        norm = float(torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in theirs])))  # type: ignore[union-attr]
        nn.utils.clip_grad_norm_(theirs, 1.0)
        reference.step()
        step = clipped_step(mine, 1.0)
        assert step.grad_norm == pytest.approx(norm, rel=1e-6)
        assert step.scale == pytest.approx(min(1.0, 1.0 / (norm + 1e-6)), rel=1e-6)
        assert not step.skipped
    for p, q in zip(ours, theirs, strict=True):
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-7)
        assert torch.allclose(p.grad, q.grad, rtol=1e-6, atol=1e-9)  # type: ignore[arg-type]
    assert not hasattr(mine, "grad_scale")


def test_without_a_limit_nothing_is_clipped() -> None:
    params = parameters(1_000.0)
    before = [p.grad.clone() for p in params]  # type: ignore[union-attr]
    assert clipped_step(AdamW(params, fused=True), None).scale == 1.0
    assert all(torch.equal(p.grad, g) for p, g in zip(params, before, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("path", [{}, {"fused": True}], ids=["for-loop", "fused"])
@pytest.mark.parametrize("rule", ["decoupled", "fixed", "cautious", "towards_initial"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("fresh", [True, False])
def test_a_gradient_that_is_not_finite_changes_nothing(
    path: dict[str, bool], rule: str, bad: float, fresh: bool
) -> None:
    params = parameters()
    optimizer = AdamW(params, lr=0.01, rule=rule, **path)  # type: ignore[arg-type]
    if not fresh:
        optimizer.step()
    params[0].grad[3, 4] = bad  # type: ignore[index]
    before = snapshot(optimizer)
    with pytest.raises(NonfiniteGradientError, match="unchanged"):
        clipped_step(optimizer)
    assert clipped_step(optimizer, on_nonfinite="skip").skipped
    assert same(before, snapshot(optimizer))


@pytest.mark.parametrize("rule", ["decoupled", "fixed", "cautious", "towards_one"])
def test_a_grad_scaler_that_found_infinities_leaves_everything_unchanged(rule: Any) -> None:
    params = parameters()
    optimizer: Any = AdamW(params, lr=0.01, rule=rule, fused=True)
    optimizer.step()
    before = snapshot(optimizer)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    del optimizer.found_inf
    assert same(before, snapshot(optimizer))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("AdamW", {"fused": True}),
        ("AdamW", {"fused": True, "rule": "cautious"}),
        ("AdamL2", {}),
        ("SGDW", {"fused": True, "momentum": 0.9}),
        ("Lion", {}),
        ("Adafactor", {"beta1": 0.9}),
        ("Muon", {"fused": True}),
    ],
)
def test_a_grad_scaler_steps_every_optimizer_as_if_it_were_not_there(name: str, settings: dict[str, Any]) -> None:
    """Its scale is a power of 2, so the steps are the same bit for bit; the one with an infinite loss is left out."""
    scaled, plain = parameters(), parameters()
    mine, reference = (getattr(weightdecay, name)(p, lr=0.01, weight_decay=0.1, **settings) for p in (scaled, plain))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(4):
        loss = torch.stack([(p * (step + 1)).sin().sum() for p in scaled]).sum()
        mine.zero_grad()
        scaler.scale(loss * math.inf if step == 2 else loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(mine)
        scaler.update()
        if step != 2:
            reference.zero_grad()
            torch.stack([(p * (step + 1)).sin().sum() for p in plain]).sum().backward()  # type: ignore[no-untyped-call]
            reference.step()
        assert all(torch.equal(p, q) for p, q in zip(scaled, plain, strict=True))


@pytest.mark.parametrize("settings", [{"max_norm": 0.0}, {"max_norm": math.nan}, {"on_nonfinite": "ignore"}])
def test_settings_that_clip_nothing_sensible_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(OptimizerError, match=r"give None to clip nothing|unknown on_nonfinite"):
        clipped_step(AdamW(parameters()), **settings)


def _one_rank(rank: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    params = parameters()
    optimizer = AdamW(params, fused=True)
    optimizer.step()
    before = snapshot(optimizer)
    if rank == 1:
        params[2].grad[0] = math.nan  # type: ignore[index]
    step = clipped_step(optimizer, on_nonfinite="skip", process_group=torch.distributed.group.WORLD)
    assert step.skipped
    assert same(before, snapshot(optimizer))

    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    whole = torch.arange(12.0).view(6, 2)
    shared = total_norm([distribute_tensor(whole, mesh, [Shard(0)]), whole])
    assert float(shared) == pytest.approx(float(whole.norm()) * 2**0.5)
    torch.distributed.barrier()  # none leaves while the other still asks it
    Path(folder, f"done-{rank}").touch()
    os._exit(0)  # gloo's threads can abort a process that tears them down


def test_ranks_decide_alike_and_shards_count_once(forks: ForkServer, tmp_path: Path) -> None:
    forks.ranks(_one_rank, str(tmp_path))
    assert {path.name for path in tmp_path.glob("done-*")} == {"done-0", "done-1"}


# --- only a kernel that is known to obey is handed the scale


class IgnoresScale(torch.optim.Optimizer):
    """Somebody's own optimizer with a key `fused`, whose kernel knows nothing of `grad_scale`."""

    def __init__(self, params: Any, lr: float, fused: bool = True) -> None:
        super().__init__(params, {"lr": lr, "fused": fused})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad, alpha=-group["lr"])


class Delegates(torch.optim.Optimizer):
    """A wrapper that shows the groups of what it wraps, as Accelerate's and Lookahead do."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        self.param_groups, self.state, self.defaults = inner.param_groups, inner.state, inner.defaults

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        self.inner.step()


class SharesEverything(Delegates):
    """A wrapper that also took over all attributes, `_step_supports_amp_scaling` among them."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.__dict__.update(inner.__dict__)
        self.inner = inner


class StepsItsOwnWay(torch.optim.SGD):
    """A subclass of a fused optimizer that does not use its kernel."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad)


class OursItsOwnWay(SGDW):
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: IgnoresScale(p, lr=1.0),
        lambda p: Delegates(torch.optim.SGD(p, lr=1.0, fused=True)),
        lambda p: SharesEverything(torch.optim.SGD(p, lr=1.0, fused=True)),
        lambda p: StepsItsOwnWay(p, lr=1.0, fused=True),
        lambda p: OursItsOwnWay(p, lr=1.0, fused=True),
        lambda p: torch.optim.SGD(p, lr=1.0, fused=True),
        lambda p: SGDW(p, lr=1.0, fused=True),
        lambda p: torch.optim.SGD(p, lr=1.0),
    ],
)
def test_what_a_clipped_step_reports_is_what_the_weights_did(make: Any) -> None:
    p = nn.Parameter(torch.zeros(4))
    p.grad = torch.full((4,), 100.0)
    done = clipped_step(make([p]), 1.0)
    assert done.scale == pytest.approx(0.005, rel=1e-3)
    assert torch.allclose(p.detach(), torch.full((4,), -0.5), rtol=1e-3)


def add_the_weights(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad += p.detach()


def hook_before(optimizer: torch.optim.Optimizer) -> Any:
    return optimizer.register_step_pre_hook(lambda optimizer, *_: add_the_weights(optimizer))


def hook_before_all(optimizer: torch.optim.Optimizer) -> Any:  # noqa: ARG001
    return register_optimizer_step_pre_hook(lambda optimizer, *_: add_the_weights(optimizer))


def another_step(optimizer: Any) -> None:
    own = optimizer.step

    def step(optimizer: Any, closure: Any = None) -> Any:
        add_the_weights(optimizer)
        return own(closure)

    optimizer.step = types.MethodType(step, optimizer)


def another_step_under_a_scheduler(optimizer: Any) -> None:
    another_step(optimizer)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)


@pytest.mark.parametrize("before", [hook_before, hook_before_all, another_step, another_step_under_a_scheduler])
@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.SGD, AdamW, SGDW])
def test_others_code_before_the_step_finds_the_gradients_clipped(cls: Any, before: Any) -> None:
    found = []
    for ours in (True, False):
        p = nn.Parameter(torch.full((4,), 2.0))
        optimizer = cls([p], lr=0.1, fused=True)
        handle = before(optimizer)
        p.grad = torch.tensor([100.0, -20.0, 3.0, 40.0])
        if ours:
            clipped_step(optimizer, 1.0)
        else:
            nn.utils.clip_grad_norm_([p], 1.0)
            optimizer.step()
        found.append(p.detach())
        if handle is not None:
            handle.remove()
    assert torch.equal(*found)


def test_a_scheduler_and_a_control_leave_the_scale_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    p = nn.Parameter(torch.full((4,), 2.0))
    optimizer = torch.optim.AdamW([p], lr=0.1, fused=True)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    weightdecay.control(optimizer)
    monkeypatch.setattr(torch, "_foreach_mul_", None)  # which would scale the gradients
    p.grad = torch.full((4,), 100.0)
    assert clipped_step(optimizer, 1.0).scale < 1


def test_a_sharded_optimizer_of_torchs_is_clipped(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        p = nn.Parameter(torch.zeros(4))
        p.grad = torch.full((4,), 100.0)
        optimizer = ZeroRedundancyOptimizer([p], optimizer_class=torch.optim.SGD, lr=1.0, fused=True)
        clipped_step(optimizer, 1.0)
        assert torch.allclose(p.detach(), torch.full((4,), -0.5), rtol=1e-3)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("max_norm", ["1.0", True, [1.0], torch.ones(2), 0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_that_is_no_number_is_refused_by_name(max_norm: Any) -> None:
    with pytest.raises(OptimizerError, match="max_norm must be a finite number over 0"):
        clipped_step(AdamW(parameters()), max_norm)


@pytest.mark.parametrize("wrong", [None, 3, "sgd", nn.Linear(2, 2), [torch.ones(2)]])
def test_what_is_no_optimizer_is_said_to_be_none(wrong: Any) -> None:
    for take in (clipped_step, lambda it: apply_schedules(it, 0, lr=0.1)):
        with pytest.raises(OptimizerError, match="an optimizer of torch's kind is wanted"):
            take(wrong)


def test_an_optimizer_that_wants_a_closure_is_refused_with_its_gradients_as_they_were() -> None:
    p = nn.Parameter(torch.zeros(2))
    p.grad = torch.full((2,), 5.0)
    with pytest.raises(OptimizerError, match="LBFGS steps with a closure"):
        clipped_step(torch.optim.LBFGS([p]), 1.0)
    assert torch.equal(p.grad, torch.full((2,), 5.0))


@pytest.mark.parametrize("path", [{}, {"foreach": True}, {"fused": True}], ids=["for-loop", "foreach", "fused"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("max_norm", [1e-6, 1e-12, 1e-40, 1e-300])
def test_a_scale_beyond_float32_is_made_or_refused_before_the_step(
    max_norm: float, dtype: torch.dtype, path: dict[str, bool]
) -> None:
    given = torch.full((8,), 1e4 if dtype is torch.float16 else 1e30, dtype=dtype)
    p = nn.Parameter(torch.zeros(8, dtype=dtype))
    p.grad = given.clone()
    try:
        seen = clipped_step(torch.optim.SGD([p], lr=1.0, **path), max_norm)
    except OptimizerError:
        assert not p.any()
        assert torch.equal(p.grad, given)
        return
    meant = -(given.double() * seen.scale).to(dtype)
    assert bool(meant.any())
    assert torch.allclose(p.double(), meant.double(), rtol=0.02, atol=0)


def test_expanded_gradients_are_clipped() -> None:
    p = nn.Parameter(torch.zeros(4))
    p.grad = torch.ones(1).expand(4)
    seen = clipped_step(torch.optim.SGD([p], lr=1.0), 1.0)
    assert torch.allclose(p.detach(), torch.full((4,), -seen.scale))
