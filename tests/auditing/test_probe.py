"""What a probe says of the decay of each tensor, beside what is known of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightdecay
from tests.covering import covering
from tests.probing import optimizers as own
from weightdecay.auditing.probed import Probe, ProbedTensor
from weightdecay.errors import OptimizerError

LR, DECAY = 1e-3, 0.1


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    norm = nn.LayerNorm(64)
    nn.init.normal_(norm.bias, std=0.1)  # of weights that are 0 nothing can be said
    return nn.Sequential(nn.Embedding(50, 32), nn.Linear(32, 64), norm, nn.Linear(64, 50)).to(dtype)


def train(net: nn.Module, optimizer: Any, steps: int = 2) -> None:
    """Some steps, and a gradient that waits for the next."""
    torch.manual_seed(1)
    for step in range(steps + 1):
        net.zero_grad()
        torch.autograd.backward(net(torch.randint(50, (4, 8))).float().square().mean())
        if step < steps:
            optimizer.step()


def probed(cls: Any, *, dtype: torch.dtype = torch.float32, steps: int = 2, lr: float = LR, **settings: Any) -> Probe:
    net = model(dtype)
    params = [p for p in net.parameters() if p.ndim == 2 or cls is not weightdecay.Muon]
    optimizer = cls(params, lr=lr, **{"weight_decay": DECAY, **settings})
    train(net, optimizer, steps)
    return weightdecay.probe(net, optimizer)


def realised(seen: Probe) -> list[float | None]:
    return [tensor.realised for tensor in seen]


@pytest.mark.parametrize(
    "cls", [torch.optim.AdamW, weightdecay.AdamW, weightdecay.Lion], ids=lambda cls: cls.__module__
)
@pytest.mark.parametrize("steps", [0, 3])
def test_a_decoupled_decay_is_lr_times_lambda_of_every_tensor(cls: Any, steps: int) -> None:
    seen = probed(cls, steps=steps)
    assert [tensor.name for tensor in seen] == [name for name, _ in model().named_parameters()]
    assert realised(seen) == pytest.approx([LR * DECAY] * 7, rel=0.01)
    assert [tensor.requested for tensor in seen] == pytest.approx([LR * DECAY] * 7, rel=1e-5)
    (group,) = seen.groups
    assert group.factor == pytest.approx(1.0, rel=1e-5)
    assert group.lr_power == 1.0
    assert all(tensor.reads_weight_decay and not tensor.coupled for tensor in seen)


FORMS = {
    "decoupled": (1.0, 1.0), "independent": (500.0, 1.0), "fixed": (1.0, 0.0), "lr_squared": (1.0, 2.0),
    "corrected": (500.0, 2.0), "cautious": (1.0, 1.0), "towards_one": (1.0, 1.0),
}  # fmt: skip
OURS = [weightdecay.AdamW, weightdecay.Lion, weightdecay.SGDW, weightdecay.Adafactor, weightdecay.Muon]


def is_right(tensor: ProbedTensor) -> bool:
    """Within what float32 can tell, or as far as the probe is sure itself."""
    assert tensor.realised is not None
    assert tensor.requested is not None
    return abs(tensor.realised - tensor.requested) <= max(0.01 * tensor.requested, 4 * tensor.uncertainty)


@pytest.mark.parametrize(("cls", "rule"), covering(OURS, list(FORMS)), ids=lambda of: getattr(of, "__name__", of))
def test_each_rule_is_seen_by_its_form_and_removes_what_it_asks_for(cls: Any, rule: str) -> None:
    weight_decay = {"fixed": 1e-4, "lr_squared": 100.0}.get(rule, DECAY)
    net = model()
    params = [p for p in net.parameters() if p.ndim == 2 or cls is not weightdecay.Muon]
    optimizer = cls([{"params": params, "peak_lr": 2e-3}], lr=LR, weight_decay=weight_decay, rule=rule)
    train(net, optimizer)
    seen = weightdecay.probe(net, optimizer)
    (group,) = seen.groups
    factor, power = FORMS[rule]
    assert group.factor == pytest.approx(factor, rel=1e-4)
    assert group.lr_power == power
    assert all(is_right(tensor) for tensor in seen)
    assert {tensor.target for tensor in seen} == {"one" if rule == "towards_one" else "zero"}


def test_a_mask_shows_with_real_gradients() -> None:
    seen = probed(weightdecay.AdamW, rule="cautious")
    assert 0.3 < seen["1.weight"].share < 0.7
    assert seen["1.weight"].realised == pytest.approx(LR * DECAY * seen["1.weight"].share, rel=0.01)


@pytest.mark.parametrize("rounding", ["stochastic", "kahan", "master"])
def test_a_rounding_that_keeps_the_decay_is_whole(rounding: str) -> None:
    seen = probed(weightdecay.AdamW, dtype=torch.bfloat16, lr=3e-4, rounding=rounding)
    assert all(is_right(tensor) for tensor in seen)
    together = sum((t.realised or 0.0) * t.elements for t in seen) / sum(t.elements for t in seen)
    assert together == pytest.approx(3e-5, rel=0.2)


@pytest.mark.parametrize("cls", [weightdecay.AdamW, weightdecay.Lion], ids=lambda cls: cls.__name__)
def test_a_compensated_sum_is_found_under_a_mask(cls: Any) -> None:
    seen = probed(cls, dtype=torch.bfloat16, lr=3e-4, rounding="kahan", rule="cautious")
    assert seen["1.weight"].share < 0.8
    for name in ("1.weight", "3.weight"):
        assert seen[name].realised == pytest.approx(3e-5 * seen[name].share, rel=0.2)


@pytest.mark.parametrize("cls", [torch.optim.AdamW, weightdecay.AdamW], ids=lambda cls: cls.__module__)
@pytest.mark.filterwarnings("ignore::weightdecay.PrecisionWarning")
def test_bfloat16_loses_a_small_decay_and_the_probe_is_sure_of_it(cls: Any) -> None:
    seen = probed(cls, dtype=torch.bfloat16, lr=3e-4)
    for name in ("1.weight", "3.weight"):
        assert seen[name].realised == pytest.approx(0.0, abs=1e-7)
        assert seen[name].requested == pytest.approx(3e-5, rel=0.01)
        assert 4 * seen[name].uncertainty < 3e-5
        assert seen[name].reads_weight_decay


class MastersElsewhere(own.Plain):
    """As apex: float32 weights in a list of its own."""

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.masters = {p: p.detach().float() for group in self.param_groups for p in group["params"]}

    def change(self, p: Any, group: dict[str, Any]) -> None:
        master = self.masters[p]
        master.mul_(1 - group["lr"] * group["weight_decay"]).sub_(p.grad.float(), alpha=group["lr"])
        p.copy_(master)


def test_masters_are_found_wherever_they_are() -> None:
    seen = probed(MastersElsewhere, dtype=torch.bfloat16)
    assert realised(seen) == pytest.approx([LR * DECAY] * 7, rel=0.02)
    assert all(tensor.from_elsewhere == 0 for tensor in seen)


@pytest.mark.parametrize(
    "cls", [torch.optim.Adam, torch.optim.RMSprop, weightdecay.AdamL2], ids=lambda cls: cls.__name__
)
def test_a_decay_through_the_gradient_of_an_adaptive_optimizer_is_coupled(cls: Any) -> None:
    seen = probed(cls)
    assert all(tensor.coupled and tensor.requested is None for tensor in seen)
    assert seen.groups[0].factor is None


def test_coupling_is_seen_in_gains_that_are_all_alike_and_in_momentum() -> None:
    assert probed(torch.optim.Adam)["2.weight"].coupled
    assert probed(torch.optim.SGD, momentum=0.9)["1.weight"].coupled
    assert not probed(torch.optim.SGD)["1.weight"].coupled


@pytest.mark.parametrize(("cls", "order"), [(torch.optim.AdamW, "before"), (own.DecaysAfter, "after")])
def test_the_order_of_decay_and_update_is_seen(cls: Any, order: str) -> None:
    seen = probed(cls)
    assert [seen[f"{layer}.weight"].order for layer in (1, 3)] == [order, order]


def decay_too(optimizer: Any, *_: Any) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.data.mul_(1 - LR * DECAY)


def test_a_hook_that_decays_is_told_from_lambda() -> None:
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=DECAY)
    optimizer.register_step_pre_hook(decay_too)
    train(net, optimizer)
    seen = weightdecay.probe(net, optimizer)
    assert [t.from_weight_decay for t in seen] == pytest.approx([LR * DECAY] * 7, rel=0.01)
    assert [t.from_elsewhere for t in seen] == pytest.approx([LR * DECAY] * 7, rel=0.01)
    assert seen.optimizers[0].hooks == ("pre hook decay_too",)


def test_a_hook_that_decays_as_soon_as_there_is_a_lambda_does_not_hide_the_form() -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2, weight_decay=DECAY)

    def also(optimizer: Any, *_: Any) -> None:
        for group in optimizer.param_groups:
            for p in group["params"] if group["weight_decay"] else ():
                p.data.mul_(1 - 1e-2 * DECAY)

    optimizer.register_step_pre_hook(also)
    train(net, optimizer)
    seen = weightdecay.probe(net, optimizer)
    assert seen.groups[0].factor == pytest.approx(1.0, rel=0.01)
    assert realised(seen) == pytest.approx([2e-2 * DECAY] * 7, rel=0.01)


def test_a_hook_of_all_optimizers_is_part_of_the_step() -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook

    handle = register_optimizer_step_post_hook(decay_too)
    try:
        assert probed(torch.optim.SGD)["1.weight"].from_elsewhere == pytest.approx(LR * DECAY, rel=0.01)
    finally:
        handle.remove()


def test_a_wrapper_that_decays_by_a_list_of_its_own_is_stepped_as_a_whole() -> None:
    class Wrapper:
        def __init__(self, inner: Any, decayed: list[Tensor]) -> None:
            self.inner, self.decayed = inner, decayed

        @property
        def param_groups(self) -> Any:
            return self.inner.param_groups

        @torch.no_grad()
        def step(self) -> None:
            for p in self.decayed:
                p.mul_(1 - 2 * LR * DECAY)
            self.inner.step()

    net = model()
    optimizer = Wrapper(torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=DECAY), [net[1].weight])  # type: ignore[index]
    train(net, optimizer)
    seen = weightdecay.probe(net, optimizer)
    assert seen.optimizers[0].seen_on == "whole step"
    assert "reaches tensors" in seen.optimizers[0].why
    assert seen["1.weight"].from_elsewhere == pytest.approx(2 * LR * DECAY, rel=0.01)
    assert seen["3.weight"].from_elsewhere == 0
    assert realised(seen)[-1] == pytest.approx(LR * DECAY, rel=0.01)


class ClipsTogether(own.Plain):
    """The length of all gradients together is in every tensor's step."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        params = [p for group in self.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(params, 1e-3)
        super().step()

    def change(self, p: Any, group: dict[str, Any]) -> None:
        p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(p.grad, alpha=group["lr"])


