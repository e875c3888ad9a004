from __future__ import annotations

import json
import math

from gmem.guard import FEWEST, WINDOW, Guard


def test_a_spike_is_measured_by_the_median_of_the_losses_before() -> None:
    guard = Guard(spike=3, patience=2)
    for _ in range(FEWEST):
        assert guard.limit == math.inf
        guard.judge(2.0, skipped=False)
    assert guard.limit == 6
    guard.judge(1e6, skipped=True)  # what was skipped does not count
    for _ in range(WINDOW):
        guard.judge(1.0, skipped=False)
    assert guard.limit == 3 and len(guard.losses) == WINDOW
    assert Guard(0, 2).limit == math.inf


def test_only_bad_steps_in_a_row_are_a_reason_to_go_back() -> None:
    guard = Guard(3, patience=2)
    assert [guard.judge(math.nan, bad) for bad in (True, True, False, True, True, True)] == [False] * 5 + [True]


def test_its_state_is_json_and_judges_on() -> None:
    guard, other = Guard(3, 2), Guard(3, 2)
    for number in range(30):
        guard.judge(1 / (number + 3), skipped=number > 27)
    other.load_state(json.loads(json.dumps(guard.state())))
    assert (other.limit, other.bad, other.state()) == (guard.limit, 2, guard.state())
