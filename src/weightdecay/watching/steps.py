"""Counts the steps of each optimizer of a program, and knows when one is to be audited.

torch calls hooks around the steps of all its optimizers. Where a step calls another (a base class's, a wrapped
optimizer's) the outermost counts. Where no hook is called, backward passes tell steps apart.
"""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as torchs

from weightdecay.probing.outermost import OutermostStep
from weightdecay.watching.arming import AfterImport
from weightdecay.watching.leaving import stop
from weightdecay.watching.loads import Loads
from weightdecay.watching.owners import Owners, enclosing, held_by, tensors_of
from weightdecay.watching.signals import Held
from weightdecay.watching.silent import Sample
from weightdecay.watching.tracebacks import hide_own_frames

_MANY = 256  # optimizers, of which those that are gone are forgotten
_SURE = 8  # backward passes after which an optimizer that has not been seen yet is looked for no more, if others step


@dataclass(eq=False)
class Watched:
    """One optimizer.

    Attributes:
        reference: to it, which does not keep it alive.
        kind: its class's name.
        steps: outermost ones that it has finished.
        has_begun: whether a hook has seen a step begin.
        is_silent: whether these are told by its weights, and no hook has seen one.
        is_within: whether its steps are made by another optimizer's.
        is_done: whether it has been audited, or need not be.
    """

    reference: Callable[[], Any]
    kind: str
    outermost: OutermostStep
    steps: int = 0
    has_begun: bool = False
    is_silent: bool = False
    is_within: bool = False
    is_done: bool = False
    sample: Sample | None = None


class _Here(threading.local):
    """What is going on in a thread.

    Attributes:
        running: the steps that have begun and not ended, outermost first.
        depth: of backward passes within backward passes.
        is_busy: an audit is being made, whose steps are none to look at.
    """

    def __init__(self) -> None:
        self.running: list[tuple[FrameType, Watched]] = []
        self.depth = 0
        self.is_busy = False