class ListBeside:
    """No optimizer of torch's; something for each tensor lies beside the groups."""

    __slots__ = ("moments", "param_groups")
    param_groups: list[dict[str, Any]]
    moments: list[Tensor]

    def __init__(self, params: Any, lr: float, weight_decay: float) -> None:
        self.param_groups = [{"params": list(params), "lr": lr, "weight_decay": weight_decay}]
        self.moments = [torch.zeros_like(p) for p in self.param_groups[0]["params"]]

    @torch.no_grad()
    def step(self) -> None:
        (group,) = self.param_groups
        for p, moment in zip(group["params"], self.moments, strict=True):
            moment.lerp_(p.grad, 0.1)
            p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(moment.sign(), alpha=group["lr"])


@pytest.mark.parametrize("cls", [ClipsTogether, ListBeside], ids=lambda cls: cls.__name__)
def test_tensors_that_depend_on_each_other_are_stepped_together(cls: Any) -> None:
    seen = probed(cls)
    assert seen.optimizers[0].seen_on == "whole step"
    assert realised(seen) == pytest.approx([LR * DECAY] * 7, rel=0.01)


class ExchangesMemory(own.Plain):
    def change(self, p: Any, group: dict[str, Any]) -> None:
        p.data = p.data * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * p.grad


def test_a_step_may_give_its_tensors_other_memory() -> None:
    net = model()
    optimizer = ExchangesMemory(net.parameters(), lr=LR, weight_decay=DECAY)
    train(net, optimizer)
    addresses = [p.data_ptr() for p in net.parameters()]
    seen = weightdecay.probe(net, optimizer)
    assert realised(seen) == pytest.approx([LR * DECAY] * 7, rel=0.01)
    assert [p.data_ptr() for p in net.parameters()] == addresses


