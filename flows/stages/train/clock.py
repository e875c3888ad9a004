"""Where a training's time goes."""

from __future__ import annotations

import time


class Clock:
    """Where the time goes between two logs."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.trained = 0.0
        """Seconds that the steps of the training have taken, with their data, by whichever attempt."""
        self.spent: dict[str, float] = {}
        self.steps = 0

    def lap(self, part: str) -> None:
        now = time.monotonic()
        self.spent[part] = self.spent.get(part, 0.0) + now - self.last
        self.trained += 0.0 if part == "rest" else now - self.last
        self.last = now
        self.steps += part == "compute"

    def rate(self) -> float:
        """Steps a second since the last log, without the time for measuring, showing and saving."""
        return self.steps / max(self.spent["data"] + self.spent["compute"], 1e-9)

    def shares(self) -> dict[str, float]:
        """Share of each part, and a new start."""
        total = max(sum(self.spent.values()), 1e-9)
        shares = {f"time/{part}": seconds / total for part, seconds in self.spent.items()}
        self.spent, self.steps, self.last = {}, 0, time.monotonic()
        return shares
