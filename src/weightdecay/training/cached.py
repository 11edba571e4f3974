"""Answers that take a second to work out, kept in the cache for the same question to the same code."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

import weightdecay
from weightdecay.errors import StorageError
from weightdecay.storage import cache_directory, whole_file

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Numbers = TypeVar("Numbers", bound="DataclassInstance")  # whose fields are whole numbers, all of them


def cached(kind: type[Numbers], question: object, answer: Callable[[], Numbers]) -> Numbers:
    """What `answer` gives, or gave the last time.

    A cache that cannot be read or written costs no more than the time.

    Args:
        kind: of the answer, a dataclass of whole numbers.
        question: all that the answer depends on, but the code; its `repr` tells questions apart.
    """
    identity = repr((question, torch.__version__, _code()))
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    place = cache_directory() / kind.__name__.lower() / f"{name}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        known = kind(**json.loads(place.read_bytes()))
        if all(type(value) is int for value in asdict(known).values()):
            return known

    found = answer()
    with contextlib.suppress(StorageError), whole_file(place) as file:
        file.write(json.dumps(asdict(found)).encode())
    return found


@functools.cache
def _code() -> str:
    """A digest of this package's sources: another version, or one that somebody edits, is asked anew."""
    root = Path(weightdecay.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".c", ".h")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
