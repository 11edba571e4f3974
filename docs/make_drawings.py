"""Draw the two ways that `architecture.md` describes: of a parameter, and of a batch."""

from __future__ import annotations

import html
from collections.abc import Sequence

from figures import PICTURES

_WIDTH, _GAP, _HEIGHT = 172, 22, 74
_INK, _FILL, _ROOM = "#24476b", "#eef4fa", "#6a7c8f"

Stay = tuple[str, str, str]
"""What it is there, how it is made, in which room."""

PARAMETER: tuple[Stay, ...] = (
    ("nn.Parameter", "of any module", "your model"),
    ("a name", "of the bare model", "naming"),
    ("uses", "one traced forward", "planning/evidence"),
    ("a role", "use > type > name", "planning/roles"),
    ("a share of λ", "policy, override, mark", "planning/policies"),
    ("a group", "param_groups", "planning → optim"),
    ("a step", "direction, rule, rounding", "optim"),
    ("a proof", "stepped, put back", "auditing"),
)
BATCH: tuple[Stay, ...] = (
    ("text", "files, tables, streams", "data"),
    ("documents", "and a held-out part", "data"),
    ("tokens", "bytes, BPE, yours", "data"),
    ("shards", "memory-mapped, hashed", "data"),
    ("a batch", "of (seed, step, rank)", "data"),
    ("gradients", "micro-batches", "training"),
    ("a step", "clip, η, λ, update", "training"),
    ("a run directory", "metrics, checkpoints", "runs"),
)


def draw(name: str, title: str, stays: Sequence[Stay]) -> None:
    """Write `pictures/NAME.svg`: the stays in two rows, led through by arrows."""
    half = len(stays) // 2
    width, height = half * (_WIDTH + _GAP) + _GAP, 2 * (_HEIGHT + 40) + 10
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
    parts = [
        f'{opening} role="img"><title>{html.escape(title)}</title>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, (what, how, room) in enumerate(stays):
        row, column = divmod(number, half)
        x, y = _GAP + column * (_WIDTH + _GAP), 14 + row * (_HEIGHT + 40)
        middle = x + _WIDTH / 2
        parts += [
            f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT - 18}" rx="7" fill="{_FILL}" stroke="{_INK}"/>',
            _text(middle, y + 24, what, 14, _INK, weight="bold"),
            _text(middle, y + 43, how, 11, _INK),
            _text(middle, y + _HEIGHT - 2, room, 11, _ROOM),
        ]
        if column < half - 1:
            parts.append(_arrow(x + _WIDTH, y + 28, x + _WIDTH + _GAP, y + 28))
    # From the end of the first row to the beginning of the second.
    right, left = _GAP + (half - 1) * (_WIDTH + _GAP) + _WIDTH / 2, _GAP + _WIDTH / 2
    below = 14 + _HEIGHT + 14
    parts.append(
        f'<path d="M{right} {14 + _HEIGHT + 4} V{below} H{left} V{14 + _HEIGHT + 40}" fill="none" stroke="{_INK}"/>'
    )
    parts.append(f'<path d="M{left} {14 + _HEIGHT + 40} l-4 -7 h8 z" fill="{_INK}"/></svg>')
    (PICTURES / f"{name}.svg").write_text("\n".join(parts) + "\n", encoding="utf-8")


def _text(x: float, y: float, words: str, size: int, color: str, *, weight: str = "normal") -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" fill="{color}" text-anchor="middle">'
        f"{html.escape(words)}</text>"
    )


def _arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    return f'<path d="M{x} {y} H{to_x - 6}" stroke="{_INK}"/><path d="M{to_x} {to_y} l-7 -4 v8 z" fill="{_INK}"/>'


if __name__ == "__main__":
    draw("way_of_a_parameter", "From a parameter to a step that decays it", PARAMETER)
    draw("way_of_a_batch", "From a text to a step", BATCH)
