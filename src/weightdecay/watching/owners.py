"""Which live models and optimizers there are, and which belong together.

They are found among the objects that Python keeps count of, and, since `gc.freeze` hides what it freezes, in the
variables of the functions that are running. Objects are looked at and never called.
"""

from __future__ import annotations

import gc
import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from weightdecay.naming import unwrapped
from weightdecay.watching.groupless import listed_tensors

# Wrappers of training frameworks hand a step on, or leave it out; what they wrap makes it.
_HANDS_ON = frozenset(
    {"accelerate", "composer", "deepspeed", "lightning", "lightning_fabric", "pytorch_lightning", "torch",
     "transformers"}
)  # fmt: skip


class Owners:
    """The models and optimizers that are alive.

    Attributes:
        modules: all of them, parts too.
        optimizers: torch's, and what else has groups of parameters and a step.
    """

    def __init__(self, frame: FrameType | None = None, known: Iterable[Any] = ()) -> None:
        self.modules: list[nn.Module] = []
        self.optimizers: list[Any] = []
        self._seen: set[int] = set()
        kinds: dict[type, str] = {}
        for value in gc.get_objects():
            kind = type(value)
            what = kinds.get(kind)
            if what is None:
                what = kinds[kind] = _kind(kind)
            if what:
                self._add(value, what)
        for value in (*known, *_in_frames(frame)):
            self._enter(value)
        for model in list(self.modules):  # what is frozen is reached from what is not
            for module in model.modules():
                self._add(module, "module")

    def _enter(self, value: Any) -> None:
        if what := _kind(type(value)):
            self._add(value, what)

    def _add(self, value: Any, what: str) -> None:
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        if what == "module":
            if "_parameters" in vars(value):
                self.modules.append(value)
        elif not hands_on(value) and tensors_of(value):
            self.optimizers.append(value)

    def model_of(self, tensors: Sequence[Tensor]) -> nn.Module | None:
        """The outermost module that owns these tensors; several that own parts of them, as one; None if nobody does."""
        wanted = {id(tensor) for tensor in tensors}
        held = {id(root): _ids(root) for root in self._roots(wanted)}
        roots = [root for root in self._roots(wanted) if held[id(root)] & wanted]
        chosen: list[nn.Module] = []
        while wanted and roots:
            best = max(roots, key=lambda root: _rank(root, held[id(root)], wanted))
            if not held[id(best)] & wanted:
                break
            chosen.append(best)
            wanted -= held[id(best)]
            roots.remove(best)
        if len(chosen) < 2:
            return _bare(chosen[0]) if chosen else None
        return nn.ModuleDict({_name(root, place): root for place, root in enumerate(chosen)})

    def _roots(self, wanted: set[int]) -> list[nn.Module]:
        """The outermost of the modules in which tensors lie."""
        parents: dict[int, list[nn.Module]] = {}
        for module in self.modules:
            for child in module._modules.values():
                if child is not None:
                    parents.setdefault(id(child), []).append(module)
        waiting = [m for m in self.modules if any(id(p) in wanted for p in m._parameters.values() if p is not None)]
        found: dict[int, nn.Module] = {}
        seen: set[int] = set()
        while waiting:
            module = waiting.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            above = parents.get(id(module), [])
            waiting.extend(above)
            if not above:
                found[id(module)] = module
        # In the order in which they were found, which does not depend on the tensors.
        return [module for module in self.modules if id(module) in found]

    def optimizers_of(self, model: nn.Module | None, tensors: Sequence[Tensor]) -> list[Any]:
        """Those that hold any tensor of a model, or of these."""
        own = {id(tensor) for tensor in tensors} | (set() if model is None else _ids(model))
        return [one for one in self.optimizers if any(id(tensor) in own for tensor in tensors_of(one))]


def tensors_of(optimizer: Any) -> list[Tensor]:
    """The tensors in an optimizer's groups, or in its list where it keeps no groups; none where it has neither."""
    groups = _groups_of(optimizer)
    if groups is None:
        return listed_tensors(optimizer)
    if not isinstance(groups, list | tuple):
        return []
    found: list[Tensor] = []
    for group in groups:
        params = group.get("params") if isinstance(group, dict) else None
        if not isinstance(params, list | tuple):
            return []
        found += [tensor for tensor in params if isinstance(tensor, Tensor)]
    return found


def _groups_of(optimizer: Any) -> Any:
    groups = vars(optimizer).get("param_groups") if hasattr(optimizer, "__dict__") else None
    if groups is None and not isinstance(optimizer, Optimizer):
        try:
            return getattr(optimizer, "param_groups", None)  # a property, or a slot
        except Exception:  # others' code
            return ()
    return groups


