from __future__ import annotations

import json
import math

import torch

from gmem.guard import FEWEST, WINDOW, Guard


def judge(guard: Guard, loss: float, skipped: bool) -> bool:
    guard.judge(torch.tensor(loss), torch.tensor(float(skipped)))
    return guard.failed


def test_a_spike_is_measured_by_the_median_of_the_losses_before() -> None:
    guard = Guard(spike=3, patience=2)
    for _ in range(FEWEST):
        assert guard.limit == math.inf
        judge(guard, 2.0, skipped=False)
    assert guard.limit == 6
    judge(guard, 4.0, skipped=False)
    judge(guard, 1e6, skipped=True)  # what was skipped does not count
    for _ in range(WINDOW // 2 - 1):
        judge(guard, 1.0, skipped=False)
    assert guard.limit == 3  # 49 of 70
    for _ in range(WINDOW):
        judge(guard, 1.0, skipped=False)
    assert guard.limit == 3 and len(guard.state()["losses"]) == WINDOW
    for _ in range(WINDOW // 2):
        judge(guard, 2.0, skipped=False)
    assert guard.limit == 4.5  # the mean of the two in the middle
    without = Guard(0, 2)
    for _ in range(FEWEST):
        judge(without, 2.0, skipped=False)
    assert without.limit == math.inf


def test_only_bad_steps_in_a_row_are_a_reason_to_go_back() -> None:
    guard = Guard(3, patience=2)
    assert [judge(guard, math.nan, bad) for bad in (True, True, False, True, True, True)] == [False] * 5 + [True]


def test_a_reason_to_go_back_stays_one_until_somebody_looks() -> None:
    guard = Guard(3, patience=1)
    assert [judge(guard, 1.0, bad) for bad in (True, True, False, False)] == [False, True, True, True]
    guard.clear()
    assert not guard.failed and not judge(guard, 1.0, skipped=True)


def test_its_state_is_json_and_judges_on() -> None:
    guard, other = Guard(3, 2), Guard(3, 2)
    for number in range(30):
        judge(guard, 1 / (number + 3), skipped=number > 27)
    other.load_state(json.loads(json.dumps(guard.state())))
    assert (other.limit, other.bad, other.state()) == (guard.limit, 2, guard.state())
    judge(other, 0.5, skipped=False)
    judge(guard, 0.5, skipped=False)
    assert (other.limit, other.state()) == (guard.limit, guard.state())
