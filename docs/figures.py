"""What the scripts of this folder share: blocks of a page that a script writes, and line charts as SVG."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

DOCS = Path(__file__).parent
PICTURES = DOCS / "pictures"
_COLORS = ("#1b6ca8", "#c4501b", "#2a8a4a", "#8a4fb0", "#9a7b0a", "#5b5b5b")
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _RIGHT = 720, 320, 64, 20, 44, 170


def write_block(page: str, name: str, text: str) -> None:
    """Replace what stands between the page's markers `<!-- NAME -->` and `<!-- /NAME -->`.

    Raises:
        SystemExit: the page has no such markers.
    """
    path = DOCS / page
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.DOTALL)
    before = path.read_text(encoding="utf-8")
    if not pattern.search(before):
        raise SystemExit(f"{page} has no block '{name}'")
    path.write_text(pattern.sub(lambda found: f"{found[1]}{text.strip()}\n{found[2]}", before), encoding="utf-8")
    print(f"{page}: wrote {name}")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others numbers."""
    lines = [" | ".join(header), " | ".join(["---", *["---:"] * (len(header) - 1)])]
    return "\n".join(f"| {line} |" for line in [*lines, *(" | ".join(row) for row in rows)])


def line_chart(
    name: str,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    across: str,
    x_ticks: Mapping[float, str],
    y_ticks: Mapping[float, str],
    points: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
) -> None:
    """Write `pictures/NAME.svg`: one line for each curve of (x, y); the ticks span the axes.

    Args:
        points: as the curves, and drawn as dots.
    """
    x_low, x_high, y_low, y_high = min(x_ticks), max(x_ticks), min(y_ticks), max(y_ticks)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM),
        )

    opening = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-size="12"'
    parts = [
        f'{opening} font-family="sans-serif" role="img"><title>{html.escape(title)}</title>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    for value, label in y_ticks.items():
        x, y = at(x_low, value)
        parts.append(f'<line x1="{x}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 6}" y="{y + 4:.1f}" text-anchor="end">{html.escape(label)}</text>')
    for value, label in x_ticks.items():
        x, y = at(value, y_low)
        parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{html.escape(label)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{html.escape(across)}</text>')
    for number, (label, (xs, ys)) in enumerate(curves.items()):
        color = _COLORS[number % len(_COLORS)]
        inside = [(x, min(max(y, y_low), y_high)) for x, y in zip(xs, ys, strict=True)]
        corners = " ".join(f"{px:.1f},{py:.1f}" for px, py in (at(x, y) for x, y in inside))
        parts.append(f'<polyline points="{corners}" fill="none" stroke="{color}" stroke-width="2"/>')
        y = _TOP + 16 * number + 8
        parts.append(f'<text x="{_WIDTH - _RIGHT + 12}" y="{y}" fill="{color}">{html.escape(label)}</text>')
    for number, (label, (xs, ys)) in enumerate((points or {}).items(), start=len(curves)):
        color = _COLORS[number % len(_COLORS)]
        inside = [(x, min(max(y, y_low), y_high)) for x, y in zip(xs, ys, strict=True)]
        dots = "".join(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3"/>' for px, py in (at(x, y) for x, y in inside))
        parts.append(f'<g fill="{color}" fill-opacity="0.6">{dots}</g>')
        y = _TOP + 16 * number + 8
        parts.append(f'<text x="{_WIDTH - _RIGHT + 12}" y="{y}" fill="{color}">{html.escape(label)}</text>')
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / f"{name}.svg").write_text("\n".join(parts) + "\n</svg>\n", encoding="utf-8")
    print(f"pictures/{name}.svg: drawn")
