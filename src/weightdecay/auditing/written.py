"""The contents of tensors, saved before a step writes to them, and put back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from weightdecay.probing.isolation import parts, storages, tensors_in, writes


class Written(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Saves each part of a tensor just before the first write to it, whoever holds the tensor.

    What is made in here needs no saving: nobody knows it outside. Kernels that write past torch's dispatcher are not
    seen; what they may write to is saved by `save` before the step.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._saved: dict[Any, tuple[Tensor, Tensor]] = {}
        self._versions: dict[Any, tuple[Tensor, int]] = {}
        self._made: set[int] = set()
        self.seen: set[int] = set()
        """The memories that were seen to be written to."""
        self.communicates = False
        """Whether a step spoke with other processes, past distributed tensors."""

    @property
    def bytes(self) -> int:
        """What the copies take."""
        return sum(copy.element_size() * copy.numel() for _, copy in self._saved.values() if not copy.is_sparse)

    def original(self, tensor: Tensor) -> Tensor:
        """The contents of a tensor before, of which the tensor itself may stand in where nobody wrote to it."""
        kept = self._saved.get(_key(tensor))
        return tensor if kept is None else kept[1]

    def has_unseen_writes(self) -> bool:
        """Whether something that was saved has changed, though no write to it was seen."""
        return any(
            key[0] not in self.seen and not torch.equal(tensor, copy)
            for key, (tensor, copy) in self._saved.items()
            if tensor.layout == torch.strided
        )

    @property
    def originals(self) -> list[tuple[Tensor, Tensor]]:
        """What was written to, and its contents before."""
        return list(self._saved.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        written, makes = writes(func)
        values = [args[position] if position < len(args) else given.get(name) for position, name in written]
        if func.namespace == "c10d":  # which does not say what it writes to
            self.communicates = True
            values = [*args, *given.values()]
        for tensor in tensors_in(values):
            self.save(tensor)
            self.seen.update(storages(tensor))

        made = func(*args, **given)
        if makes:
            for tensor in tensors_in(made):
                self._made.update(storages(tensor))
        return made

    @torch.no_grad()
    def save(self, tensor: Tensor) -> None:
        """Keep the contents of a tensor as they are now, if nobody has yet."""
        self._keep_version(tensor)
        if hasattr(tensor, "__tensor_flatten__"):
            for part in parts(tensor):
                self.save(part)
            return
        key = _key(tensor)
        # A view of a large memory is saved as a view; views that overlap are put back in the opposite order.
        if key not in self._saved and key[0] not in self._made and tensor.device.type != "meta":
            alias = tensor.detach()
            self._saved[key] = (alias, alias.clone())

    def _keep_version(self, tensor: Tensor) -> None:
        # Detached tensors and views share their base's counter, which may have moved when they are first seen.
        key = (hasattr(tensor, "__tensor_flatten__"), *storages(tensor))
        if key not in self._versions and not tensor.is_inference():
            self._versions[key] = (tensor, tensor._version)

    @torch.no_grad()
    def put_back(self) -> None:
        """Make the contents what they were; the copies are kept, for the next step from the same place."""
        for tensor, copy in reversed(self._saved.values()):
            tensor.copy_(copy)
        # A backward pass that has still to come looks whether its tensors have been written to since. What was first
        # seen counts, where memory was exchanged and a counter has been seen twice.
        for tensor, version in reversed(self._versions.values()):
            torch._C._autograd._unsafe_set_version_counter((tensor,), (version,))


def _key(tensor: Tensor) -> tuple[Any, ...]:
    """What tells a part of memory from others."""
    if tensor.layout != torch.strided:
        return (id(tensor),)
    return (*storages(tensor), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
