from __future__ import annotations

import threading
from contextlib import closing

import pytest

from flows.stages.train.prefetch import Ahead


def test_the_next_is_made_while_this_one_is_used() -> None:
    made: dict[tuple[int, int], threading.Event] = {(s, a): threading.Event() for s in range(4) for a in range(2)}

    def make(step: int, attempt: int) -> tuple[int, int]:
        made[step, attempt].set()
        return step, attempt

    with closing(Ahead(make, 3)) as ahead:
        assert ahead.take(0, 0) == (0, 0)
        assert made[1, 0].wait(10), "the next is begun without being asked for"
        assert ahead.take(1, 0) == (1, 0)
        assert made[2, 0].wait(10)
        assert ahead.take(1, 1) == (1, 1), "who goes back gets what is asked for, not what was begun"
        assert ahead.take(2, 1) == (2, 1)
    assert not made[3, 1].is_set(), "nothing is made beyond the last"


def test_what_goes_wrong_in_making_is_raised_where_it_is_taken() -> None:
    def make(step: int, attempt: int) -> int:
        if step == 1:
            raise ValueError("the table lacks a row")
        return step

    with closing(Ahead(make, 5)) as ahead:
        assert ahead.take(0, 0) == 0
        with pytest.raises(ValueError, match="lacks a row"):
            ahead.take(1, 0)


def test_it_may_be_told_to_begin_nothing() -> None:
    made: list[int] = []
    with closing(Ahead(lambda step, attempt: made.append(step), 0)) as ahead:
        ahead.take(0, 0)
    assert made == [0]
