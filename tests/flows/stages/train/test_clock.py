"""Where a training's time goes."""

from __future__ import annotations

import pytest

from flows.stages.train import clock
from flows.stages.train.clock import Clock


def test_steps_and_their_data_count_as_training_and_the_rest_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr(clock.time, "monotonic", lambda: now[0])
    measured = Clock()
    measured.trained = 100.0  # of an earlier attempt
    for part, seconds in (("data", 1.0), ("compute", 3.0), ("rest", 6.0)):
        now[0] += seconds
        measured.lap(part)
    assert measured.trained == 104.0 and measured.rate() == pytest.approx(1 / 4)
    assert measured.shares() == pytest.approx({"time/data": 0.1, "time/compute": 0.3, "time/rest": 0.6})
    assert measured.trained == 104.0
