"""Writes docs/recipes.md from the recipe files, so that the page cannot say anything else than they do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from weightdecay.recipes.entries import READ, STATUSES, source_of
from weightdecay.recipes.schema import Recipe, all_recipes

PAGE = Path(__file__).parent / "recipes.md"
# In the order of the table that people copy.
BRIEF = ("gpt2", "gpt3", "llama1", "llama2", "palm", "grok1", "mistral", "mixtral")
# What a schedule is made of: warm-up, descent, batch, clipping.
MOVING = (
    ("schedule.warmup_steps", "schedule.warmup_tokens", "schedule.warmup_fraction"),
    ("schedule.shape", "schedule.stages", "schedule.final_fraction", "schedule.decay_tokens"),
    ("run.batch_tokens", "run.batch_ramp", "run.batch_ramp_shape", "run.batch_ramp_increment"),
    ("optimizer.grad_clip", "schedule.grad_clip_changes"),
)
Systems = dict[str, list[Recipe]]


def page() -> str:
    """The whole page."""
    systems: Systems = {}
    for one in all_recipes():
        systems.setdefault(one.system, []).append(one)
    parts = (_head(), _brief(systems), _as_published(systems), _decays(systems), _moves(systems), _second_hand(systems),
             _sources(systems))  # fmt: skip
    return "\n".join(line for part in parts for line in part) + "\n"


def _head() -> list[str]:
    return [
        "# Where the numbers come from",
        "",
        "This page is made from the recipe files in `src/weightdecay/recipes/` by `docs/make_recipes.py`; a test fails",
        "if the two differ. `weightdecay recipes show NAME` has every value of a size with its source.",
        "",
        "Each value has one of four statuses:",
        "",
        *(f"- **{status}**: {meaning}" for status, meaning in STATUSES.items()),
        "",
        "and each source says how it was read:",
        "",
        *(f"- **{read}**: {meaning}" for read, meaning in READ.items()),
        "",
        "A recipe does not load if a value is confirmed by a source that was not read, and a test sees that nothing",
        "known *from memory* is called confirmed. No PDF could be opened for this page except Moonlight's, which lies",
        "in its repository; the papers' words were compared between copies where there were several.",
        "",
    ]


def _brief(systems: Systems) -> list[str]:
    lines = [
        "## The table that people copy",
        "",
        "It says: GPT-2 0.01; GPT-3, LLaMA 1 and 2, PaLM, Grok-1, Mistral and Mixtral 0.1. The recipes keep these",
        "numbers and say what they are.",
        "",
    ]
    rows, details = [], []
    for system in BRIEF:
        one = systems[system][-1]
        brief, weight_decay = one.brief, one.values["optimizer.weight_decay"]
        assert brief is not None, f"{system} has no [brief]"
        rows.append([one.title, f"{brief.value:g}", brief.published, weight_decay.status])
        details += [
            f"### {one.title}: {brief.value:g}",
            "",
            f"- **Published:** {brief.published}.",
            f"- **Where:** {brief.source}.",
            f"- **What it says:** {brief.says}",
            f"- **Check it:** {brief.check}",
            f"- **The recipe:** {_in_the_recipe(one)}",
            "",
        ]
    return [*lines, *_table(["system", "λ, the table", "λ, published", "status"], rows), "", *details]


def _in_the_recipe(one: Recipe) -> str:
    weight_decay, name, policy = (one.values[f"optimizer.{key}"] for key in ("weight_decay", "name", "policy"))
    note = f" {weight_decay.note[:1].upper()}{weight_decay.note[1:]}." if weight_decay.note else ""
    return (
        f"λ = {weight_decay.value:g} ({weight_decay.status}) under {name.value} ({name.status}).{note} "
        f"Exempt: {one.exempt}: {policy.source}."
    )


def _as_published(systems: Systems) -> list[str]:
    lines = ["## Where the published form is another: `--as-published`", ""]
    for sizes in systems.values():
        one = sizes[-1]
        if not one.published:
            continue
        rows = []
        for key, sourced in sorted(one.published.items()):
            kept = f"`{one.values[key].value}`" if key in one.values else "(default)"
            rows.append([f"`{key}`", kept, f"`{sourced.value}`", sourced.source])
        columns = [one.title, "the recipe", "published", "source"]
        lines += [*_table(columns, rows), ""]
    return lines


def _decays(systems: Systems) -> list[str]:
    rows = []
    for system, sizes in systems.items():
        one = sizes[-1]
        weight_decay, policy = one.values["optimizer.weight_decay"], one.values["optimizer.policy"]
        rows.append(
            [
                f"`{system}`",
                f"{weight_decay.value:g}, {weight_decay.status}",
                weight_decay.source,
                f"{one.values['optimizer.name'].value}, {one.values['optimizer.rule'].value}",
                one.exempt,
                policy.source,
            ]
        )
    columns = ["system", "λ", "source of λ", "optimizer, rule", "exempt", "source of that"]
    return ["## λ, optimizer and exemptions of every system", "", *_table(columns, rows), ""]


def _moves(systems: Systems) -> list[str]:
    rows = []
    for sizes in systems.values():
        one = sizes[-1]
        keys = [key for group in MOVING for key in group if key in one.values and one.values[key].value]
        statuses = ", ".join(status for status in STATUSES if any(one.values[key].status == status for key in keys))
        rows.append([f"`{one.name}`", *_moves_of(one), statuses])
    columns = ["largest size", "warm-up", "then, as a share of the peak", "batch in tokens", "clipping", "statuses"]
    return [
        "## What moves during a run",
        "",
        "Of the largest size. [training.md](training.md) says how it moves; `weightdecay recipes show` has the source",
        "of each value.",
        "",
        *_table(columns, rows),
        "",
    ]


def _moves_of(one: Recipe) -> list[str]:
    """Warm-up, descent, batch and clipping in words."""
    value = {key: sourced.value for key, sourced in one.values.items() if sourced.value}
    warmups = {"steps": "{:,} steps", "tokens": "{} tokens", "fraction": "{} of the run"}
    warmup = [
        words.format(_size(value[key]) if name == "tokens" else value[key])
        for name, words in warmups.items()
        if (key := f"schedule.warmup_{name}") in value
    ]
    final = value.get("schedule.final_fraction", 0.0)
    end = f" after {_size(value['schedule.decay_tokens'])}" if "schedule.decay_tokens" in value else ""
    stages = value.get("schedule.stages", [])
    descent = [f"{stage['shape']} to {stage['to']:g} over {_size(stage['over_tokens'])}" for stage in stages]
    descent = descent or [f"{value['schedule.shape']} to {final:.3g}{end}"]
    linear = " in a straight line" if value.get("run.batch_ramp_shape") == "linear" else ""
    batch = (
        _points(value.get("run.batch_ramp", ()), "batch_tokens", "{:,.0f}", linear) or f"{value['run.batch_tokens']:,}"
    )
    clip = f"{value.get('optimizer.grad_clip', 0):g}"
    changes = _points(value.get("schedule.grad_clip_changes", ()), "grad_clip", "{:g}")
    return ["".join(warmup) or "none", "; ".join(descent), batch, f"{clip}; {changes}" if changes else clip]


def _points(rows: Sequence[Mapping[str, float]], name: str, form: str, linear: str = "") -> str:
    """Values over tokens in words: each from its tokens on, or reached there in a straight line."""
    when = f"{linear} at {{}}" if linear else " from {} on"
    words = [form.format(row[name]) + (when.format(_size(row["tokens"])) if row["tokens"] else "") for row in rows]
    return "; ".join(words)


def _size(tokens: float) -> str:
    """375,000,000 as `375M`."""
    size, unit = next(pair for pair in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1.0, "")) if tokens >= pair[0])
    return f"{tokens / size:g}{unit}"


def _second_hand(systems: Systems) -> list[str]:
    """What the page could not check, so that nobody has to look for it."""
    lines = []
    for sizes in systems.values():
        found: dict[str, list[str]] = {}
        for one in sizes:
            for key, value in one.values.items():
                source = source_of(value, one.sources)
                unread = source is not None and source.read == "no" and value.status == "assumed"
                said = any(words in value.source + value.note for words in ("memory", "second hand", "second-hand"))
                if not one.scaling and (unread or said):
                    found.setdefault(value.source, []).append(key.partition(".")[2])
        if found:
            parts = [f"{', '.join(f'`{key}`' for key in dict.fromkeys(keys))} ({how})" for how, keys in found.items()]
            lines.append(f"- **{sizes[-1].title}**: {'; '.join(parts)}")
    return ["## What is known from memory or at second hand", "", "All of it `assumed`.", "", *lines, ""]


def _sources(systems: Systems) -> list[str]:
    lines = ["## The systems", ""]
    for system, sizes in systems.items():
        published = [one for one in sizes if not one.scaling]
        count: Counter[str] = Counter(sourced.status for one in published for sourced in one.values.values())
        shares = ", ".join(f"{count[status]} {status}" for status in STATUSES if count[status])
        names = ", ".join(f"`{system}:{one.size}`" for one in sizes)
        lines += [f"### {sizes[-1].title}", "", f"Sizes: {names}. Values of the published sizes: {shares}.", ""]
        if sizes[-1].differs:
            lines += [f"Not as published: {sizes[-1].differs}.", ""]
        lines += [f"- *{name}* ({source.read}): {source.reference}" for name, source in sizes[-1].sources.items()]
        lines.append("")
    return [*lines, *_own()]


def _own() -> list[str]:
    return [
        "## A recipe of your own",
        "",
        "A file of your own needs the same care: every value with its source and status. It may stand alone or add to",
        "a shipped recipe, and is used by its name, `weightdecay train mine.toml:125m`:",
        "",
        "```toml",
        'extends = "gpt3"',
        "[sources]",
        'sweep = "our own sweep over λ, 2026-10"',
        "[common.optimizer]",
        'weight_decay = { value = 0.05, status = "assumed", source = "sweep" }',
        "```",
    ]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [list(columns), ["---"] * len(columns), *map(list, rows)]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
