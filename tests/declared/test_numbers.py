"""Numbers as people write them: exact, and refused where they are none."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightdecay.declared import values

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}


@given(st.integers(0, 10**6), st.integers(0, 3), st.sampled_from(sorted(_UNITS)))
def test_a_whole_number_of_a_unit_is_that_number_to_the_last_token(digits: int, places: int, unit: str) -> None:
    written = Decimal(digits).scaleb(-places)
    amount = written * _UNITS[unit]
    if amount % 1 == 0:
        assert values.whole_number(f"{written:f}{unit}") == amount
    else:
        with pytest.raises(ValueError):
            values.whole_number(f"{written:f}{unit}")


@pytest.mark.parametrize(
    ("text", "number"), [("4.1M", 4_100_000), ("8.3b", 8_300_000_000), ("1e3", 1000), ("-2k", -2000)]
)
def test_units_and_exponents_are_read(text: str, number: int) -> None:
    assert values.whole_number(text) == number == values.number(text)


@pytest.mark.parametrize(
    "text",
    ["", "1.2.3", ".", "_", "1e", "0x10", "5MB", "1,5", "inf", "nan", "1e400", "1e999999999", "9223372036854775808"],
)
def test_what_no_count_can_be_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        values.whole_number(text)
