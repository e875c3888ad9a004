"""Making what the next step needs while this one is computed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Made = TypeVar("Made")


class Ahead(Generic[Made]):
    """`make(step, attempt)`, of which the next step's is begun, in a thread, as soon as one is taken.

    A training that goes back asks for another than was begun; that one is then made when it is asked for.
    """

    def __init__(self, make: Callable[[int, int], Made], steps: int) -> None:
        """`steps`: how many there are, so that none is made beyond the last; 0: none is begun before it is asked for."""
        self._make, self._steps = make, steps
        self._thread = ThreadPoolExecutor(1, "ahead")
        self._begun: tuple[tuple[int, int], Future[Made]] | None = None

    def take(self, step: int, attempt: int) -> Made:
        """What was made of this step; raises what making it raised."""
        begun = self._begun
        if begun and begun[0] == (step, attempt):
            made = begun[1].result()
        else:
            made = self._make(step, attempt)
        following = (step + 1, attempt)
        self._begun = (following, self._thread.submit(self._make, *following)) if step + 1 < self._steps else None
        return made

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
