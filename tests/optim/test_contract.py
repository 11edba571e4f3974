"""torch's optimizer contract, for our classes registered in torch's own `OptimizerInfo` database."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal import common_optimizers as database

from weightdecay.optim.adafactor import Adafactor
from weightdecay.optim.adamw import AdamL2, AdamW
from weightdecay.optim.lion import Lion
from weightdecay.optim.muon import Muon
from weightdecay.optim.sgdw import SGDW

INPUT: Any = database.OptimizerInput


def lion_inputs(device: Any, dtype: Any = None) -> list[Any]:  # noqa: ARG001
    settings: list[dict[str, Any]] = [
        {}, {"lr": 0.01}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "maximize": True}, {"betas": (0.95, 0.98)},
    ]  # fmt: skip
    return [INPUT(params=None, kwargs=kwargs, desc=str(kwargs)) for kwargs in settings]


def info(cls: Any, inputs: Any, errors: Any = None, **facts: Any) -> Any:
    return database.OptimizerInfo(cls, optim_inputs_func=inputs, optim_error_inputs_func=errors, **facts)


def muon_errors(device: Any, dtype: Any) -> list[Any]:
    """torch's, but for stacks of matrices, which ours takes."""
    every = database.optim_error_inputs_func_muon(device, dtype)  # type: ignore[no-untyped-call]
    return [error for error in every if error.optimizer_error_input.desc != "only support 2D parameters"]


ALL_PATHS = ("foreach", "differentiable", "fused")
INFOS = [
    info(AdamW, database.optim_inputs_func_adamw, database.optim_error_inputs_func_adamw, supported_impls=ALL_PATHS,
         not_og_supported_flags=(*ALL_PATHS, "maximize", "capturable"), supports_fused_on=("cpu",)),
    info(AdamL2, database.optim_inputs_func_adam, database.optim_error_inputs_func_adam, supported_impls=ALL_PATHS,
         not_og_supported_flags=(*ALL_PATHS, "maximize", "capturable"), supports_fused_on=("cpu",)),
    info(SGDW, database.optim_inputs_func_sgd, database.optim_error_inputs_func_sgd, supported_impls=ALL_PATHS,
         not_og_supported_flags=(*ALL_PATHS, "maximize"), supports_fused_on=("cpu",)),
    info(Lion, lion_inputs, database.get_error_inputs_for_all_optims, supported_impls=("foreach",),
         not_og_supported_flags=("foreach", "maximize")),
    info(Adafactor, database.optim_inputs_func_adafactor, database.optim_error_inputs_func_adafactor,
         supported_impls=("foreach",), not_og_supported_flags=("foreach",), supports_complex=False),
    info(Muon, database.optim_inputs_func_muon, muon_errors, supported_impls=(), not_og_supported_flags=(),
         supports_complex=False),
]  # fmt: skip
CASES = [
    pytest.param(each, case, id=f"{each.optim_cls.__name__}-{case.desc}")
    for each in INFOS
    for case in each.optim_inputs_func(device="cpu", dtype=torch.float32)
]
every_case = pytest.mark.parametrize(("each", "case"), CASES)
every_class = pytest.mark.parametrize("each", INFOS, ids=lambda each: each.optim_cls.__name__)


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False)).to(dtype)


def train(net: nn.Module, optimizer: Any, steps: int = 4, first: int = 0) -> list[Tensor]:
    for step in range(first, first + steps):
        inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net(inputs.to(next(net.parameters()).dtype)).square().mean().backward()
        optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("each", "error"),
    [
        pytest.param(each, error, id=f"{each.optim_cls.__name__}-{error.optimizer_error_input.desc}")
        for each in INFOS
        if each.optim_error_inputs_func is not None
        for error in each.optim_error_inputs_func(device="cpu", dtype=torch.float32)
    ],
)
def test_bad_input_raises_what_torch_raises(each: Any, error: Any) -> None:
    given = error.optimizer_error_input
    if error.error_type is UserWarning:
        with pytest.warns(UserWarning, match=error.error_regex):
            each.optim_cls(given.params, **given.kwargs)
    elif error.error_on is database.OptimizerErrorEnum.CONSTRUCTION_ERROR:
        with pytest.raises(error.error_type, match=error.error_regex):
            each.optim_cls(given.params, **given.kwargs)
    else:
        optimizer = each.optim_cls(given.params, **given.kwargs)
        with pytest.raises(error.error_type, match=error.error_regex):
            optimizer.step()


@every_case
def test_the_loss_goes_the_right_way(each: Any, case: Any) -> None:
    net = network()
    optimizer = each.optim_cls(net.parameters(), **{"lr": 1e-2, **case.kwargs})
    inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = net(inputs).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    first = float(optimizer.step(closure).detach())
    for _ in range(20):
        last = float(optimizer.step(closure).detach())
    assert last > first if case.kwargs.get("maximize") else last < first


