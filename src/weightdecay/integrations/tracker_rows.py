"""What of a run's row a tracker draws over steps, and what it tells as an alarm."""

from __future__ import annotations

from weightdecay.runs import Row

# One tensor's numbers at steps of its own: a chart for each of a thousand names helps nobody.
_NOT_DRAWN = ("decay",)
_LABELS = ("kind", "step", "role")
# Of what, and as of when, a role's numbers are: no measurements.
_OF_A_ROLE = ("tokens", "tensors", "elements", "oldest_step")


def scalars(row: Row) -> dict[str, float]:
    """The numbers of a row by the names of their charts: `train/loss`, `eval/val_loss`, `decay norm gain/angle`."""
    kind = str(row["kind"])
    if kind in _NOT_DRAWN or is_alarm(row):
        return {}
    # Trackers group charts by what stands before the slash: a role's are together.
    is_of_role = kind == "decay-role"
    place, left_out = (f"decay {row['role']}", _LABELS + _OF_A_ROLE) if is_of_role else (kind, _LABELS)
    return {
        f"{place}/{key}": value
        for key, value in row.items()
        if key not in left_out and isinstance(value, int | float) and not isinstance(value, bool)
    }


def is_alarm(row: Row) -> bool:
    """Whether the row says that something is wrong: a finding of an audit, or what the monitor calls out."""
    return str(row["kind"]) == "alarm"


def alarm_title(row: Row) -> str:
    return f"{row['code']}: {row['title']}"


def alarm_text(row: Row) -> str:
    """An alarm in Markdown: by how much, why it matters, which tensors, and the code that mends it."""
    tensors = [f"`{name}`" for name in row.get("tensors", ())]
    more = f" … and {len(tensors) - _NAMED} more" if len(tensors) > _NAMED else ""
    said = [f"**{row['severity']}** {alarm_title(row)}", str(row.get("detail") or ""), str(row.get("why") or "")]
    said.append(", ".join(tensors[:_NAMED]) + more)
    if row.get("fix"):
        said.append(f"```python\n{row['fix']}\n```")
    return "\n\n".join(part for part in said if part)


_NAMED = 12
