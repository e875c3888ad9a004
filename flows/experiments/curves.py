"""What an experiment measured: a point a trial and step, and the figures of merit that compare its arms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev

Axis = Callable[["Point"], float | None]
"""What is counted along a curve: steps, seconds or epochs."""


@dataclass(frozen=True)
class Point:
    """One evaluation: where in which training, and everything that it measured."""

    arm: str
    seed: int | None
    step: int
    epochs: float | None
    """Times that the training has seen each picture; None of a network from elsewhere."""
    seconds: float | None
    """That the steps up to here took; None of a training that kept no account."""
    calls: int
    """Network calls a sample."""
    metrics: dict[str, float]
    """By `split/kind/metric`, as the evaluation's report has them."""
    report: str
    """The report's place in the store."""


@dataclass(frozen=True)
class Reached:
    """Where one trial's curve first comes down to a distance; `exact` unless that was before its first point."""

    at: float
    exact: bool = True


def reached(points: Sequence[Point], key: str, level: float, along: Axis) -> Reached | None:
    """Where one trial's distance first is `level` or less, between two points by a straight line in both logarithms.

    None where it never is, or where nothing was counted along the way.
    """
    before: tuple[float, float] | None = None
    for point in sorted(points, key=lambda each: each.step):
        where, distance = along(point), point.metrics[key]
        if where is None:
            return None
        if distance <= level:
            return (
                Reached(where, exact=False) if before is None else Reached(_crossing(before, (where, distance), level))
            )
        before = (where, distance)
    return None


def _crossing(before: tuple[float, float], after: tuple[float, float], level: float) -> float:
    (x0, y0), (x1, y1) = before, after
    if level <= 0 or y1 <= 0 or x0 <= 0:
        return x1
    share = (math.log(y0) - math.log(level)) / (math.log(y0) - math.log(y1))
    return math.exp(math.log(x0) + share * (math.log(x1) - math.log(x0)))


@dataclass(frozen=True)
class SpeedUp:
    """How many times sooner an arm reaches the baseline's best distance than the baseline did, one ratio a seed.

    `at_least` where some seed was there by its first point already; `missed` counts seeds that never got there.
    """

    ratios: list[float]
    at_least: bool
    missed: int

    @property
    def median(self) -> float | None:
        return median(self.ratios) if self.ratios else None

    def __str__(self) -> str:
        missed = f", {self.missed} of {self.missed + len(self.ratios)} seeds never" if self.missed else ""
        if self.median is None:
            return "never"
        spread = f" ({min(self.ratios):.3g} to {max(self.ratios):.3g})" if len(self.ratios) > 1 else ""
        return f"{'at least ' if self.at_least else ''}{self.median:.3g}{spread}{missed}"


def speed_up(arm: Sequence[Point], baseline: Sequence[Point], key: str, along: Axis) -> SpeedUp | None:
    """Of an arm over the baseline, seed by seed; None where nothing was counted along the way."""
    ratios, at_least, missed = [], False, 0
    for seed, theirs in by_seed(baseline).items():
        ours = by_seed(arm).get(seed)
        best = min(theirs, key=lambda point: (point.metrics[key], point.step))
        spent = along(best)
        if ours is None or spent is None or any(along(point) is None for point in ours):
            return None
        found = reached(ours, key, best.metrics[key], along)
        if found is None or found.at <= 0:
            missed += 1
        else:
            ratios.append(spent / found.at)
            at_least |= not found.exact
    return SpeedUp(ratios, at_least, missed)


def by_arm(points: Sequence[Point]) -> dict[str, list[Point]]:
    """In the order in which the arms were given."""
    arms: dict[str, list[Point]] = {}
    for point in points:
        arms.setdefault(point.arm, []).append(point)
    return arms


def by_seed(points: Sequence[Point]) -> dict[int | None, list[Point]]:
    seeds: dict[int | None, list[Point]] = {}
    for point in points:
        seeds.setdefault(point.seed, []).append(point)
    return seeds


def by_step(points: Sequence[Point]) -> dict[int, list[Point]]:
    """One arm's points of all seeds, from the first step to the last."""
    steps: dict[int, list[Point]] = {}
    for point in sorted(points, key=lambda each: each.step):
        steps.setdefault(point.step, []).append(point)
    return steps


@dataclass(frozen=True)
class Spread:
    """A figure over the seeds: mean, and deviation where there are several."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(mean(values), stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        return f"{self.mean:.3g}" + ("" if self.deviation is None else f" ± {self.deviation:.2g}")


def at_last(points: Sequence[Point], key: str) -> Spread:
    """One arm's distance at its last step, over the seeds."""
    last = list(by_step(points).values())[-1]
    return Spread.of([point.metrics[key] for point in last])


def best(points: Sequence[Point], key: str) -> Spread:
    """One arm's least distance at any step, over the seeds."""
    return Spread.of([min(point.metrics[key] for point in each) for each in by_seed(points).values()])


def leader(points: Sequence[Point], key: str) -> str:
    """The arm of the least distance, in the mean over its seeds."""
    arms = by_arm(points)
    return min(arms, key=lambda arm: best(arms[arm], key).mean)


def steps(point: Point) -> float:
    return point.step


def seconds(point: Point) -> float | None:
    return point.seconds


def epochs(point: Point) -> float | None:
    return point.epochs
