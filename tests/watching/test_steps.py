"""Which steps of a program's optimizers are seen, how often each counts, and what is audited together."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from weightdecay.watching.owners import Owners, tensors_of
from weightdecay.watching.steps import Steps, Watched

Seen = list[tuple[str, int, str, list[str]]]


class Watching:
    """Watches in this process, and notes instead of auditing: class, step, model, and the optimizers of that model."""

    def __init__(self, at_step: int = 2, stop_after: int = 0) -> None:
        self.seen: Seen = []
        self.gradients: list[bool] = []
        self.steps = Steps(at_step, stop_after, self._examine)

    def _examine(self, steps: Steps, due: Watched, owners: Owners) -> None:
        optimizer = due.reference()
        tensors = tensors_of(optimizer)
        model = owners.model_of(tensors)
        optimizers = owners.optimizers_of(model, tensors)
        for one in optimizers:
            steps.of(one).is_done = True
        due.is_done = True
        self.gradients.append(all(tensor.grad is not None for tensor in tensors))
        kinds = sorted(type(one).__name__ for one in optimizers)
        self.seen.append((type(optimizer).__name__, due.steps + 1, type(model).__name__, kinds))

    def steps_of(self, optimizer: Any) -> int:
        return self.steps.of(optimizer).steps


@pytest.fixture(autouse=True)
def without_what_other_tests_left() -> Iterator[None]:
    """Owners are looked for among all objects, which are millions after some thousand tests."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def watching() -> Iterator[Watching]:
    found = Watching()
    found.steps.attach()
    yield found
    found.steps.detach()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))  # type: ignore[no-any-return]


def train(model: Any, *optimizers: Any, steps: int = 3) -> None:
    for _ in range(steps):
        model(torch.ones(2, 4)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
        for parameter in model.parameters():
            parameter.grad = None


class Inherits(torch.optim.SGD):
    """Calls the step of a class of which there may be instances, too: torch's hooks then run twice."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


@pytest.mark.parametrize("base_is_made_before", [False, True])
def test_a_step_that_calls_its_base_class_counts_once(watching: Watching, base_is_made_before: bool) -> None:
    if base_is_made_before:
        torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    model = Net()
    optimizer = Inherits(model.parameters(), lr=0.1)
    train(model, optimizer)
    assert watching.steps_of(optimizer) == 3
    assert watching.seen == [("Inherits", 2, "Net", ["Inherits"])]


class Fails(torch.optim.SGD):
    fails = True

    def step(self, closure: Any = None) -> Any:
        if self.fails:
            raise ArithmeticError
        return super().step(closure)


def test_a_step_that_raised_does_not_count_and_the_next_one_does(watching: Watching) -> None:
    model = Net()
    optimizer = Fails(model.parameters(), lr=0.1)
    for _ in range(3):
        with pytest.raises(ArithmeticError):
            train(model, optimizer, steps=1)
    optimizer.fails = False
    train(model, optimizer)
    assert watching.steps_of(optimizer) == 3
    assert watching.seen == [("Fails", 2, "Net", ["Fails"])]


def test_all_optimizers_of_a_model_are_audited_together_and_another_model_by_itself(watching: Watching) -> None:
    model, other = Net(), nn.Linear(4, 4)
    first = torch.optim.AdamW(model.first.parameters())
    second = torch.optim.SGD(model.second.parameters(), lr=0.1)
    third = torch.optim.Adam(other.parameters())
    for _ in range(3):
        train(model, first, second, steps=1)
        train(other, third, steps=1)
    assert watching.seen == [("AdamW", 2, "Net", ["AdamW", "SGD"]), ("Adam", 2, "Linear", ["Adam"])]
    assert watching.gradients == [True, True]


class Plain:
    """No `torch.optim.Optimizer`: no hook ever runs."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": list(params), "lr": lr, "weight_decay": 0.1}]

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.data -= group["lr"] * (p.grad + group["weight_decay"] * p)


class Slotted(Plain):
    __slots__ = ()


class Groupless:
    """Neither an `Optimizer` nor groups."""

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.1) -> None:
        self.params, self.lr, self.weight_decay = list(params), lr, weight_decay
        self.momentum = [torch.zeros_like(p) for p in self.params]

    def zero_grad(self) -> None:
        for p in self.params:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for p, momentum in zip(self.params, self.momentum, strict=True):
            momentum.mul_(0.9).add_(p.grad)
            p.mul_(1 - self.lr * self.weight_decay).sub_(self.lr * momentum)


KINDS: list[Any] = [Plain, Slotted, Groupless]


@pytest.mark.parametrize("kind", KINDS)
def test_an_optimizer_that_is_none_of_torchs_is_caught_by_what_it_does_to_weights(
    watching: Watching, kind: Any
) -> None:
    model = Net()
    optimizer = kind(model.parameters())
    train(model, optimizer, steps=5)
    assert watching.seen == [(kind.__name__, 2, "Net", [kind.__name__])]
    assert watching.gradients == [True]
    assert watching.steps_of(optimizer) == 4  # the last shows at the next backward pass


