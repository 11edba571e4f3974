"""Writes docs/recipes.md from the recipe files, so that the page cannot say anything else than they do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from weightdecay.recipes.schema import STATUSES, Recipe, all_recipes

PAGE = Path(__file__).parent / "recipes.md"
# In the order of the table that people copy.
BRIEF = ("gpt2", "gpt3", "llama1", "llama2", "palm", "grok1", "mistral", "mixtral")


def page() -> str:
    """The whole page."""
    systems: dict[str, list[Recipe]] = {}
    for one in all_recipes():
        systems.setdefault(one.system, []).append(one)
    return (
        "\n".join([*_head(), *_brief(systems), *_as_published(systems), *_others(systems), *_sources(systems)]) + "\n"
    )


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
        "A source that says *from memory* was not read for this page; such a value is never `confirmed`.",
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
        "",
    ]


def _brief(systems: dict[str, list[Recipe]]) -> list[str]:
    lines = [
        "## The table that people copy",
        "",
        "It says: GPT-2 0.01; GPT-3, LLaMA 1 and 2, PaLM, Grok-1, Mistral and Mixtral 0.1. The recipes keep these",
        "numbers and say what they are.",
        "",
    ]
    rows = []
    for system in BRIEF:
        one = systems[system][-1]
        assert one.brief is not None, f"{system} has no [brief]"
        weight_decay = one.values["optimizer.weight_decay"]
        rows.append(
            [
                one.title,
                f"{one.brief.value:g}",
                one.brief.published,
                weight_decay.status,
                one.brief.source,
                one.brief.says,
            ]
        )
    columns = ["system", "λ, the table", "λ, published", "status", "source", "what the source says"]
    return [*lines, *_table(columns, rows), ""]


def _as_published(systems: dict[str, list[Recipe]]) -> list[str]:
    lines = ["## Where the published form is another: `--as-published`", ""]
    for sizes in systems.values():
        one = sizes[-1]
        if not one.published:
            continue
        note = one.values["optimizer.weight_decay"].note
        lines += [f"**{one.title}.** {note[:1].upper()}{note[1:]}.", ""]
        rows = []
        for key, sourced in sorted(one.published.items()):
            kept = f"`{one.values[key].value}`" if key in one.values else "(default)"
            rows.append([f"`{key}`", kept, f"`{sourced.value}`", sourced.source])
        lines += [*_table(["key", "the recipe", "published", "source"], rows), ""]
    return lines


def _others(systems: dict[str, list[Recipe]]) -> list[str]:
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


def _sources(systems: dict[str, list[Recipe]]) -> list[str]:
    lines = ["## The systems", ""]
    for system, sizes in systems.items():
        published = [one for one in sizes if not one.scaling]
        count = Counter(sourced.status for one in published for sourced in one.values.values())
        shares = ", ".join(f"{count[status]} {status}" for status in STATUSES if count[status])
        names = ", ".join(f"`{system}:{one.size}`" for one in sizes)
        lines += [f"### {sizes[-1].title}", "", f"Sizes: {names}. Values of the published sizes: {shares}.", ""]
        if sizes[-1].differs:
            lines += [f"Not as published: {sizes[-1].differs}.", ""]
        lines += [f"- *{name}*: {source}" for name, source in sizes[-1].sources.items()]
        lines.append("")
    return lines[:-1]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [list(columns), ["---"] * len(columns), *map(list, rows)]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
