"""Types of flags. Values are taken as text: tyro stops at its first fault, we report all of them together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, make_dataclass, replace
from typing import Annotated, Any, TypeVar

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from weightdecay.declared import values
from weightdecay.declared.fields import Declared, alternatives, choices, hints, leaves, metadata, words
from weightdecay.errors import ConfigError

T = TypeVar("T")


def _text(metavar: str, help: str | None = None) -> Any:
    """A value taken as text; an empty default means that the recipe decides, and is not shown."""
    return arg(
        metavar=metavar,
        help=help,
        help_behavior_hint=lambda default: "" if default in ("", "''") else f"(default: {default})",
    )


# Of a flag that is a path, or a name that a file may stand for.
A_PATH = "a path"

Argument = Positional[T]
Text = Annotated[str, _text("TEXT")]
Name = Annotated[str, _text("NAME")]
Choice = Annotated[str, _text("WHICH")]
Number = Annotated[str, _text("X")]
Count = Annotated[str, _text("N")]
Folder = Annotated[str, _text("DIR"), A_PATH]
File = Annotated[str, _text("FILE"), A_PATH]
NameOrFile = Annotated[str, _text("NAME"), A_PATH]
Model = Annotated[str, _text("TEXT"), A_PATH]
Run = Annotated[str, _text("RUN"), A_PATH]
Recipe = Annotated[str, _text("[RECIPE[:SIZE]]"), A_PATH]
WordsOrFiles = Annotated[tuple[str, ...], _text("WORD"), A_PATH]
Sources = Annotated[tuple[str, ...], _text("[SRC …]"), A_PATH]
Words = Annotated[tuple[str, ...], _text("WORD")]
Paths = Annotated[tuple[str, ...], _text("PATH"), A_PATH]
Switch = FlagCreatePairsOff[Annotated[bool, arg(help_behavior_hint="")]]
Settings = UseAppendAction[Annotated[tuple[str, ...], arg(name="set", metavar="KEY=VALUE")]]


@dataclass(frozen=True)
class SettingFlag:
    """A flag that a setting declares for itself.

    Attributes:
        name: as the command's dataclass has it, `weight_decay`.
        setting: what it sets.
    """

    name: str
    setting: Declared

    @property
    def shown(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    def field(self) -> tuple[str, Any, Any]:
        """Name, type and default for tyro: a switch, several texts, or one, with the setting's words as its help."""
        kind, said = alternatives(self.setting.hint)[0], self.setting.words
        if kind is bool:
            return self.name, FlagCreatePairsOff[Annotated[bool, arg(help_behavior_hint="", help=said)]], False
        names = choices(self.setting.hint)
        metavar = self.setting.flag.metavar if self.setting.flag else ""
        spoken = _text(metavar or "{" + ",".join(names) + "}", said)
        several = not names and kind not in (float, int, str)
        return self.name, Annotated[tuple[str, ...] if several else str, spoken], () if several else ""


def setting_flags(kind: Any) -> list[SettingFlag]:
    """The flags that the fields of a configuration declare, in their order."""
    return [
        SettingFlag(found.flag.name or key.rpartition(".")[2], found)
        for key, found in leaves(kind).items()
        if found.flag is not None
    ]


def with_setting_flags(kind: Any) -> Callable[[type[T]], type[T]]:
    """Gives a command's dataclass the flags of a configuration, between its first field and the others."""

    def widened(command: Any) -> Any:
        types, said = hints(command), words(command)
        own = [
            (item.name, Annotated[types[item.name], arg(help=said[item.name])], item.default)
            for item in fields(command)
        ]
        body = {name: value for name, value in vars(command).items() if name not in _DATACLASS_MAKES}
        made = [flag.field() for flag in setting_flags(kind)]
        return make_dataclass(command.__name__, [own[0], *made, *own[1:]], namespace=body, frozen=True)

    return widened


# What a class has anew once it is a dataclass of other fields; its words stay.
_Empty: type = dataclass(frozen=True)(type("Empty", (), {"x": 0, "__annotations__": {"x": int}}))
_DATACLASS_MAKES = frozenset(vars(_Empty)) - {"__doc__"}


def with_homes(command: Any) -> Any:
    """A command with `~` in its paths as a shell reads it where nobody quotes it; settings do that for themselves."""
    kind: Any = type(command)
    changed: dict[str, Any] = {}
    for name, hint in hints(kind).items():
        value = getattr(command, name)
        if is_dataclass(value):  # of a command in two words
            changed[name] = with_homes(value)
        elif A_PATH in metadata(hint):
            changed[name] = values.with_home(value) if isinstance(value, str) else tuple(map(values.with_home, value))
    return replace(command, **changed)


def key_value_pairs(settings: tuple[str, ...], faults: list[str]) -> dict[str, str]:
    """`--set section.key=value`, each, of one key the last; a fault for each that has no `=`."""
    pairs: dict[str, str] = {}
    for setting in settings:
        key, equals, value = (part.strip() for part in setting.partition("="))
        if equals:
            pairs[key] = value
        else:
            faults.append(f"--set {setting}: must be KEY=VALUE, like optimizer.beta2=0.95")
    return pairs


def whole_number(
    flag: str, text: str, faults: list[str], *, least: int = 0, read: Callable[[str], int] = values.whole_number
) -> int:
    """A flag's text, `1k` too, as a whole number of at least `least`; or a fault."""
    try:
        number = read(text)
    except ValueError:
        number = least - 1
    if number < least:
        faults.append(f"{flag} {text}: must be a whole number of at least {least}, of 64 bits")
        return least
    return number


def raise_together(faults: list[str]) -> None:
    """All faults of a command line at once.

    Raises:
        ConfigError: there are any.
    """
    if faults:
        raise ConfigError(faults)
