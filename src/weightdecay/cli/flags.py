"""Types of flags. Values are taken as text: tyro stops at its first fault, we report all of them together."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from weightdecay.errors import ConfigError

T = TypeVar("T")


def _text(metavar: str) -> Any:
    """A value taken as text; an empty default means that the recipe decides, and is not shown."""
    return arg(
        metavar=metavar, help_behavior_hint=lambda default: "" if default in ("", "''") else f"(default: {default})"
    )


Argument = Positional[T]
Text = Annotated[str, _text("TEXT")]
Name = Annotated[str, _text("NAME")]
Choice = Annotated[str, _text("WHICH")]
Number = Annotated[str, _text("X")]
Count = Annotated[str, _text("N")]
Folder = Annotated[str, _text("DIR")]
Run = Annotated[str, _text("RUN")]
Recipe = Annotated[str, _text("[RECIPE[:SIZE]]")]
Sources = Annotated[tuple[str, ...], _text("[SRC …]")]
Words = Annotated[tuple[str, ...], _text("WORD")]
Paths = Annotated[tuple[str, ...], _text("PATH")]
Switch = FlagCreatePairsOff[Annotated[bool, arg(help_behavior_hint="")]]
Settings = UseAppendAction[Annotated[tuple[str, ...], arg(name="set", metavar="KEY=VALUE")]]


def key_value_pairs(settings: tuple[str, ...], faults: list[str]) -> dict[str, str]:
    """`--set section.key=value`, each; a fault for each that has no `=`."""
    pairs = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if equals:
            pairs[key.strip()] = value.strip()
        else:
            faults.append(f"--set {setting}: must be KEY=VALUE, like optimizer.beta2=0.95")
    return pairs


def whole_number(flag: str, text: str, faults: list[str], *, least: int = 0) -> int:
    """A flag's text as a whole number of at least `least`, or a fault."""
    try:
        number = int(text.replace("_", ""))
    except ValueError:
        number = least - 1
    if number < least:
        faults.append(f"{flag} {text}: must be a whole number of at least {least}")
        return least
    return number


def raise_together(faults: list[str]) -> None:
    """All faults of a command line at once.

    Raises:
        ConfigError: there are any.
    """
    if faults:
        raise ConfigError(faults)