def test_weights_that_are_set_to_a_norm_do_not_decay_by_construction() -> None:
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=DECAY)

    @torch.no_grad()
    def normalise(*_: Any) -> None:
        for p in net.parameters():
            p.div_(p.norm())

    normalise()
    optimizer.register_step_post_hook(normalise)
    train(net, optimizer)
    seen = weightdecay.probe(net, optimizer)
    assert seen.optimizers[0].normalises
    assert realised(seen) == pytest.approx([0.0] * 7, abs=1e-6)


class RateByNorm(own.Plain):
    """As Adafactor with `scale_parameter`, or LAMB: the rate of a tensor, and its decay, go with its own norm."""

    def change(self, p: Any, group: dict[str, Any]) -> None:
        rate = float(group["lr"] * p.norm() / p.numel() ** 0.5)
        p.mul_(1 - rate * group["weight_decay"]).sub_(p.grad.sign(), alpha=rate)


def test_a_rate_that_goes_with_the_weights_has_no_form_and_its_decay_is_measured() -> None:
    net = model()
    optimizer = RateByNorm(net.parameters(), lr=LR, weight_decay=DECAY)
    train(net, optimizer)
    seen = weightdecay.probe(net, optimizer)
    assert seen.groups[0].factor is None
    for name, p in net.named_parameters():
        assert seen[name].requested is None
        assert seen[name].realised == pytest.approx(LR * DECAY * float(p.detach().square().mean().sqrt()), rel=0.01)