@every_case
def test_tensors_without_gradient_stay_and_get_no_state(each: Any, case: Any) -> None:
    net = network()
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = each.optim_cls(net.parameters(), **case.kwargs)
    optimizer.step()
    assert equal(before, [p.detach() for p in net.parameters()])
    assert not optimizer.state


@every_case
@pytest.mark.parametrize("way", ["state_dict", "deepcopy", "pickle"])
def test_a_copy_goes_on_as_the_original_would(each: Any, case: Any, way: str) -> None:
    net = network()
    optimizer = each.optim_cls(net.parameters(), **case.kwargs)
    train(net, optimizer)
    if way == "state_dict":
        other = copy.deepcopy(net)
        copied = each.optim_cls(other.parameters(), **case.kwargs)
        file = BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        copied.load_state_dict(torch.load(file, weights_only=True))
    elif way == "deepcopy":
        other, copied = copy.deepcopy((net, optimizer))
    else:
        other, copied = pickle.loads(pickle.dumps((net, optimizer)))
    assert equal(train(other, copied, first=4), train(net, optimizer, first=4))
    assert {key for key in vars(copied) if key[0] != "_"} == {key for key in vars(optimizer) if key[0] != "_"}


@every_class
def test_a_state_dict_of_before_some_flags_still_loads(each: Any) -> None:
    net = network()
    optimizer = each.optim_cls(net.parameters(), lr=0.01)
    train(net, optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        for flag in (*each.not_og_supported_flags, "rule", "rounding", "peak_lr"):
            group.pop(flag, None)
    for state in saved["state"].values():
        if isinstance(state.get("step"), Tensor):
            state["step"] = float(state["step"])  # as torch kept it once
    other = copy.deepcopy(net)
    loaded = each.optim_cls(other.parameters(), lr=0.01)
    loaded.load_state_dict(saved)
    assert equal(train(other, loaded, first=4), train(net, optimizer, first=4))


@every_class
def test_hooks_run_once_a_step_although_torchs_own_step_runs_inside(each: Any) -> None:
    net = network()
    for base in each.optim_cls.__mro__:
        if base.__module__.startswith("torch.optim.") and base is not torch.optim.Optimizer:
            base(network().parameters())  # from now on torch's own class runs hooks around its step
    optimizer = each.optim_cls(net.parameters())
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    train(net, optimizer, steps=2)
    assert seen == ["before", "after"] * 2


@every_class
def test_hooks_on_state_dicts_see_and_change_what_is_saved_and_loaded(each: Any) -> None:
    net = network()
    optimizer = each.optim_cls(net.parameters(), lr=0.01)
    train(net, optimizer)
    optimizer.register_state_dict_pre_hook(lambda told: told.state.update(mark=1))
    optimizer.register_state_dict_post_hook(lambda _, saved: {**saved, "marked": saved["state"].pop("mark")})
    saved = optimizer.state_dict()
    assert saved["marked"] == 1
    assert "mark" not in saved["state"]

    def slower(_: Any, given: dict[str, Any]) -> dict[str, Any]:
        groups = [{**group, "lr": 0.002} for group in given["param_groups"]]
        return {**given, "param_groups": groups}

    seen: list[float] = []
    again = each.optim_cls(network().parameters(), lr=0.01)
    again.register_load_state_dict_pre_hook(slower)
    again.register_load_state_dict_post_hook(lambda told: seen.append(told.param_groups[0]["lr"]))
    again.load_state_dict(saved)
    assert seen == [0.002]


@every_case
def test_a_step_leaves_gradients_as_they_were(each: Any, case: Any) -> None:
    net = network()
    optimizer = each.optim_cls(net.parameters(), **case.kwargs)
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    versions = [p.grad._version for p in net.parameters()]  # type: ignore[union-attr]
    for _ in range(3):
        optimizer.step()
    assert [p.grad._version for p in net.parameters()] == versions  # type: ignore[union-attr]


@every_class
@pytest.mark.parametrize("default", [torch.float64, torch.float16], ids=str)
def test_another_default_dtype_changes_no_step(each: Any, default: torch.dtype) -> None:
    nets = [network(torch.float64), network(torch.float64)]
    expected = train(nets[0], each.optim_cls(nets[0].parameters(), lr=0.01, weight_decay=0.1))
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(default)
        optimizer = each.optim_cls(nets[1].parameters(), lr=0.01, weight_decay=0.1)
        for step in range(4):
            optimizer.zero_grad()
            inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float32)
            nets[1](inputs.double()).square().mean().backward()
            optimizer.step()
    finally:
        torch.set_default_dtype(before)
    found = [p.detach() for p in nets[1].parameters()]
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in zip(found, expected, strict=True))


