"""What a field of a dataclass may hold, said once: its type, range and choices in the annotation, its words below it.

    from dataclasses import dataclass
    from typing import Annotated, Literal
    from annotated_types import Ge
    from weightdecay.declared.fields import CLOSED, Flag, Number

    @dataclass(frozen=True, kw_only=True)
    class Settings:
        __pydantic_config__ = CLOSED

        lr: Annotated[Number, Ge(0), Flag("X")]
        '''Peak learning rate.'''
        shape: Literal["cosine", "linear"] = "cosine"
        '''How it falls.'''

Flags, help, checks, messages and pages are made from these. Nothing here imports pydantic: `--help` has no need of it.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from annotated_types import Ge, Gt, Interval, Le, Lt, MinLen

from weightdecay.declared import values
from weightdecay.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Read:
    """How a value that was given becomes one of the field's type, before its range is looked at."""

    how: Callable[[Any], Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(self.how, handler(source))


@dataclass(frozen=True)
class Then:
    """What becomes of a value that the field can hold."""

    how: Callable[[Any], Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self.how, handler(source))


@dataclass(frozen=True)
class Flag:
    """Marks a field that the command line has a flag of its own for.

    Args:
        metavar: what stands for its value in the help; empty where the choices do, or nothing has to.
        name: of the flag, where it is not the field's.
    """

    metavar: str = ""
    name: str = ""


Number = Annotated[float, Read(values.number)]
Count = Annotated[int, Read(values.whole_number)]
Seed = Annotated[int, Read(values.seed), Interval(ge=0, lt=2**64)]
Switch = Annotated[bool, Read(values.switch)]
Text = Annotated[str, Read(values.text)]
Path = Annotated[str, Read(values.path)]
Texts = Annotated[tuple[Text, ...], Read(values.texts)]
Paths = Annotated[tuple[Path, ...], Read(values.texts)]
Rows = Annotated[tuple[T, ...], Read(values.rows)]
# Of a dataclass: a key that is no field is a fault, or, of what newer versions add to, passed over.
CLOSED: Any = {"extra": "forbid"}
OPEN: Any = {"extra": "ignore"}


class Contradiction(NamedTuple):
    """What is wrong between values that are each in range.

    Attributes:
        keys: of these values; where one of them cannot be read, nothing is known of the others.
    """

    keys: tuple[str, ...]
    words: str


class ContradictionError(ConfigError):
    """Values of one dataclass that do not go together."""

    def __init__(self, found: Sequence[Contradiction]) -> None:
        super().__init__([contradiction.words for contradiction in found])
        self.found = list(found)


class Consistent:
    """A dataclass that also says what is wrong between its values."""

    def __post_init__(self) -> None:
        if found := list(self.contradictions()):
            raise ContradictionError(found)

    def contradictions(self) -> Iterator[Contradiction]:
        """Each fault with the keys it is about."""
        yield from ()


@dataclass(frozen=True)
class Declared:
    """A field, and where it stands.

    Attributes:
        key: dotted path from the outermost dataclass.
        hint: its annotation.
        words: what it means.
        default: its value when none is given; `dataclasses.MISSING` where one must be.
    """

    key: str
    hint: Any
    words: str
    default: Any

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def flag(self) -> Flag | None:
        return next((extra for extra in metadata(self.hint) if isinstance(extra, Flag)), None)


@cache
def leaves(kind: Any) -> Mapping[str, Declared]:
    """Every field by its dotted path; of a field that is a dataclass itself, its fields in its place."""
    return {found.key: found for found in _leaves(kind, "")}


def _leaves(kind: Any, above: str) -> Iterator[Declared]:
    for name, hint in hints(kind).items():
        if part := dataclass_of(hint):
            yield from _leaves(part, f"{above}{name}.")
        else:
            yield Declared(f"{above}{name}", hint, words(kind)[name], _default(kind, name))


@cache
def hints(kind: Any) -> Mapping[str, Any]:
    """The annotation of every field, whole."""
    found = typing.get_type_hints(kind, include_extras=True)
    return {item.name: found[item.name] for item in dataclasses.fields(kind)}


@cache
def words(kind: Any) -> Mapping[str, str]:
    """The text below every field, as one line; empty where there is none, or no source to read it in."""
    said: dict[str, str] = dict.fromkeys(hints(kind), "")
    for base in reversed(kind.__mro__):
        if hasattr(base, "__dataclass_fields__"):
            said |= _texts_in(base.__module__).get(base.__qualname__, {})
    return said


@cache
def _texts_in(module: str) -> Mapping[str, Mapping[str, str]]:
    """By class, the text that follows each annotated name of its body."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError, KeyError):
        return {}
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            pairs = zip(node.body, node.body[1:], strict=False)
            found[node.name] = {
                field.target.id: " ".join(text.value.value.split())
                for field, text in pairs
                if isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            }
    return found


def _default(kind: Any, name: str) -> Any:
    item = next(item for item in dataclasses.fields(kind) if item.name == name)
    return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()


def dataclass_of(hint: Any) -> Any:
    """The dataclass that a field holds, be it that it may also hold None; None for another field."""
    return next((one for one in alternatives(hint) if dataclasses.is_dataclass(one) and isinstance(one, type)), None)


def alternatives(hint: Any) -> list[Any]:
    """What a field may hold, one by one: the members of a union, without what is said about them."""
    if typing.get_origin(hint) is Annotated:
        return alternatives(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [one for member in typing.get_args(hint) for one in alternatives(member)]
    return [hint]


def item_of(hint: Any) -> Any:
    """What a list or the values of a table are made of; None for what is neither."""
    for one in alternatives(hint):
        if typing.get_origin(one) is tuple:
            return typing.get_args(one)[0]
        if typing.get_origin(one) in (dict, Mapping):
            return typing.get_args(one)[1]
    return None


def keys_of(hint: Any) -> Any:
    """What the keys of a table are, of a field that holds one."""
    tables = (one for one in alternatives(hint) if typing.get_origin(one) in (dict, Mapping))
    return next((typing.get_args(one)[0] for one in tables), str)


def choices(hint: Any) -> list[str]:
    """The names that a field takes, of those that take names alone."""
    found: list[str] = []
    for one in alternatives(hint):
        if one is type(None):
            continue
        if typing.get_origin(one) is Literal:
            found += typing.get_args(one)
        elif isinstance(one, type) and issubclass(one, Enum):
            found += [member.value for member in one]
        else:
            return []
    return found


def expected(hint: Any) -> str:
    """What a field takes, as the end of `must be …`."""
    inner = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    members = typing.get_args(inner) if typing.get_origin(inner) in (typing.Union, types.UnionType) else (hint,)
    return ", or ".join(_expected(member) for member in members if member is not type(None))


def _expected(hint: Any) -> str:
    if names := choices(hint):
        return " or ".join(names)
    one = alternatives(hint)[0]
    if one in _TYPES:
        said = metadata(hint)
        return " ".join(filter(None, (_TYPES[one], _range(said), "that says something" * (MinLen(1) in said))))
    item = item_of(one)
    if part := dataclass_of(one if item is None else item):
        return f"{'a table' if item is None else 'a list of tables'} with {', '.join(hints(part))}"
    if str in alternatives(item):
        return "a list of texts"
    return f"{'a list, each entry' if typing.get_origin(one) is tuple else 'a table, each value'} {expected(item)}"


_TYPES = {float: "a number", int: "a whole number", bool: "true or false", str: "UTF-8 text"}


def metadata(hint: Any) -> tuple[Any, ...]:
    """What is said about a type beside it, also about one that stands in a union."""
    if typing.get_origin(hint) is Annotated:
        return (*metadata(typing.get_args(hint)[0]), *typing.get_args(hint)[1:])
    return ()


def _bound(number: float) -> str:
    """A number as short as it can be told: 2^64, which six digits would only be near to."""
    power = number.bit_length() - 1 if isinstance(number, int) else 0
    return f"2^{power}" if power > 53 and number == 2**power else f"{number:g}"


def _range(said: tuple[Any, ...]) -> str:
    """Where a number must lie: `from 0 to below 1`."""
    bounds = {}
    for one in (bound for extra in said for bound in (extra if isinstance(extra, Interval) else [extra])):
        if isinstance(one, Ge | Gt | Le | Lt):
            (bounds[type(one)],) = dataclasses.astuple(one)
    low, above, high, below = (bounds.get(kind) for kind in (Ge, Gt, Le, Lt))
    upper = f"{high:g}" if high is not None else f"below {_bound(below)}" if below is not None else ""
    if low is not None:
        return f"from {low:g} to {upper}" if upper else f"of at least {low:g}"
    if above is not None:
        return f"above {above:g}" + (f", up to {upper}" if upper else "")
    return (f"of at most {high:g}" if high is not None else upper) if upper else ""
