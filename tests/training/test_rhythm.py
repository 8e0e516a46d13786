"""Tables of rhythm against their definitions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from moment_rows import data_of

from recloop.features.rhythm import HAZARD_DAYS, WEEKDAYS, hazard_bins, weekdays_and_hours
from recloop.records import DAY, SECOND
from recloop.training.rhythm import PRIOR_RISKS, PRIOR_ROWS, fit_rhythm

HOUR = 3_600 * SECOND
MONDAY = 4 * DAY  # 1970-01-05


def test_weekdays_and_hours_are_those_of_the_time_zone() -> None:
    stamps = np.array([MONDAY, MONDAY + 23 * HOUR])
    weekday, hour = weekdays_and_hours(stamps, "UTC")
    assert (weekday.tolist(), hour.tolist()) == ([0, 0], [0, 7])
    weekday, hour = weekdays_and_hours(stamps, "Asia/Tokyo")  # 9 hours later
    assert (weekday.tolist(), hour.tolist()) == ([0, 1], [3, 2])


def test_hazard_bins_begin_at_their_borders() -> None:
    assert hazard_bins(np.array([0, 0.5, 0.6, 150, 1e6])).tolist() == [0, 1, 1, len(HAZARD_DAYS), len(HAZARD_DAYS)]


def test_tables_of_a_category_are_shrunk_to_those_of_all_items() -> None:
    data = data_of([[[1], [1], [2]], [[1]]], 2)
    stamps = np.array([MONDAY, MONDAY + 2 * DAY, MONDAY + 3 * DAY, MONDAY + HOUR])
    data = replace(data, stamps=stamps, cut=int(MONDAY + 4 * DAY))
    rhythm = fit_rhythm(data, np.array([[0, 1, 2]]), "UTC")
    assert rhythm.times.shape == (1, 3, 15)
    shares = np.array([3, 1, 2, 2, 1, 1, 1]) / 11  # rows of all items on each weekday, and one more
    expected = (2 + PRIOR_ROWS * shares[0]) / (3 + PRIOR_ROWS) / shares[0]
    assert rhythm.times[0, 1, 0] == pytest.approx(np.log(expected), rel=1e-5)
    # item 1: a repeat after 2 days, and rows at risk until 2 and almost 4 days; item 2: until 1 day
    prior = (1 + 1) / (3 + 2)  # of the bin of 2 days, which the row of 1 day does not reach
    bin_of_two = int(hazard_bins(np.array([2.0]))[0])
    expected = (1 + PRIOR_RISKS * prior) / (3 + PRIOR_RISKS) / (2.5 - 1.5)
    assert rhythm.hazard[0, 1, bin_of_two] == pytest.approx(np.log(expected), rel=1e-5)


def test_log_without_rows_or_fields_has_finite_tables() -> None:
    data = replace(data_of([[]], 2), cut=DAY)
    rhythm = fit_rhythm(data, np.array([[0, 1, 2]]), "UTC")
    assert np.isfinite(rhythm.times).all()
    assert np.isfinite(rhythm.hazard).all()
    assert (rhythm.times[0, :, :WEEKDAYS] == 0).all()
    assert fit_rhythm(data, np.zeros((0, 3), dtype=np.int32), "UTC").hazard.shape[0] == 0