FORMS: list[tuple[Any, dict[str, Any]]] = [
    (AdamW, {}),
    (AdamW, {"rule": "cautious", "fused": True}),
    (AdamL2, {}),
    (Lion, {"rule": "cautious"}),
    (SGDW, {"momentum": 0.9}),
    (Adafactor, {}),
    (Adafactor, {"beta1": 0.9}),
    (Muon, {"neuron_beta2": 0.9, "ns_dtype": torch.float32}),
]
every_form = pytest.mark.parametrize(("cls", "settings"), FORMS, ids=lambda value: getattr(value, "__name__", None))


@every_form
def test_a_count_of_steps_does_not_stop_where_low_precision_would(cls: Any, settings: dict[str, Any]) -> None:
    """Programs make bfloat16 the default for a model; the numbers that an optimizer begins are of no model."""
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        p = nn.Parameter(torch.ones(2, 3, dtype=torch.float32))
        optimizer = cls([p], lr=1e-4, **settings)
        for _ in range(260):
            p.grad = torch.ones(2, 3, dtype=torch.float32)
            optimizer.step()
    finally:
        torch.set_default_dtype(before)
    assert int(optimizer.state[p].get("step", 260)) == 260
    assert all(value.dtype == torch.float32 for value in optimizer.state[p].values())


@every_form
@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.float32, "nearest"), (torch.bfloat16, "master")], ids=["float32", "bfloat16"]
)
def test_a_step_under_autocast_is_the_step(
    cls: Any, settings: dict[str, Any], dtype: torch.dtype, rounding: str
) -> None:
    ends = []
    for enabled in (False, True):
        generator = torch.Generator().manual_seed(0)
        p = nn.Parameter(torch.randn(4, 6, generator=generator).to(dtype))
        optimizer = cls([p], lr=0.01, weight_decay=0.1, rounding=rounding, **settings)
        for _ in range(3):
            p.grad = torch.randn(4, 6, generator=generator).to(dtype)
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                optimizer.step()
        ends.append(p.detach())
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (AdamW, {}),
        (AdamW, {"rule": "cautious", "fused": True}),
        (AdamW, {"rule": "towards_initial", "lr": torch.tensor(0.01)}),
        (Lion, {"rule": "cautious"}),
        (SGDW, {"momentum": 0.9}),
        (Adafactor, {"beta1": 0.9}),
        (Muon, {"rule": "cautious"}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_step_within_compiled_code_is_the_step(cls: Any, settings: dict[str, Any]) -> None:
    """Compiled code takes an optimizer's state for constant, and would step one tensor with another's moments."""
    torch._dynamo.reset()
    plain, compiled = network(), network()
    kwargs = {"lr": 0.01, "weight_decay": 0.1, **settings}
    expected = train(plain, cls(plain.parameters(), **kwargs))
    optimizer = cls(compiled.parameters(), **kwargs)
    optimizer.step = torch.compile(optimizer.step, backend="eager")
    assert equal(train(compiled, optimizer), expected)


@every_class
def test_a_closure_is_called_once_with_gradients_on_and_its_loss_returned(each: Any) -> None:
    net, calls = network(), []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        loss: Tensor = net(torch.ones(1, 4)).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.no_grad():
        loss = each.optim_cls(net.parameters()).step(closure)
    assert calls == [True]
    assert isinstance(loss, Tensor)


@every_case
@pytest.mark.parametrize("path", ["foreach", "fused"])
def test_the_fast_paths_match_the_for_loop(each: Any, case: Any, path: str) -> None:
    if path not in each.supported_impls:
        pytest.skip(f"no {path} path")
    slow, fast = network(torch.float64), network(torch.float64)
    kwargs = dict(case.kwargs)
    if isinstance(kwargs.get("lr"), Tensor) and path == "foreach":
        kwargs["lr"] = float(kwargs["lr"])
    expected = train(slow, each.optim_cls(slow.parameters(), foreach=False, **kwargs))
    found = train(fast, each.optim_cls(fast.parameters(), **{path: True}, **kwargs))
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(found, expected, strict=True))


@every_case
def test_a_tensor_lr_steps_as_its_number_does(each: Any, case: Any) -> None:
    first, second = network(), network()
    kwargs = {key: value for key, value in case.kwargs.items() if key not in ("lr", "foreach")}
    expected = train(first, each.optim_cls(first.parameters(), lr=0.01, **kwargs))
    found = train(second, each.optim_cls(second.parameters(), lr=torch.tensor(0.01, dtype=torch.float64), **kwargs))
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-8) for a, b in zip(found, expected, strict=True))