def test_a_step_that_moves_nothing_yet_is_left_to_the_twin() -> None:
    class BeginsLater(own.Plain):
        calls = 0

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            self.calls += 1
            if self.calls > 5:
                super().step(closure)

    (one,) = probed(BeginsLater).optimizers
    assert one.seen_on == "twin"
    assert "changes no tensor" in one.why


def test_a_group_is_seen_at_lr_0_and_asks_for_nothing_there() -> None:
    seen = probed(torch.optim.AdamW, lr=0.0, steps=1)
    assert seen.groups[0].factor == pytest.approx(1.0, rel=1e-4)
    assert seen.groups[0].lr_power == 1.0
    assert all(t.requested == 0 and t.realised == 0 and t.reads_weight_decay for t in seen)


def test_keys_that_a_step_never_reads_are_named() -> None:
    net = model()
    groups = [{"params": list(net.parameters()), "lr_scale": 0.5, "name": "all", "initial_lr": LR}]
    optimizer = torch.optim.Rprop(groups, lr=LR)
    optimizer.param_groups[0]["weight_decay"] = 0.1
    train(net, optimizer)
    (group,) = weightdecay.probe(net, optimizer).groups
    assert {"lr_scale", "weight_decay"} <= set(group.unread_keys)
    assert not {"name", "initial_lr", "params"} & set(group.unread_keys)
    assert not group.reads_weight_decay
    assert probed(torch.optim.AdamW).groups[0].unread_keys == ()


