"""Numbers are written as people read them."""

from __future__ import annotations

import pytest

from peftkit_cli import figures


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (7, "7"), (999, "999"), (1000, "1k"), (12_345, "12.3k"), (999_900, "1M"), (7.24e9, "7.24B")],
)
def test_counts(number, text):
    assert figures.count(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(512, "512 B"), (1.5e6, "1.5 MB"), (2.46e9, "2.46 GB"), (3e12, "3,000 GB")]
)
def test_sizes(number, text):
    assert figures.size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (83, "1:23"), (7509, "2:05:09")]
)
def test_durations(seconds, text):
    assert figures.duration(seconds) == text


def test_a_sparkline_spans_the_smallest_and_the_largest_value():
    assert figures.sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert figures.sparkline([3, 3, 3]) == "▁▁▁"
    assert figures.sparkline([]) == ""
    assert figures.sparkline([float("nan"), 1, 2]) == "▁█"


def test_a_long_sparkline_shows_the_mean_of_each_share():
    assert figures.sparkline([0, 2, 7, 9], width=2) == "▁█"
    assert len(figures.sparkline(list(range(1000)), width=40)) == 40


def test_a_histogram_counts_each_value_once_in_ranges_of_one_size():
    assert figures.histogram([3, 3, 3, 4, 6], lines=4, width=6) == ["3  ██████ 3", "4  ██ 1", "5  0", "6  ██ 1"]
    assert figures.histogram([5]) == ["5  " + "█" * 40 + " 1"]
    wide = figures.histogram(list(range(0, 1000, 7)), lines=5)
    assert [line.split()[0] for line in wide] == ["0–199", "200–399", "400–599", "600–799", "800–999"]
    assert sum(int(line.split()[-1]) for line in wide) == 143
