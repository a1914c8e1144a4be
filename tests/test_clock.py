"""Times as people write and read them: there and back, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clock import mmss, parse_mmss
from pipeline.stream import UserError


@given(st.integers(0, 10**6))
def test_clock_there_and_back(seconds):
    assert parse_mmss(mmss(seconds)) == seconds
    assert mmss(seconds + 0.99) == mmss(seconds)


def test_clock_by_hand():
    assert [mmss(s) for s in (0, 9.9, 75, 3599.9, 3723, -3)] == ["0:00", "0:09", "1:15", "59:59", "1:02:03", "0:00"]
    assert [parse_mmss(t) for t in ("75", "12:40", "1:02:03", " 90:00 ", "1:15.5")] == [75, 760, 3723, 5400, 75.5]


@pytest.mark.parametrize("text", ["", "abc", "1:75", "1:60:00", "-5", "1:2:3:4", "1e9", "nan", ":30", "٣:٤٠", "9" * 9])
def test_times_that_are_none(text):
    with pytest.raises(UserError) as error:
        parse_mmss(text)
    assert str(error.value).endswith(".")
