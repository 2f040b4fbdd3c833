"""Formatting of numbers and axes, for any number."""

import itertools
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fedhet.report import number_format
from fedhet.report.number_format import Scale

numbers = st.floats(min_value=-1e300, max_value=1e300, allow_subnormal=False)
lengths = st.floats(min_value=1e-6, max_value=1e12)
FACTORS = {"ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86400}
UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15}


def read_duration(text):
    words = text.replace(",", "").split()
    return sum(float(n) * FACTORS[unit] for n, unit in zip(words[::2], words[1::2], strict=True))


@given(lengths)
def test_a_duration_reads_back_to_what_it_was(seconds):
    assert read_duration(number_format.seconds(seconds)) == pytest.approx(seconds, rel=0.0126)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 s"),
        (0.85, "850 ms"),
        (12.34, "12.3 s"),
        (119.97, "2 min 00 s"),
        (245, "4 min 05 s"),
        (7199.6, "2 h 00 min"),
        (7620, "2 h 07 min"),
        (3 * 86400 + 4 * 3600, "3 d 4 h"),
        (-5, "-5 s"),
        (math.inf, "–"),
        (math.nan, "–"),
        (None, "–"),
    ],
)
def test_durations_are_written_in_their_two_largest_units(value, text):
    assert number_format.seconds(value) == text


@given(st.integers(min_value=0, max_value=10**18))
def test_bytes_read_back_and_have_a_short_mantissa(size):
    number, unit = number_format.size(size).split()
    assert float(number.replace(",", "")) * UNITS[unit] == pytest.approx(size, rel=0.006)
    assert float(number.replace(",", "")) < 1000 or unit == "PB"


@given(numbers)
def test_a_figure_has_three_significant_digits(value):
    assert float(number_format.figure(value).replace(",", "")) == pytest.approx(value, rel=0.0051)


@given(st.integers(min_value=0, max_value=10_000))
def test_a_chosen_level_is_shown_as_it_was_written(ten_thousandth):
    assert float(number_format.level(ten_thousandth / 10_000)[:-1]) == pytest.approx(ten_thousandth / 100, abs=1e-9)


def test_a_level_is_not_rounded_to_another_target():
    assert [number_format.level(x) for x in (0.85, 0.855, 1.0)] == ["85%", "85.5%", "100%"]


@given(numbers, numbers, st.integers(min_value=1, max_value=20))
def test_ticks_lie_inside_are_equally_spaced_and_not_too_many(a, b, wanted):
    low, high = min(a, b), max(a, b)
    assume(math.isfinite(high - low))
    scale = Scale(low, high, 0.0, 100.0)
    for step in (number_format.nice_step(scale.span, wanted), number_format.time_step(scale.span, wanted)):
        marks = number_format.ticks(scale.low, scale.high, step)
        assert len(marks) <= wanted + 1
        assert all(-1e-6 <= scale(mark) <= 100 + 1e-6 for mark in marks)
        assert all(y > x for x, y in itertools.pairwise(marks))


@given(numbers, numbers, numbers)
def test_a_scale_keeps_order_and_maps_its_ends_to_the_ends(a, b, c):
    low, middle, high = sorted((a, b, c))
    assume(math.isfinite(high - low))
    scale = Scale(low, high, 10.0, 20.0)
    assert scale(scale.low) == 10.0
    assert scale(scale.high) == pytest.approx(20.0)
    assert 10.0 - 1e-9 <= scale(low) <= scale(middle) <= scale(high) <= 20.0 + 1e-9


@given(numbers, numbers)
def test_a_nice_scale_contains_the_scale_and_ends_on_ticks(a, b):
    low, high = min(a, b), max(a, b)
    assume(high - low < 1e299)
    scale = Scale(low, high, 0.0, 1.0)
    nice = scale.nice(5)
    assert nice.low <= scale.low + 1e-6 * scale.span
    assert nice.high >= scale.high - 1e-6 * scale.span
    assert nice.span <= 2 * scale.span + 2 * number_format.nice_step(scale.span, 5)


@given(st.floats(min_value=1e-3, max_value=1e9), st.integers(min_value=2, max_value=14))
def test_neighbouring_time_ticks_have_different_labels(high, wanted):
    step = number_format.time_step(high, wanted)
    labels = [number_format.time_label(at, step, high) for at in number_format.ticks(0.0, high, step)]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize(
    ("at", "step", "high", "text"),
    [
        (0, 10, 60, "0"),
        (30, 10, 60, "30 s"),
        (0.3025, 0.0025, 0.5, "302.5 ms"),
        (0.25, 0.25, 2, "0.25 s"),
        (0.2, 0.1, 0.9, "200 ms"),
        (600, 300, 3600, "10 min"),
        (90, 30, 3600, "1:30"),
        (90.5, 0.5, 3600, "1:30.5"),
        (7200, 3600, 43200, "2 h"),
        (9000, 1800, 43200, "2:30"),
        (9015, 15, 43200, "2:30:15"),
        (172800, 86400, 864000, "2 d"),
        (194400, 21600, 864000, "2 d 6:00"),
    ],
)
def test_a_tick_is_written_in_the_unit_of_its_axis(at, step, high, text):
    assert number_format.time_label(at, step, high) == text


def test_a_scale_that_cannot_be_is_refused():
    for low, high in ((1.0, 0.0), (0.0, math.inf), (math.nan, 1.0), (-1.7e308, 1.7e308)):
        with pytest.raises(ValueError, match="a scale from"):
            Scale(low, high, 0.0, 1.0)
