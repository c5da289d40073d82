"""herd.core.numbers: whole numbers as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.core.numbers import whole_number
from herd.errors import HerdError


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("8192", 8192),
        ("8K", 8192),
        ("200K", 204_800),
        ("10m", 10_485_760),
        ("1G", 2**30),
        ("1,000", 1000),
        ("4e6", 4_000_000),
    ],
)
def test_a_number_may_be_written_short(text: str, number: int):
    assert whole_number(text) == number


@given(st.integers())
def test_whatever_python_writes_of_an_integer_is_read(number: int):
    assert whole_number(str(number)) == number
    assert whole_number(f"{number:_}") == whole_number(f"{number:,}") == number


@pytest.mark.parametrize("text", ["", "K", "3.5K", "8KB", "4e", "0x10", "ten", "1e999", "nan"])
def test_what_is_no_whole_number_is_refused_with_an_example(text: str):
    with pytest.raises(HerdError, match="is not a whole number: write it as 8192"):
        whole_number(text)
