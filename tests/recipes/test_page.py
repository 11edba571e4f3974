from __future__ import annotations

from make_recipes import BRIEF, PAGE, page

from weightdecay.recipes.schema import all_recipes, recipe


def test_the_page_says_what_the_recipes_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make docs`"


def test_the_page_has_every_row_of_the_table_with_what_its_source_says() -> None:
    text = page()
    for system in BRIEF:
        brief = recipe(system).brief
        assert brief is not None
        assert brief.source in text
        assert brief.says in text
        assert brief.check in text
        assert recipe(system, size="nano").values["optimizer.weight_decay"].status in text


def test_the_page_lists_what_is_known_from_memory() -> None:
    listed = page().partition("## What is known from memory")[2].partition("\n## ")[0]
    for one in all_recipes():
        from_memory = [key for key, value in one.values.items() if "memory" in value.source]
        assert all(f"`{key.partition('.')[2]}`" in listed for key in from_memory), one.name
