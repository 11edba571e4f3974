from __future__ import annotations

from make_recipes import BRIEF, PAGE, page

from weightdecay.recipes.schema import recipe


def test_the_page_says_what_the_recipes_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make docs`"


def test_the_page_has_every_row_of_the_table_with_what_its_source_says() -> None:
    text = page()
    for system in BRIEF:
        brief = recipe(system).brief
        assert brief is not None
        assert brief.source in text
        assert brief.says in text
