"""What a probe's steps touch beside the weights is put back: by hooks, in closures, after errors and interruptions."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import weightdecay
from tests.auditing.test_probe_untouched import forward, goes_on, model, train, unchanged
from tests.probing import optimizers as own
from weightdecay.auditing.python_state import PythonState
from weightdecay.auditing.written import Written

CALLS = 0


def counting_in_a_global(*_: Any) -> None:
    global CALLS
    CALLS += 1


class Counting:
    """A hook with all places to count in."""

    of_the_class = 0

    def __init__(self, net: nn.Module) -> None:
        self.net, self.calls = net, 0
        self.log: list[int] = []
        self.seen: set[int] = set()
        self.average = [p.detach().clone() for p in net.parameters()]
        self.generator, self.numpys, self.pythons = torch.Generator(), np.random.default_rng(0), random.Random(0)

    @torch.no_grad()
    def __call__(self, optimizer: Any, *_: Any) -> None:
        self.calls += 1
        self.log.append(self.calls)
        self.seen.add(self.calls)
        Counting.of_the_class += 1
        optimizer.calls = self.calls
        for kept, p in zip(self.average, self.net.parameters(), strict=True):
            kept.lerp_(p, 0.1)
        for module in self.net.modules():
            module.training = not module.training
        torch.rand(1, generator=self.generator), torch.rand(1), self.numpys.random(), np.random.rand()
        self.pythons.random(), random.random()

    def counts(self) -> Any:
        states = self.generator.get_state().tolist(), self.numpys.bit_generator.state, self.pythons.getstate()
        tensors = [kept.tolist() for kept in self.average]
        return self.calls, list(self.log), set(self.seen), Counting.of_the_class, states, tensors


def test_whatever_a_hook_counts_or_averages_is_as_before() -> None:
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    hook, in_a_closure = Counting(net), [0]
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1
        in_a_closure[0] += 1
        count.calls = calls  # type: ignore[attr-defined]

    for register in (optimizer.register_step_pre_hook, optimizer.register_step_post_hook):
        for each in (hook, count, counting_in_a_global):
            register(each)
    train(net, optimizer, 2)
    train(net, optimizer, 0)
    before = hook.counts(), calls, in_a_closure[0], CALLS, vars(count).copy(), [m.training for m in net.modules()]
    assert calls == 4
    with unchanged(net, optimizer):
        weightdecay.probe(net, optimizer)
    assert before == (
        hook.counts(), calls, in_a_closure[0], CALLS, vars(count).copy(), [m.training for m in net.modules()]
    )  # fmt: skip


OWN = [own.Plain, own.BoundMethods, own.StateInConstructor, own.ProgressInGroups, own.CachesInGroup, own.DrawsNumbers]


@pytest.mark.parametrize("cls", [*OWN, own.KeepsListOfGroups, own.DecaysBehindNorm], ids=lambda cls: cls.__name__)
def test_optimizers_that_people_write_go_on_as_if_never_probed(cls: Any) -> None:
    goes_on(lambda net: cls(net.parameters(), lr=0.01, weight_decay=0.1))


def test_a_scheduler_s_count_of_steps_is_as_before() -> None:
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    torch.autograd.backward(forward(net))
    with unchanged(net, optimizer):
        weightdecay.probe(net, optimizer)
    assert not hasattr(optimizer, "_opt_called")
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)


def test_a_controlled_optimizer_goes_on_as_if_never_probed() -> None:
    def make(net: nn.Module) -> Any:
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=1e-3)
        weightdecay.control(
            optimizer, rule="independent", peak_lr=1e-2, schedule=weightdecay.schedules.Linear(1e-3, 0.0, steps=20)
        )
        return optimizer

    goes_on(make)


@pytest.mark.long
def test_a_compiled_step_goes_on_as_if_never_probed() -> None:
    def make(net: nn.Module) -> Any:
        optimizer: Any = torch.optim.AdamW(net.parameters(), lr=torch.tensor(1e-2), weight_decay=0.1, capturable=False)
        optimizer.step = torch.compile(optimizer.step, backend="eager")
        return optimizer

    goes_on(make)


class Interrupts(own.Plain):
    """Raises in its n-th change, when weights and state are half-way."""

    def __init__(self, params: Any, error: BaseException, at: int, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.error, self.at, self.changes = error, at, itertools.count()

    def change(self, p: Any, group: dict[str, Any]) -> None:
        group["half_way"] = True
        self.state[p]["sum"] = self.state[p].get("sum", 0) + 1
        p.mul_(1 - group["lr"] * group["weight_decay"])
        if next(self.changes) == self.at:
            raise self.error
        p.sub_(p.grad, alpha=group["lr"])


@pytest.mark.parametrize("at", [0, 1, 5, 20, 40])
def test_everything_is_put_back_when_somebody_interrupts(at: int) -> None:
    net = model()
    optimizer = Interrupts(net.parameters(), KeyboardInterrupt(), at)
    torch.autograd.backward(forward(net))
    with unchanged(net, optimizer), pytest.raises(KeyboardInterrupt):
        weightdecay.probe(net, optimizer)


@pytest.mark.parametrize("at", [0, 1, 5, 20, 40])
def test_everything_is_put_back_when_a_step_raises(at: int) -> None:
    net = model()
    optimizer = Interrupts(net.parameters(), RuntimeError("out of memory"), at)
    torch.autograd.backward(forward(net))
    with unchanged(net, optimizer):
        weightdecay.probe(net, optimizer)


def test_it_may_be_called_from_threads_and_again_and_again() -> None:
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1)
    train(net, optimizer, 2)
    torch.autograd.backward(forward(net))
    seen: list[list[float | None]] = []

    def probe() -> None:
        seen.append([tensor.realised for tensor in weightdecay.probe(net, optimizer)])

    with unchanged(net, optimizer):
        threads = [threading.Thread(target=probe) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        probe()
    assert len(seen) == 4
    assert all(one == seen[0] for one in seen)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_may_be_called_under_any_grad_mode(guard: Callable[[], Any]) -> None:
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1)
    torch.autograd.backward(forward(net))
    with unchanged(net, optimizer), guard():
        weightdecay.probe(net, optimizer)


def test_no_number_of_threads_is_left_behind() -> None:
    before = torch.get_num_threads()
    net = model()
    weightdecay.probe(net, torch.optim.AdamW(net.parameters()))
    assert torch.get_num_threads() == before


# --- the two memories, by themselves


def test_contents_are_saved_before_the_first_write_whichever_view_it_goes_through() -> None:
    base = torch.arange(12.0)
    views = [base[2:8], base.view(3, 4)[1], base]
    before, version = base.clone(), base._version
    written = Written()
    with written:
        for view in views:
            view.mul_(2)
        torch._foreach_add_(views, 1.0)
        base[3] = float("nan")
    written.put_back()
    assert torch.equal(base, before)
    assert base._version == version
    assert torch.equal(written.original(views[0]), before[2:8])


def test_writes_that_nobody_sees_are_noticed_where_contents_were_saved() -> None:
    tensor, written = torch.zeros(4), Written()
    written.save(tensor)
    with written:
        tensor.numpy()[:] = 1.0  # as a kernel of one's own writes, past torch's dispatcher
    assert written.has_unseen_writes()
    written.put_back()
    assert not tensor.any()


def test_containers_keep_their_identity_order_and_items() -> None:
    inner: dict[str, Any] = {"b": 1, "a": [1, 2, {3}]}
    held: list[Any] = [inner, (inner["a"],)]
    state = PythonState([held])
    inner["c"], inner["a"][2], inner["a"] = 3, 0, []
    del inner["b"]
    held.clear()
    state.put_back()
    assert held[0] is inner
    assert list(inner.items()) == [("b", 1), ("a", [1, 2, {3}])]
    assert held[1][0] is inner["a"]


def test_what_was_added_to_a_tensor_is_taken_away() -> None:
    p = nn.Parameter(torch.ones(2))
    state = PythonState([p])
    p.grad, p.requires_grad = torch.ones(2), False
    p.data = torch.zeros(3)
    state.put_back()
    seen: Tensor = p
    assert seen.grad is None
    assert seen.requires_grad
    assert seen.tolist() == [1.0, 1.0]
