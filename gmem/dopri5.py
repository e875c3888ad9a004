"""Dormand and Prince's method of order 5, with a step size for every sample of a batch.

torchdiffeq, with which the published samples are made, judges the error over the whole batch, so that a picture would
depend on what it is made with; a batch of one gives its numbers here. torchode has a step size for every sample too, but
ends its last step at the end where torchdiffeq goes past it and interpolates, so its numbers are others; and it goes on
with samples that have arrived, until the last one has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gmem.errors import InputError
from gmem.flow import like

# Of the factor by which a step size may change.
SAFETY = 0.9
LARGEST = 10.0
SMALLEST = 0.2

LIMIT = 1000

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]  # x [b, …], t [b], which samples these are [b] -> dx/dt [b, …]


def integrate(
    velocity: Velocity,
    x: Tensor,
    begin: float,
    end: float,
    rtol: float,
    atol: float,
) -> Tensor:
    """x(end) from x(begin) [B, …] for dx/dt = velocity(x, t, rows), smooth in t also a little past the end.

    Samples that have arrived leave the batch: `rows` numbers those that are left. The last step goes past the end and the
    value there is read from its interpolant, as in torchdiffeq. ValueError when a sample needs more than 1,000 steps.
    """
    tableau = _Tableau.dormand_prince()
    t = torch.full((len(x),), begin, dtype=torch.float64, device=x.device)
    rows = torch.arange(len(x), device=x.device)
    result = torch.empty_like(x)
    slope = velocity(x, t.float(), rows)
    step = _first_step(lambda x, after: velocity(x, begin + after, rows), x, slope, rtol, atol)
    for _ in range(LIMIT):
        # One step of all that are left.
        length = like(step.float(), x)
        slopes = [slope]
        for time, weights in zip(tableau.times, tableau.stages, strict=True):
            ahead = x + length * _combine(slopes, weights)
            slopes.append(velocity(ahead, (t + time * step).float(), rows))

        # Whose error is small enough, and who of those is past the end.
        deviation = length * _combine(slopes, tableau.error)
        tolerance = atol + rtol * torch.maximum(x.abs(), ahead.abs())
        ratio = _norm(deviation / tolerance).double()
        if not ratio.isfinite().all():
            raise InputError("the network's velocity is NaN or infinite; look at its weights and its snippets")
        accepted = ratio <= 1
        arrived = accepted & (t + step >= end)
        if arrived.any():
            inside = ((end - t) / step).float()
            value = x + length * _interpolate(slopes, tableau.dense, inside)
            result[rows[arrived]] = value[arrived]

        # The others go on.
        x = torch.where(like(accepted, x), ahead, x)
        slope = torch.where(like(accepted, x), slopes[-1], slope)
        t = torch.where(accepted, t + step, t)
        step = step * _change(ratio)
        if arrived.any():
            left = ~arrived
            rows, x, slope, t, step = (each[left] for each in (rows, x, slope, t, step))
            if not len(rows):
                return result
    raise InputError(f"dopri5 did not arrive within {LIMIT} steps; raise rtol or atol")


@dataclass(frozen=True)
class _Tableau:
    """The method's numbers, a row of weights for each of its six further slopes."""

    times: list[float]
    stages: list[list[float]]
    error: list[float]
    dense: list[list[float]]

    @classmethod
    def dormand_prince(cls) -> _Tableau:
        from scipy.integrate import RK45

        return cls(
            times=[*RK45.C[1:].tolist(), 1.0],
            stages=[*RK45.A[1:].tolist(), RK45.B.tolist()],
            # Shampine's estimate, which torchdiffeq takes, is two thirds of the original.
            error=(RK45.E * 2 / 3).tolist(),
            dense=RK45.P.tolist(),
        )


def _change(ratio: Tensor) -> Tensor:
    """The factor [B] of the next step, of error over tolerance [B]; none shrinks after a step that was accepted."""
    smallest = torch.where(ratio < 1, 1.0, SMALLEST)
    wished = SAFETY / ratio.clamp_min(1e-12) ** 0.2
    return torch.maximum(wished, smallest).clamp_max(LARGEST)


def _first_step(
    velocity: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    slope: Tensor,
    rtol: float,
    atol: float,
) -> Tensor:
    """A step size for each sample (Hairer, Nørsett and Wanner, Solving Ordinary Differential Equations I, II.4)."""
    scale = atol + rtol * x.abs()
    size = _norm(x / scale)
    speed = _norm(slope / scale)
    tiny = (size < 1e-5) | (speed < 1e-5)
    trial = torch.where(tiny, 1e-6, 0.01 * size / speed)

    # How fast the slope itself changes, over a trial step.
    ahead = velocity(x + like(trial, x) * slope, trial)
    change = _norm((ahead - slope) / scale) / trial
    fastest = torch.maximum(speed, change)
    still = fastest <= 1e-15
    step = torch.where(still, (trial * 1e-3).clamp_min(1e-6), (0.01 / fastest) ** 0.2)
    return torch.minimum(100 * trial, step).double()


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).square().mean(1).sqrt()


def _combine(slopes: list[Tensor], weights: list[float]) -> Tensor:
    total = torch.zeros_like(slopes[0])
    for slope, weight in zip(slopes, weights, strict=False):
        if weight:
            total = total.add(slope, alpha=weight)
    return total


def _interpolate(slopes: list[Tensor], dense: list[list[float]], inside: Tensor) -> Tensor:
    """The interpolant's rise, per unit of step, at `inside` [B], a share of the step."""
    total = torch.zeros_like(slopes[0])
    for slope, polynomial in zip(slopes, dense, strict=True):
        terms = (c * inside**power for power, c in enumerate(polynomial, start=1))
        weight = torch.as_tensor(sum(terms))
        total += slope * like(weight, slope)
    return total