def test_accumulated_gradients_are_one_step(watching: Watching) -> None:
    model = Net()
    optimizer = Plain(model.parameters())
    for micro_batch in range(12):
        model(torch.ones(2, 4)).square().mean().backward()
        if micro_batch % 3 == 2:
            optimizer.step()
    assert watching.steps_of(optimizer) == 3


def test_a_compiled_step_is_traced_without_us_and_audited_outside_of_it(watching: Watching) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    @torch.compile(backend="eager")
    def step() -> None:
        optimizer.step()

    for _ in range(4):
        model(torch.ones(2, 4)).square().mean().backward()
        step()
    assert watching.seen == [("SGD", 2, "Net", ["SGD"])]
    torch._dynamo.reset()


def test_a_step_that_is_compiled_with_its_backward_pass_is_seen_too(watching: Watching) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    @torch.compile(backend="eager")
    def step() -> None:
        model(torch.ones(2, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(4):
        step()
    assert watching.seen == [("SGD", 2, "Net", ["SGD"])]
    assert watching.gradients == [True]
    torch._dynamo.reset()


def test_a_compiled_model_is_the_authors(watching: Watching) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(torch.compile(model, backend="eager"), optimizer)
    ((_, _, found, _),) = watching.seen
    assert found in ("Net", "OptimizedModule")
    torch._dynamo.reset()


def test_one_optimizer_for_each_parameter_steps_in_the_backward_pass_and_all_are_audited_after_it(
    watching: Watching,
) -> None:
    model = Net()
    optimizers: dict[Tensor, Any] = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def step(p: Tensor) -> None:
        optimizers[p].step()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)  # type: ignore[no-untyped-call]
    for _ in range(3):
        model(torch.ones(2, 4)).square().mean().backward()
    assert [(step, model, len(kinds)) for _, step, model, kinds in watching.seen] == [(3, "Net", 4)]
    assert all(watching.steps_of(optimizer) == 3 for optimizer in optimizers.values())


class Wrapper:
    """Decays beside the optimizer that it wraps."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> Any:
        return self.optimizer.param_groups

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(0.99)
        self.optimizer.step()


def test_what_the_loop_calls_is_audited_and_not_what_it_wraps(watching: Watching) -> None:
    model = Net()
    train(model, Wrapper(torch.optim.SGD(model.parameters(), lr=0.1)))
    assert [(kind, step) for kind, step, _, _ in watching.seen] == [("Wrapper", 2)]


def test_an_optimizer_within_another_is_a_part_of_it(watching: Watching) -> None:
    class Outer(torch.optim.Optimizer):
        def __init__(self, inner: torch.optim.Optimizer) -> None:
            super().__init__(inner.param_groups, {})
            self.inner = inner

        def step(self, closure: Any = None) -> Any:
            return self.inner.step(closure)

    model = Net()
    optimizer = Outer(torch.optim.SGD(model.parameters(), lr=0.1))
    train(model, optimizer)
    assert [(kind, step) for kind, step, _, _ in watching.seen] == [("Outer", 2)]
    assert watching.steps.of(optimizer.inner).is_within


class Sharpness(torch.optim.Optimizer):
    """SAM: weights move twice in a step, between two backward passes, and the wrapped optimizer steps within."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1, "weight_decay": 0.1})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=0.1)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for p in self.param_groups[0]["params"]:
            self.state[p]["before"] = p.detach().clone()
            p.add_(p.grad, alpha=0.05)

    @torch.no_grad()
    def second_step(self) -> None:
        for p in self.param_groups[0]["params"]:
            p.data = self.state[p]["before"]
        self.base_optimizer.step()

    def step(self, closure: Any = None) -> Any:
        assert closure is not None
        self.first_step()
        closure()
        self.second_step()


def test_of_an_optimizer_that_steps_in_two_halves_the_wrapped_one_is_audited(watching: Watching) -> None:
    model = Net()
    optimizer = Sharpness(model.parameters())
    for _ in range(4):
        for half in (optimizer.first_step, optimizer.second_step):
            model(torch.ones(2, 4)).square().mean().backward()
            half()
            optimizer.zero_grad()
    assert [(kind, kinds) for kind, _, _, kinds in watching.seen] == [("SGD", ["SGD", "Sharpness"])]
    watching.steps.examine_at_end()
    assert len(watching.seen) == 1


def test_a_trainer_that_looks_like_an_optimizer_is_none(watching: Watching) -> None:
    class Trainer:
        def __init__(self) -> None:
            self.model = Net()
            self.params = list(self.model.parameters())
            self.optimizer = torch.optim.SGD(self.params, lr=0.1)

        def zero_grad(self) -> None:
            self.optimizer.zero_grad()

        def step(self) -> None:
            self.model(torch.ones(2, 4)).square().mean().backward()
            self.optimizer.step()
            self.zero_grad()

    trainer = Trainer()
    for _ in range(3):
        trainer.step()
    assert [kind for kind, _, _, _ in watching.seen] == ["SGD"]


def test_two_threads_that_train_at_once_are_counted_each_by_itself(watching: Watching) -> None:
    models = [Net(), Net()]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    pairs = zip(models, optimizers, strict=True)
    threads = [threading.Thread(target=train, args=pair, kwargs={"steps": 20}) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [watching.steps_of(optimizer) for optimizer in optimizers] == [20, 20]
    assert [(kind, step) for kind, step, _, _ in watching.seen] == [("SGD", 2), ("SGD", 2)]


def test_a_first_step_during_which_another_thread_goes_backward_counts_once(watching: Watching) -> None:
    model, other = Net(), Net()

    def go_backward() -> None:
        other(torch.ones(2, 4)).square().mean().backward()

    class Slow(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            thread = threading.Thread(target=go_backward)
            thread.start()
            thread.join()

    optimizer = Slow(model.parameters(), lr=0.1)
    train(model, optimizer)
    assert watching.steps_of(optimizer) == 3


# --- errors and signals


def frames_of(error: BaseException) -> list[str]:
    import traceback

    return [frame.filename for frame in traceback.extract_tb(error.__traceback__)]


class FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:  # noqa: ARG004
        raise ArithmeticError


def test_no_error_of_the_programs_tells_of_the_watch(watching: Watching) -> None:
    model = Net()
    optimizer, failing = torch.optim.SGD(model.parameters(), lr=0.1), Fails(model.parameters(), lr=0.1)
    failed: list[Any] = [
        lambda: FailsBackward.apply(model(torch.ones(2, 4))).sum().backward(),  # type: ignore[no-untyped-call]
        lambda: optimizer.load_state_dict({"state": {}, "param_groups": []}),
        failing.step,
    ]
    for what in failed:
        with pytest.raises((ArithmeticError, ValueError)) as told:
            what()
        assert len(frames_of(told.value)) > 1
        assert not [name for name in frames_of(told.value) if "watching/steps" in name or "watching/loads" in name]
    train(model, optimizer)  # and the watch goes on
    assert watching.steps_of(optimizer) == 3


def test_a_signal_that_comes_during_an_audit_reaches_the_programs_handler_after_it(watching: Watching) -> None:
    import os
    import signal

    class PreemptedError(Exception):
        pass

    def handler(number: int, frame: Any) -> None:  # noqa: ARG001
        raise PreemptedError

    audited: list[bool] = []
    examine = watching.steps._examine

    def interrupted(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        examine(*arguments)
        audited.append(True)

    watching.steps._examine = interrupted
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(PreemptedError) as told:
            train(model, optimizer)
        assert signal.getsignal(signal.SIGUSR1) is handler
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert audited == [True]
    assert watching.seen == [("SGD", 2, "Net", ["SGD"])]
    assert not [name for name in frames_of(told.value) if "watching/signals" in name or "watching/steps.py" in name]


def test_a_second_signal_does_not_wait_for_the_audit(watching: Watching) -> None:
    import signal

    def impatient(*_: Any) -> None:
        for _press in range(2):
            signal.raise_signal(signal.SIGINT)
        raise AssertionError("it went on")

    watching.steps._examine = impatient
    model = Net()
    with pytest.raises(KeyboardInterrupt):
        train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_frozen_before_it_is_audited_is_found(watching: Watching) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, steps=1)
    gc.freeze()
    try:
        train(model, optimizer, steps=1)
    finally:
        gc.unfreeze()
    assert watching.seen == [("SGD", 2, "Net", ["SGD"])]


def test_several_modules_of_one_optimizer_are_one_model() -> None:
    first, second = nn.Linear(4, 4), Net()
    optimizer = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.1)
    found = Owners().model_of(tensors_of(optimizer))
    assert isinstance(found, nn.ModuleDict)
    assert {type(child) for child in found.children()} == {nn.Linear, Net}


def test_the_step_to_stop_after_is_that_of_all_optimizers() -> None:
    watching = Watching(at_step=1, stop_after=1)
    watching.steps.attach()
    model = Net()
    first = torch.optim.AdamW(model.first.parameters())
    second = torch.optim.SGD(model.second.parameters(), lr=0.1)
    try:
        with pytest.raises(SystemExit) as left:
            train(model, first, second)
    finally:
        watching.steps.detach()
    assert left.value.code == 0
    assert (watching.steps_of(first), watching.steps_of(second)) == (1, 1)


def test_an_optimizer_that_is_gone_is_held_by_nobody(watching: Watching) -> None:
    import weakref

    def made() -> Any:
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(model, optimizer)
        return weakref.ref(model), weakref.ref(optimizer)

    references = made()
    gc.collect()
    assert [reference() for reference in references] == [None, None]
    assert len(watching.seen) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_weights_that_are_not_a_number_do_not_step_by_themselves(watching: Watching, dtype: torch.dtype) -> None:
    idle = torch.optim.AdamW([nn.Parameter(torch.full((8,), torch.nan, dtype=dtype))])
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer)
    assert watching.steps_of(idle) == 0
    assert watching.seen == [("SGD", 2, "Net", ["SGD"])]
