"""Numbers as people read them."""

import inspect
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from growlm.runtime import number_format
from growlm.runtime.number_format import (
    format_bytes,
    format_count,
    format_fine_share,
    format_flops,
    format_jump,
    format_large_count,
    format_learning_rate,
    format_loss,
    format_magnitude,
    format_percent,
    format_probe_loss,
    format_ratio,
    format_scaled,
    format_seconds,
    format_share,
)

FORMATTERS = [
    function
    for name, function in inspect.getmembers(number_format, inspect.isfunction)
    if name.startswith("format_")
]


@pytest.mark.parametrize(
    ("formatter", "value", "text"),
    [
        (format_count, 1234567, "1,234,567"),
        (format_fine_share, 0.0123, "1.2 %"),
        (format_probe_loss, 2.3456789, "2.345679"),
        (format_ratio, 3.5432, "3.54"),
        (format_count, 1234.6, "1,235"),
        (format_large_count, 999, "999"),
        (format_large_count, 25_400, "25.4 k"),
        (format_large_count, 2_155_790_208, "2.16 B"),
        (format_large_count, 1e15, "1,000 T"),
        (format_scaled, 0, "0"),
        (format_scaled, 999, "999"),
        (format_scaled, 1000, "1 k"),
        (format_scaled, 1234567, "1.23 M"),
        (format_scaled, 999_600, "1 M"),
        (format_scaled, 0.5, "0.5"),
        (format_scaled, 1e27, "1,000,000 Z"),
        (format_bytes, 200_000_000, "200 MB"),
        (format_bytes, 23_712_345_678, "23.7 GB"),
        (format_bytes, 12, "12 B"),
        (format_flops, 1.94e12, "1.94 TFLOP"),
        (format_loss, 2.34567, "2.3457"),
        (format_magnitude, 0.0, "0"),
        (format_magnitude, 3e-7, "3.0e-07"),
        (format_magnitude, 0.1234, "0.12"),
        (format_magnitude, 123.4, "123"),
        (format_jump, 0.0, "0"),
        (format_jump, -0.0, "0"),
        (format_jump, 1.23e-4, "+1.2e-04"),
        (format_jump, -1.23e-4, "-1.2e-04"),
        (format_jump, 0.5, "+0.5"),
        (format_learning_rate, 0.0003, "0.0003"),
        (format_learning_rate, 1.2345e-5, "1.23e-05"),
        (format_seconds, 0, "0 s"),
        (format_seconds, 1e-6, "< 0.1 ms"),
        (format_seconds, 0.0042, "4.2 ms"),
        (format_seconds, 0.085, "85 ms"),
        (format_seconds, 0.9996, "1.0 s"),
        (format_seconds, 4.24, "4.2 s"),
        (format_seconds, 9.96, "10 s"),
        (format_seconds, 59.4, "59 s"),
        (format_seconds, 59.6, "1 min 0 s"),
        (format_seconds, 60, "1 min 0 s"),
        (format_seconds, 3599.6, "1 h 0 min"),
        (format_seconds, 25_500, "7 h 5 min"),
        (format_seconds, 200_000, "2 d 7 h"),
        (format_share, 0.374, "37 %"),
        (format_percent, 0.25, "+25 %"),
        (format_percent, -0.001, "+0 %"),
    ],
)
def test_examples(formatter, value, text):
    assert formatter(value) == text


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_what_is_not_there_is_a_dash(formatter):
    assert formatter(None) == "–"
    if formatter not in (format_jump, format_magnitude):
        assert formatter(math.nan) == formatter(math.inf) == "–"


def test_a_jump_that_is_not_finite_is_told():
    assert [format_jump(value) for value in (math.nan, math.inf, -math.inf)] == [
        *("nan", "+inf", "-inf")
    ]
    assert format_magnitude(math.nan) == "nan"


@given(st.floats(min_value=0, max_value=1e24))
def test_a_scaled_number_is_near_the_number(value):
    digits, _, prefix = format_scaled(value).partition(" ")
    shown = float(digits.replace(",", "")) * 1000 ** number_format.PREFIXES.index(prefix)
    assert shown == pytest.approx(value, rel=5.01e-3)
    assert value < 1 or len(digits.replace(".", "").replace(",", "")) <= 4
