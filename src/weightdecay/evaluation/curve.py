"""A run's losses as a picture: an SVG by itself, readable in light and dark, made of the rows of metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from weightdecay.errors import printable
from weightdecay.runs import Row, Run

NAME = "loss.svg"

_WIDTH, _HEIGHT = 720, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 32, 40, 52
# More than two points a pixel nobody sees.
_MOST_POINTS = 1_200
_STYLE = """
  svg { color-scheme: light dark; font: 13px system-ui, sans-serif; }
  .paper { fill: #ffffff; } text { fill: #1f2328; } .grid { stroke: #d8dee4; } .quiet { fill: #59636e; }
  .train { stroke: #0969da; } .held-out { stroke: #bc4c00; fill: #bc4c00; } polyline { fill: none !important; }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #0d1117; } text { fill: #f0f6fc; } .grid { stroke: #30363d; } .quiet { fill: #9198a1; }
    .train { stroke: #4493f8; } .held-out { stroke: #f0883e; fill: #f0883e; }
  }
"""

Point = tuple[float, float]


def write_loss_curve(run: Run) -> Path | None:
    """`loss.svg` in a run's directory; None, and no file, where no step was logged yet.

    Raises:
        StorageError: the disk refused.
    """
    rows = list(run.rows())
    training = _points(rows, "train", "loss")
    if not training:
        return None
    run.write_text(NAME, loss_curve(training, _points(rows, "eval", "val_loss"), run.path.resolve().name))
    return run.path / NAME


def loss_curve(training: Sequence[Point], held_out: Sequence[Point], title: str) -> str:
    """The picture.

    Args:
        training, held_out: (step, loss in nats a token), in order; at least one training point.
        title: above it.
    """
    training = _thinned(training)
    losses = [loss for _, loss in (*training, *held_out)]
    low, high = min(losses), max(losses)
    if low == high:
        low, high = low - 0.5, high + 0.5
    first, last = training[0][0], max(step for step, _ in (*training, *held_out))

    def at(point: Point) -> str:
        step, loss = point
        x = _LEFT + (step - first) / max(1, last - first) * (_WIDTH - _LEFT - _RIGHT)
        y = _TOP + (high - loss) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
        return f"{x:.1f},{y:.1f}"

    name = _plain(title)
    size = f"0 0 {_WIDTH} {_HEIGHT}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" role="img" aria-label="{name}: loss by step">',
        f"<style>{_STYLE}</style>",
        f'<rect class="paper" width="{_WIDTH}" height="{_HEIGHT}"/>',
        f'<text x="{_LEFT}" y="22">{name}: loss in nats a token</text>',
    ]
    for loss in _ticks(low, high):
        x, y = at((first, loss)).split(",")
        parts += [
            f'<line class="grid" x1="{x}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>',
            f'<text class="quiet" x="{_LEFT - 8}" y="{float(y) + 4:.1f}" text-anchor="end">{loss:g}</text>',
        ]
    for step in _ticks(first, last):
        x = at((step, low)).split(",")[0]
        parts.append(f'<text class="quiet" x="{x}" y="{_HEIGHT - 30}" text-anchor="middle">{step:,.0f}</text>')
    parts.append(f'<text class="quiet" x="{_WIDTH / 2:g}" y="{_HEIGHT - 10}" text-anchor="middle">step</text>')
    parts.append(f'<polyline class="train" points="{" ".join(map(at, training))}"/>')
    if held_out:
        parts.append(f'<polyline class="held-out" points="{" ".join(map(at, held_out))}"/>')
        for point in held_out:
            x, y = at(point).split(",")
            parts.append(f'<circle class="held-out" cx="{x}" cy="{y}" r="3"/>')
    parts += _legend(training[-1][1], held_out[-1][1] if held_out else None)
    return "\n".join([*parts, "</svg>\n"])


def _points(rows: Iterable[Row], kind: str, key: str) -> list[Point]:
    found = ((row["step"], row[key]) for row in rows if row["kind"] == kind)
    return [(step, loss) for step, loss in found if loss is not None and math.isfinite(loss)]


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Means of stretches, where there are more points than a picture can show; the last point stays."""
    size = math.ceil(len(points) / _MOST_POINTS)
    if size <= 1:
        return list(points)
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    means = [(part[-1][0], math.fsum(loss for _, loss in part) / len(part)) for part in stretches]
    return [points[0], *means[:-1], points[-1]]


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two."""
    if high <= low:
        return [low]
    raw = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
    first = math.ceil(low / step)
    return [round(step * n, 12) for n in range(first, math.floor(high / step) + 1)]


def _legend(training: float, held_out: float | None) -> list[str]:
    entries = [("train", f"training {training:.3f}")]
    if held_out is not None:
        entries.append(("held-out", f"held-out {held_out:.3f}"))
    parts = []
    for index, (name, words) in enumerate(entries):
        x, y = _WIDTH - 186, _TOP + 22 + 20 * index
        parts += [
            f'<line class="{name}" stroke-width="2" x1="{x}" x2="{x + 24}" y1="{y - 4}" y2="{y - 4}"/>',
            f'<text x="{x + 32}" y="{y}">{words}</text>',
        ]
    return parts


def _plain(text: str) -> str:
    return escape(printable(text), {'"': "&quot;"})
