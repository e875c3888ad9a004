"""What a benchmark tells: lines of JSON on its output, one for each thing measured; `bench.py` reads them."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Measured:
    what: str
    value: float
    unit: str
    """More is better: rates, or how many times another is slower."""
    others: dict[str, float] = field(default_factory=dict)
    """The same by other means, in the same unit and run."""
    limit: float | None = None
    """What cannot be surpassed, measured in the same run."""
    note: str = ""

    def tell(self) -> None:
        print(json.dumps(asdict(self)), flush=True)


def alternating(rounds: int, **ways: Callable[[], float]) -> dict[str, float]:
    """Work done a second by each of several ways, which take turns; the median of the rounds.

    Args:
        ways: each does some work and says how much.
    """
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            begun = time.perf_counter()
            done = way()
            rates[name].append(done / (time.perf_counter() - begun))
    return {name: statistics.median(values[1:]) for name, values in rates.items()}  # the first round warms up