def test_a_group_that_is_copied_as_a_whole_is_asked_by_its_numbers() -> None:
    class Unpacks(own.Plain):
        def change(self, p: Any, group: dict[str, Any]) -> None:
            settings = {**group}
            p.mul_(1 - settings["lr"] * settings["weight_decay"]).sub_(p.grad, alpha=settings["lr"])

    assert probed(Unpacks, lr_scale=0.5).groups[0].unread_keys == ("lr_scale",)


def test_the_peak_is_the_largest_lr_that_the_group_itself_knows_of() -> None:
    net = model()
    optimizer = torch.optim.AdamW([{"params": list(net.parameters()), "lr": 1e-6}], lr=1.0, weight_decay=DECAY)
    assert weightdecay.probe(net, optimizer).groups[0].peak_lr is None
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=10)
    (group,) = weightdecay.probe(net, optimizer).groups
    assert (group.peak_lr, group.peak_key) == (0.3, "max_lr")


# --- gradients


def test_rows_without_a_gradient_that_shrink_are_counted() -> None:
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=DECAY)
    torch.autograd.backward(net(torch.arange(8)).square().mean())
    seen = weightdecay.probe(net, optimizer)
    assert (seen["0.weight"].idle_rows, seen["1.weight"].idle_rows) == (42, 0)


def test_a_tensor_without_a_gradient_that_is_stepped_all_the_same_is_idle() -> None:
    class TakesNoneForZero(own.Plain):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(1 - group["lr"] * group["weight_decay"])

    for cls, rows in ((TakesNoneForZero, 64), (torch.optim.AdamW, 0)):
        net = model()
        optimizer: Any = cls(net.parameters(), lr=LR, weight_decay=DECAY)
        train(net, optimizer)
        net[1].weight.grad = None  # type: ignore[index]
        assert weightdecay.probe(net, optimizer)["1.weight"].idle_rows == rows


@pytest.mark.parametrize("gradient", ["none", "nan", "infinite"])
def test_gradients_that_are_not_there_or_not_finite_are_not_believed(gradient: str) -> None:
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=DECAY)
    train(net, optimizer)
    for p in net.parameters():
        assert p.grad is not None
        p.grad = None if gradient == "none" else p.grad.fill_(float("nan" if gradient == "nan" else "inf"))
    seen = weightdecay.probe(net, optimizer)
    assert not any(tensor.has_gradient for tensor in seen)
    assert realised(seen) == pytest.approx([LR * DECAY] * 7, rel=0.01)


def test_sparse_gradients_are_served_and_kept() -> None:
    net = nn.Sequential(nn.Embedding(50, 8, sparse=True), nn.Linear(8, 8))
    optimizers = [torch.optim.SparseAdam(net[0].parameters()), torch.optim.SGD(net[1].parameters(), weight_decay=0.1)]
    torch.autograd.backward(net(torch.arange(8)).square().mean())
    gradient = net[0].weight.grad
    seen = weightdecay.probe(net, optimizers)
    assert net[0].weight.grad is gradient
    assert (seen["0.weight"].opaque, seen["0.weight"].realised) == ("", 0.0)
    assert seen["1.weight"].realised == pytest.approx(1e-4, rel=0.01)


# --- what cannot be seen


def test_a_step_that_wants_a_closure_is_refused_with_what_to_do() -> None:
    net = model()
    seen = weightdecay.probe(net, torch.optim.LBFGS(net.parameters()))
    assert all("needs a closure" in tensor.opaque and tensor.realised is None for tensor in seen)
    assert "step() takes none" in seen.optimizers[0].opaque


