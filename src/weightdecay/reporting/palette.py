"""The colours of pages and pictures: by name, for light and for dark.

Pictures say `var(--blue)`: within a page its style sheet decides what that is, and an SVG by itself carries both.
Lines and text were chosen for a contrast of at least 3 and 4.5 on the paper of their mode (WCAG 2.2, 1.4.3 and
1.4.11), which the tests hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

LIGHT: Mapping[str, str] = {
    "paper": "#ffffff",
    "panel": "#f6f8fa",
    "ink": "#1f2328",
    "quiet": "#59636e",
    "grid": "#d8dee4",
    "blue": "#0969da",
    "orange": "#bc4c00",
    "green": "#1a7f37",
    "purple": "#8250df",
    "pink": "#bf3989",
    "teal": "#1b7c83",
    "ochre": "#9a6700",
    "grey": "#6e7781",
}
DARK: Mapping[str, str] = {
    "paper": "#0d1117",
    "panel": "#161b22",
    "ink": "#f0f6fc",
    "quiet": "#9198a1",
    "grid": "#30363d",
    "blue": "#4493f8",
    "orange": "#f0883e",
    "green": "#3fb950",
    "purple": "#ab7df8",
    "pink": "#db61a2",
    "teal": "#39c5cf",
    "ochre": "#d29922",
    "grey": "#8b949e",
}
SERIES = ("blue", "orange", "green", "purple", "pink", "teal", "ochre", "grey")
"""In the order in which series take them."""

_VARIABLE = re.compile(r'"var\(--([a-z]+)\)"')


def color(name: str) -> str:
    """As pictures and style sheets write it."""
    return f"var(--{name})"


def variables(colors: Mapping[str, str]) -> str:
    """`--ink: #1f2328; …`, for a style sheet."""
    return " ".join(f"--{name}: {value};" for name, value in colors.items())


def fixed(svg: str) -> tuple[str, str]:
    """An SVG with the light colours in place of their names, and the style that makes them dark ones in dark mode.

    Programs that know no style sheets show the light ones.
    """
    used = sorted(set(_VARIABLE.findall(svg)) & LIGHT.keys())
    rules = " ".join(
        f'[{where}="{LIGHT[name]}"] {{ {where}: {DARK[name]}; }}' for name in used for where in ("fill", "stroke")
    )
    plain = _VARIABLE.sub(lambda found: f'"{LIGHT.get(found[1], LIGHT["ink"])}"', svg)
    return plain, f"@media (prefers-color-scheme: dark) {{ {rules} }}"
