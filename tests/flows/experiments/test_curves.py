"""Figures of merit with known answers."""

from __future__ import annotations

import pytest

from flows.experiments.curves import Point, at_last, best, epochs, leader, reached, seconds, speed_up, steps

KEY = "train/samples/fd"


def curve(arm: str, distances: dict[int, float], seed: int = 0, pace: float | None = 2.0) -> list[Point]:
    return [
        Point(arm, seed, step, step / 10, None if pace is None else pace * step, 20, {KEY: distance}, f"report/{step}")
        for step, distance in distances.items()
    ]


def test_a_distance_is_reached_between_two_points_by_the_power_law_that_joins_them() -> None:
    halving = curve("memory", {100: 16.0, 400: 4.0})  # distance = 1600 / steps
    found = reached(halving, KEY, 8.0, steps)
    assert found is not None and found.exact and found.at == pytest.approx(200)
    in_epochs = reached(halving, KEY, 8.0, epochs)
    assert in_epochs is not None and in_epochs.at == pytest.approx(20)
    assert reached(halving, KEY, 3.9, steps) is None
    early = reached(halving, KEY, 20.0, steps)
    assert early is not None and early.at == 100 and not early.exact


def test_a_distance_of_nothing_is_reached_at_the_point_itself() -> None:
    found = reached(curve("memory", {1: 5.0, 2: 0.0}), KEY, 0.0, steps)
    assert found is not None and found.at == 2


def test_the_speed_up_is_that_of_the_best_of_the_baseline_wherever_it_is() -> None:
    none = curve("none", {100: 30.0, 800: 6.0, 1600: 7.0}) + curve("none", {100: 20.0, 800: 8.0}, seed=1)
    memory = curve("memory", {100: 12.0, 200: 6.0}, pace=4.0) + curve("memory", {100: 8.0}, seed=1, pace=4.0)
    found = speed_up(memory, none, KEY, steps)
    assert found is not None and found.ratios == pytest.approx([4.0, 8.0]) and found.median == pytest.approx(6.0)
    assert str(found) == "at least 6 (4 to 8)"
    in_seconds = speed_up(memory, none, KEY, seconds)
    assert in_seconds is not None and in_seconds.ratios == pytest.approx([2.0, 4.0])


def test_an_arm_that_never_gets_there_is_said_to_never() -> None:
    none = curve("none", {100: 5.0}) + curve("none", {100: 5.0}, seed=1)
    slow = curve("slow", {100: 9.0}) + curve("slow", {50: 6.0, 100: 4.0}, seed=1)
    assert str(speed_up(slow, none, KEY, steps)).endswith(", 1 of 2 seeds never")
    assert str(speed_up(curve("slow", {100: 9.0}), curve("none", {100: 5.0}), KEY, steps)) == "never"


def test_where_nothing_was_counted_nothing_is_said() -> None:
    none, memory = curve("none", {100: 5.0}), curve("memory", {100: 4.0}, pace=None)
    assert speed_up(memory, none, KEY, seconds) is None and reached(memory, KEY, 4.0, seconds) is None


def test_the_leading_arm_is_the_best_in_the_mean_over_its_seeds() -> None:
    lucky = curve("lucky", {100: 1.0}) + curve("lucky", {100: 9.0}, seed=1)
    assert leader(lucky + curve("steady", {100: 4.0, 200: 3.0}), KEY) == "steady"


def test_figures_over_seeds() -> None:
    points = curve("memory", {100: 3.0, 200: 5.0}) + curve("memory", {100: 6.0, 200: 7.0}, seed=1)
    assert str(at_last(points, KEY)) == "6 ± 1.4" and str(best(points, KEY)) == "4.5 ± 2.1"
    assert str(best(points[:2], KEY)) == "3"