def test_the_twin_speaks_where_tensors_have_no_values() -> None:
    with torch.device("meta"):
        net = nn.Linear(8, 8)
    seen = weightdecay.probe(net, torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=DECAY))
    assert (seen.optimizers[0].seen_on, seen["weight"].seen_on) == ("twin", "twin")
    assert seen["weight"].realised == pytest.approx(LR * DECAY, rel=1e-6)
    assert "meta device" in seen.optimizers[0].why


def test_a_step_that_raises_is_opaque_with_its_reason() -> None:
    class Raises(own.Plain):
        def change(self, p: Any, group: dict[str, Any]) -> None:  # noqa: ARG002
            p.mul_(0.5)
            raise RuntimeError("this kernel needs a GPU")

    net = model()
    optimizer = Raises(net.parameters())
    before = [p.detach().clone() for p in net.parameters()]
    seen = weightdecay.probe(net, optimizer)
    assert "this kernel needs a GPU" in seen.optimizers[0].opaque
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_all_faults_of_a_call_are_told_together() -> None:
    with pytest.raises(OptimizerError) as raised:
        weightdecay.probe(model(), [object(), 3], steps=0)
    assert len(raised.value.faults) == 5
    with pytest.raises(OptimizerError, match="no optimizer was given"):
        weightdecay.probe(model())


# --- which tensors


def test_tensors_of_no_model_have_no_name_and_decay_all_the_same() -> None:
    p = nn.Parameter(torch.randn(64, 8))
    (tensor,) = weightdecay.probe(None, torch.optim.AdamW([p], lr=LR, weight_decay=DECAY))
    assert tensor.name == ""
    assert tensor.realised == pytest.approx(LR * DECAY, rel=0.01)


def test_a_tensor_in_two_groups_and_two_optimizers_is_seen_at_each_place() -> None:
    net = model()
    first = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=DECAY)
    first.param_groups.append({**first.param_groups[0], "params": [net[1].weight], "weight_decay": 0.3})  # type: ignore[index]
    second = torch.optim.SGD([net[1].weight], lr=LR, weight_decay=0.2)  # type: ignore[index]
    train(net, first, 0)
    places = [tensor for tensor in weightdecay.probe(net, optimizers=[first, second]) if tensor.name == "1.weight"]
    assert [(t.optimizer, t.group) for t in places] == [(0, 0), (0, 1), (1, 0)]
    assert [t.realised for t in places] == pytest.approx([1e-4, 3e-4, 2e-4], rel=0.01)


def test_weights_of_0_empty_and_0_dimensional_tensors_are_served() -> None:
    params = [nn.Parameter(torch.zeros(8, 8)), nn.Parameter(torch.ones(0, 4)), nn.Parameter(torch.tensor(2.0))]
    seen = list(weightdecay.probe(None, torch.optim.AdamW(params, lr=LR, weight_decay=DECAY)))
    assert [t.weight_norm for t in seen] == [0.0, 0.0, 2.0]
    assert seen[2].realised == pytest.approx(LR * DECAY, rel=0.01)


def test_several_steps_give_their_mean() -> None:
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=DECAY)
    train(net, optimizer)
    seen = weightdecay.probe(net, optimizer, steps=4)
    assert seen.optimizers[0].steps == 4
    assert realised(seen) == pytest.approx([LR * DECAY] * 7, rel=0.02)


# --- how it is shown


def test_a_probe_is_a_table_and_strict_json() -> None:
    seen = probed(torch.optim.AdamW)
    text = str(seen)
    assert "1.weight" in text
    assert "0.0001" in text
    assert "torch.optim.adamw.AdamW, seen on its own step" in text
    document = json.loads(seen.to_json())
    assert document["schema_version"] == 1
    assert [tensor["name"] for tensor in document["tensors"]] == [tensor.name for tensor in seen]
    with pytest.raises(KeyError, match=r"did you mean '1\.weight'"):
        seen["1.wieght"]