class Steps:
    """The steps of a program's optimizers.

    Args:
        at_step: the step just before which an optimizer is audited.
        stop_after: the step after which the program ends; 0 for none.
        examine: audits an optimizer, with all others of its model, and marks those that are done.
    """

    def __init__(self, at_step: int, stop_after: int, examine: Callable[[Steps, Watched, Owners], None]) -> None:
        self.at_step, self.stop_after, self._examine = at_step, stop_after, examine
        self.loads = Loads()
        self.watched: list[Watched] = []
        self.backwards = 0
        self._here = _Here()
        self._auditing = threading.Lock()
        self._by_id: dict[int, Watched] = {}
        self._due: list[Watched] = []
        self._known: list[weakref.ref[Any]] = []  # what was alive at the first step, `gc.freeze` or not
        self._has_begun = False
        self._undo: Callable[[], None] = lambda: None
        self._held: Any = None  # of the first step, until the second

    def attach(self) -> None:
        """See the steps from now on."""
        load, backward = Optimizer.load_state_dict, torch.autograd.backward
        before = torchs.register_optimizer_step_pre_hook(self.before_step)
        after = torchs.register_optimizer_step_post_hook(self.after_step)
        Optimizer.load_state_dict = self.loads.watching(load)  # type: ignore[method-assign]

        @functools.wraps(backward)
        def watched_backward(*arguments: Any, **named: Any) -> Any:
            if torch.compiler.is_compiling():
                return backward(*arguments, **named)
            here = self._here
            here.depth += 1
            try:
                backward(*arguments, **named)
                if here.depth == 1 and not here.is_busy:
                    self._after_backward(sys._getframe(1))
            except BaseException as error:
                hide_own_frames(error)
                raise
            finally:
                here.depth -= 1

        def undo() -> None:
            before.remove()
            after.remove()
            Optimizer.load_state_dict, torch.autograd.backward = load, backward  # type: ignore[method-assign]

        torch.autograd.backward = watched_backward
        self._undo = undo
        AfterImport("torch._dynamo", functools.partial(self._keep_from_dynamo, watched_backward)).arm()

    def _keep_from_dynamo(self, backward: Callable[..., Any]) -> None:
        """Have it not compile what is ours, which it takes for the program's; a backward pass is in no graph anyway."""
        from torch._dynamo import decorators

        decorators.skip(backward)  # this frame alone: what the pass calls is the program's
        compiled_never: Any = decorators.disable
        self._after_backward = compiled_never(self._after_backward)  # type: ignore[method-assign]

    def detach(self) -> None:
        """See no steps any more."""
        self._undo()

    def of(self, optimizer: Any) -> Watched:
        found = self._by_id.get(id(optimizer))
        if found is None or found.reference() is not optimizer:
            try:
                reference: Callable[[], Any] = weakref.ref(optimizer)
            except TypeError:  # a class with slots
                reference = lambda: optimizer  # noqa: E731
            found = Watched(reference, type(optimizer).__qualname__, OutermostStep())
            self._by_id[id(optimizer)] = found
            if len(self.watched) >= _MANY:  # a program that makes an optimizer for each task
                self.watched = [one for one in self.watched if one.reference() is not None]
            self.watched.append(found)
        return found

    # --- hooks

    def before_step(self, optimizer: Any, arguments: Any, named: Any) -> None:  # noqa: ARG002  # torch's signature
        if torch.compiler.is_compiling() or self._here.is_busy:
            return  # what is traced into a compiled step would run in it
        watched = self.of(optimizer)
        if not watched.outermost.begins():
            return
        try:
            self._begin(watched, sys._getframe(1))
        except BaseException as error:
            hide_own_frames(error)
            raise

    def _begin(self, watched: Watched, frame: FrameType) -> None:
        here = self._here
        if here.running:
            self._look_at_nesting(watched, frame)
        here.running.append((frame, watched))
        watched.is_silent, watched.has_begun = False, True
        if self.stop_after and watched.steps >= self.stop_after:
            self._stop()
        if watched.is_done or watched.is_within:
            return

        if not self._has_begun:
            self._has_begun = True
            self._remember(watched.reference(), Owners(frame))
        if watched.steps + 1 >= self.at_step:
            if here.depth:  # in the midst of a backward pass: some gradients have still to come
                self._due.append(watched)
            else:
                self._examine_now(watched, frame)

    def after_step(self, optimizer: Any, arguments: Any, named: Any) -> None:  # noqa: ARG002
        if torch.compiler.is_compiling() or self._here.is_busy:
            return
        watched = self.of(optimizer)
        if not watched.outermost.ends():
            return
        running = self._here.running
        while running and running.pop()[1] is not watched:
            pass
        watched.steps += 1
        if self.stop_after and watched.steps >= self.stop_after and self._all_have_stepped():
            self._stop()

    def _look_at_nesting(self, watched: Watched, frame: FrameType) -> None:
        """Know whether another optimizer's step makes this one, and forget the steps that have raised."""
        stack = set()
        outer = frame.f_back
        while outer is not None:
            stack.add(outer)
            outer = outer.f_back
        running = self._here.running
        running[:] = [(own, one) for own, one in running if own in stack]
        if not watched.is_done and running:
            own = {id(tensor) for tensor in tensors_of(watched.reference())}
            others = [one for _, one in running if one is not watched]
            watched.is_within |= any(own & {id(tensor) for tensor in tensors_of(one.reference())} for one in others)

    # --- backward passes

    def _after_backward(self, frame: FrameType) -> None:
        self.backwards += 1
        due, self._due = [one for one in self._due if not one.is_done], []
        if due:
            self._examine_now(due[0], frame)
        if self._has_to_look():
            owners = Owners(frame)
            self._remember(None, owners)
            for optimizer in owners.optimizers:
                watched = self.of(optimizer)
                if not watched.steps and watched.sample is None and _may_be_silent(optimizer):
                    watched.sample = Sample(tensors_of(optimizer))
        for watched in [one for one in self.watched if one.sample is not None]:
            self._look_at_silent(watched, frame)

    def _has_to_look(self) -> bool:
        is_seen = any(one.steps for one in self.watched)
        # At each power of two, so that it costs nothing in a long run.
        return self.backwards & (self.backwards - 1) == 0 and (self.backwards <= _SURE or not is_seen)

    def _look_at_silent(self, watched: Watched, frame: FrameType) -> None:
        optimizer = watched.reference()
        if optimizer is None or (watched.steps and not watched.is_silent):
            watched.sample = None
            return
        if self._moved_by_another(watched):  # and so were the steps that it seemed to have made
            watched.sample, watched.steps = None, 0
            return
        if watched.sample is None or not watched.sample.has_moved():
            return
        if watched.has_begun:  # another thread is in the midst of its first step, which will count itself
            watched.sample = None
            return
        watched.is_silent = True
        watched.steps += 1
        if self.stop_after and watched.steps >= self.stop_after:
            self._stop()
        if not watched.is_done and watched.steps + 1 >= self.at_step:
            self._examine_now(watched, frame)

    def _moved_by_another(self, watched: Watched) -> bool:
        """Whether its tensors are stepped by an optimizer whose steps are seen."""
        own = {id(tensor) for tensor in tensors_of(watched.reference())}
        seen = [one for one in self.watched if one.steps and not one.is_silent and one is not watched]
        return any(own & {id(tensor) for tensor in tensors_of(one.reference())} for one in seen)

    # --- what is due

    def _examine_now(self, watched: Watched, frame: FrameType | None) -> None:
        known = [value for reference in self._known if (value := reference()) is not None]
        owners = Owners(frame, known)
        outer = enclosing(watched.reference(), frame)
        if outer is not watched.reference():
            watched.is_done = watched.is_within = True
            steps, watched = watched.steps, self.of(outer)
            watched.steps = max(watched.steps, steps)
        with self._auditing:  # one at a time, whatever threads do
            self._here.is_busy = True
            try:
                with Held():
                    self._examine(self, watched, owners)
            finally:
                self._here.is_busy, self._held = False, None

    def examine_at_end(self) -> None:
        """Audit what has made a step and has not come to its turn, of what is still alive."""
        for watched in list(self.watched):
            if watched.steps and not (watched.is_done or watched.is_within) and watched.reference() is not None:
                self._examine_now(watched, None)

    def _remember(self, optimizer: Any, owners: Owners) -> None:
        """Know what is alive now: `gc.freeze` may hide it later."""
        self._known = [weakref.ref(value) for value in [*owners.modules, *owners.optimizers] if _has_reference(value)]
        if optimizer is not None and self.at_step == 2:
            # The second step may never come, and then the first one's model is audited at the end.
            self._held = optimizer, owners.model_of(tensors_of(optimizer))

    # --- the end that was asked for

    def _all_have_stepped(self) -> bool:
        """Whether every optimizer that is stepped at all has come so far; others follow in the same iteration."""
        alive = [one for one in self.watched if one.reference() is not None and not one.is_within]
        if self.stop_after == 1 and len(alive) == 1:
            # Nobody knows yet whether others come after it.
            alive += [self.of(one) for one in self._others(alive[0])]
        return all(one.steps >= self.stop_after for one in alive if one.steps or self.stop_after == 1)

    def _others(self, watched: Watched) -> list[Any]:
        owners, optimizer = Owners(sys._getframe(1)), watched.reference()
        model = owners.model_of(tensors_of(optimizer))
        own = {id(tensor) for tensor in tensors_of(optimizer)}
        return [
            one
            for one in owners.optimizers_of(model, tensors_of(optimizer))
            if not own & {id(tensor) for tensor in tensors_of(one)}
        ]

    def _stop(self) -> NoReturn:
        self._held = None
        stop()


def _may_be_silent(optimizer: Any) -> bool:
    """Whether nothing else tells its steps: what it wraps would, and what keeps no groups may be a whole trainer."""
    inner = held_by(optimizer)
    return not inner or (hasattr(optimizer, "param_groups") and not any(isinstance(one, Optimizer) for one in inner))


def _has_reference(value: Any) -> bool:
    return type(value).__weakrefoffset__ != 0
