"""The Fréchet distance of 2048 dimensions: ours, and scipy's square root of a matrix."""

from __future__ import annotations

import argparse
import time

import numpy as np
from measured import Measured
from scipy.linalg import sqrtm

from gmem.metrics import Gaussian, frechet_distance

SAMPLES = 6000


def gaussians(dim: int) -> tuple[Gaussian, Gaussian]:
    """Two sets of features whose dimensions are mixed, and of falling importance."""
    random = np.random.default_rng(0)
    mixing = random.normal(size=(dim, dim)) * np.geomspace(1, 0.02, dim)

    def gaussian(shift: float) -> Gaussian:
        features = random.normal(shift, size=(SAMPLES, dim)) @ mixing.T / 45
        return Gaussian(features.mean(axis=0), np.cov(features, rowvar=False), len(features))

    return gaussian(0.0), gaussian(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dim", type=int, default=2048)
    asked = parser.parse_args()
    a, b = gaussians(asked.dim)
    frechet_distance(a, b)  # threads and libraries are up

    times, distance = [], 0.0
    begun = time.perf_counter()
    root = sqrtm(a.cov @ b.cov)
    theirs = time.perf_counter() - begun
    for _ in range(asked.rounds):
        begun = time.perf_counter()
        distance = frechet_distance(a, b)
        times.append(time.perf_counter() - begun)
    step = a.mean - b.mean
    expected = float(step @ step + np.trace(a.cov) + np.trace(b.cov) - 2 * np.trace(root).real)
    assert abs(distance - expected) < 1e-6 * expected, (distance, expected)
    note = f"{min(times):.2f} s, sqrtm {theirs:.1f} s; they differ by {abs(distance / expected - 1):.0e}"
    Measured(
        f"Fréchet distances of {asked.dim} dimensions", 1 / min(times), "/s", {"sqrtm": 1 / theirs}, note=note
    ).tell()
    Measured("Fréchet distances, times sqrtm", theirs / min(times), "times").tell()


if __name__ == "__main__":
    main()