@every_case
def test_complex_numbers_are_pairs_of_real_ones(each: Any, case: Any) -> None:
    if not each.supports_complex:
        pytest.skip("no complex weights")
    whole = nn.Parameter(torch.randn(3, 4, dtype=torch.complex128))
    pair = nn.Parameter(torch.view_as_real(whole.detach()).clone())
    for p in (whole, pair):
        optimizer = each.optim_cls([p], **case.kwargs)
        for step in range(3):
            real = torch.randn(3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
            p.grad = torch.view_as_complex(real) if p is whole else real
            optimizer.step()
    assert torch.allclose(torch.view_as_real(whole.detach()), pair.detach(), rtol=1e-12)


@every_class
def test_groups_have_their_own_lr_and_decay(each: Any) -> None:
    still, moving = (nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    optimizer = each.optim_cls(
        [{"params": [still], "lr": 0.0}, {"params": [moving]}], **{"lr": 0.1, "weight_decay": 0.1}
    )
    for p in (still, moving):
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.equal(still, torch.ones(2, 2))
    assert not torch.equal(moving, torch.ones(2, 2))


@every_class
@pytest.mark.parametrize("make", [
    lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9),
    lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5),
    lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 5),
])  # fmt: skip
def test_torchs_schedulers_drive_the_lr_and_resume(each: Any, make: Callable[[Any], Any]) -> None:
    net = network()
    optimizer = each.optim_cls(net.parameters(), lr=0.01)
    scheduler = make(optimizer)
    rates = []
    for step in range(5):
        train(net, optimizer, steps=1, first=step)
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    assert len(set(rates)) == 5


@every_class
def test_named_and_unnamed_state_load_into_each_other(each: Any) -> None:
    net = network()
    named = each.optim_cls(net.named_parameters(), lr=0.01)
    train(net, named)
    other = copy.deepcopy(net)
    unnamed = each.optim_cls(other.parameters(), lr=0.01)
    unnamed.load_state_dict(copy.deepcopy(named.state_dict()))
    assert equal(train(other, unnamed, first=4), train(net, named, first=4))


@every_class
def test_an_optimizer_can_be_printed_and_takes_empty_and_meta_tensors(each: Any) -> None:
    empty = nn.Parameter(torch.empty(0, 3))
    empty.grad = torch.empty(0, 3)
    full = nn.Parameter(torch.ones(2, 3))
    full.grad = torch.ones(2, 3)
    optimizer = each.optim_cls([full] if each.optim_cls in (Muon, Adafactor) else [empty, full])
    optimizer.step()
    assert "rule: " in repr(optimizer)


@every_class
@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "kahan", "master"])
def test_tensors_on_meta_are_stepped_as_torch_steps_them(each: Any, rounding: str) -> None:
    if each.optim_cls is Adafactor:
        pytest.skip("asks how large weights are, as torch's does")
    params = [nn.Parameter(torch.ones(shape, device="meta", dtype=torch.bfloat16)) for shape in ((2, 3), (4, 3))]
    optimizer = each.optim_cls(params, weight_decay=0.1, rounding=rounding)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all(value.is_meta for value in optimizer.state[params[0]].values() if value.ndim)


@every_class
def test_a_parameter_list_that_is_none_is_explained_by_torch(each: Any) -> None:
    p = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(TypeError, match="iterable of Tensors"):
        each.optim_cls(p)
    with pytest.raises(ValueError, match="empty parameter list"):
        each.optim_cls([])
    with pytest.raises(TypeError, match="can only optimize Tensors"):
        each.optim_cls([1, 2])
    with pytest.raises(TypeError, match="ordered collections"):
        each.optim_cls([{"params": {p}}])


@every_class
def test_a_tensor_twice_in_a_group_is_warned_of_as_in_torch_and_decays_once(each: Any) -> None:
    p, other = (nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    for params in ([p, other, p], [("a", p), ("other", other), ("b", p)], [{"params": [p, p, other]}]):
        with pytest.warns(UserWarning, match="duplicate parameters"):
            optimizer = each.optim_cls(params)
        (group,) = optimizer.param_groups
        assert [id(tensor) for tensor in group["params"]] == [id(p), id(other)]
        assert group.get("param_names", ["a", "other"]) == ["a", "other"]
    lone, once = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer, reference = each.optim_cls([other]), each.optim_cls([once])
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer.add_param_group({"params": [lone, lone], "lr": 0.1, "weight_decay": 0.1})
    reference.param_groups[0].update(lr=0.1, weight_decay=0.1)
    lone.grad, once.grad = torch.ones(2, 2), torch.ones(2, 2)
    optimizer.step()
    reference.step()
    assert torch.equal(lone, once)
