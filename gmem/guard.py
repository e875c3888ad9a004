"""Which steps of a training are trusted: loss spikes are skipped, and after several in a row it is time to go back."""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Any

WINDOW = 100  # losses the median is taken of
FEWEST = 20  # with fewer than these nothing is called a spike


class Guard:
    """Judges each step by the losses before it. A pure function of them, so that a resumed training judges alike.

    A step is bad when its gradient is not finite or its velocity loss is above `limit`; the learner then changes
    nothing. `judge` says when more than `patience` bad steps came in a row.
    """

    def __init__(self, spike: float, patience: int) -> None:
        """`spike`: how many times the running median a loss may be; 0: no limit."""
        self.spike, self.patience = spike, patience
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.bad = 0  # bad steps in a row

    @property
    def limit(self) -> float:
        """The largest velocity loss that the next step may have."""
        if not self.spike or len(self.losses) < FEWEST:
            return math.inf
        return self.spike * self.median

    @property
    def median(self) -> float:
        """Of the last losses; NaN without any."""
        return median(self.losses) if self.losses else math.nan

    def judge(self, loss: float, skipped: bool) -> bool:
        """Takes note of a step; whether the training should go back to an earlier checkpoint."""
        self.bad = self.bad + 1 if skipped else 0
        if not skipped:
            self.losses.append(loss)
        return self.bad > self.patience

    def state(self) -> dict[str, Any]:
        """JSON."""
        return {"losses": list(self.losses), "bad": self.bad}

    def load_state(self, state: dict[str, Any]) -> None:
        self.losses = deque(state["losses"], maxlen=WINDOW)
        self.bad = int(state["bad"])