def hands_on(optimizer: Any) -> bool:
    """Whether it is a training framework's wrapper, which makes no step of its own."""
    kind = type(optimizer)
    # A wrapper may call itself an optimizer of the wrapped one's class; torch wraps the steps of real ones.
    is_stepped = getattr(inspect.getattr_static(kind, "step", None), "hooked", False)
    return kind.__module__.partition(".")[0] in _HANDS_ON and not is_stepped


def enclosing(optimizer: Any, frame: FrameType | None) -> Any:
    """The optimizer in whose step this one's step is made, as the stack has it; the optimizer itself if there is none.

    A wrapper may decay, too, so that what the loop calls is audited.
    """
    own, outermost = {id(tensor) for tensor in tensors_of(optimizer)}, optimizer
    for code, local in _frames(frame):
        if code.co_name != "step" or not code.co_argcount:
            continue
        owner = local.get(code.co_varnames[0])
        if owner is None or owner is optimizer or isinstance(owner, nn.Module) or not _kind(type(owner)):
            continue
        # What has no groups may be a whole trainer.
        if _groups_of(owner) and not hands_on(owner) and own & {id(tensor) for tensor in tensors_of(owner)}:
            outermost = owner
    return outermost


def held_by(optimizer: Any) -> list[Any]:
    """What an optimizer wraps: the optimizers among its attributes, none of those in groups or lists."""
    held = vars(optimizer).values() if hasattr(optimizer, "__dict__") else ()
    return [value for value in held if _kind(type(value)) == "optimizer" and tensors_of(value)]


# --- what objects are


def _kind(kind: type) -> str:
    """What objects of a class are, by the class alone: an object may do anything when it is asked."""
    try:
        if issubclass(kind, nn.Module):
            return "module"
        if issubclass(kind, Optimizer):
            return "optimizer"
    except TypeError:
        return ""
    step = inspect.getattr_static(kind, "step", None)
    if not (inspect.isfunction(step) or isinstance(step, staticmethod | classmethod)):
        return ""
    # Schedulers and engines step, too, and hold no groups.
    has_zero_grad = inspect.getattr_static(kind, "zero_grad", None) is not None
    has_groups = inspect.getattr_static(kind, "param_groups", None) is not None
    own = kind.__init__ if inspect.isfunction(kind.__init__) else None
    sets_groups = any("param_groups" in _names(base) for base in kind.__mro__) if own else False
    return "optimizer" if has_zero_grad or has_groups or sets_groups else ""


def _names(kind: type) -> Iterator[str]:
    """The attributes that the methods of a class speak of."""
    for value in vars(kind).values():
        if inspect.isfunction(value):
            yield from value.__code__.co_names


def _is_made_by_compiling(module: nn.Module) -> bool:
    graph_module = getattr(sys.modules.get("torch.fx"), "GraphModule", None)
    return graph_module is not None and isinstance(module, graph_module)


def _ids(model: nn.Module) -> set[int]:
    return {id(parameter) for parameter in model.parameters()}


def _rank(root: nn.Module, held: set[int], wanted: set[int]) -> tuple[int, bool, int, int]:
    """Which of several owners is the author's model: it has the most of the tensors, was not made by compiling, has
    seen gradients, and holds little besides."""
    has_gradient = sum(parameter.grad is not None for parameter in root.parameters())
    return len(held & wanted), not _is_made_by_compiling(root), has_gradient, -len(held)


def _bare(root: nn.Module) -> nn.Module:
    """What a wrapper wraps, where all tensors are there."""
    inside = unwrapped(root)
    return inside if _ids(inside) == _ids(root) else root


def _name(root: nn.Module, place: int) -> str:
    return f"{type(unwrapped(root)).__name__}_{place}".lower()


# --- the functions that are running


def _frames(frame: FrameType | None) -> Iterator[tuple[Any, dict[str, Any]]]:
    while frame is not None:
        yield frame.f_code, frame.f_locals
        frame = frame.f_back


def _in_frames(frame: FrameType | None) -> Iterator[Any]:
    """What local and global variables of the running functions hold, and the attributes of their `self`."""
    seen: set[int] = set()
    while frame is not None:
        held = [frame.f_locals] if frame.f_locals is frame.f_globals else [frame.f_locals, frame.f_globals]
        for variables in held:
            if id(variables) not in seen:
                seen.add(id(variables))
                yield from list(variables.values())
        owner = frame.f_locals.get("self")
        if isinstance(getattr(owner, "__dict__", None), dict):
            yield from list(vars(owner).values())
        frame = frame.f_back
