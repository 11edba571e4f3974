from __future__ import annotations

from make_settings import PAGE, page

from weightdecay.recipes.settings import known_keys


def test_the_page_says_what_the_settings_say_of_themselves() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run docs/make_settings.py"


def test_the_page_has_every_setting_with_its_words() -> None:
    text = page()
    for key, found in known_keys().items():
        assert f"\n## {key.rpartition('.')[0]}\n" in text
        assert f"| `{key.rpartition('.')[2]}` | " in text
        assert found.words.replace("|", "\\|") in text
