"""The Fréchet distance of 2048 dimensions against scipy's square root of a matrix, in one run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

MEASUREMENT = """
import time
import numpy as np
from gmem.metrics import Gaussian, frechet_distance
from scipy.linalg import sqrtm

random = np.random.default_rng(0)
mixing = random.normal(size=(2048, 2048)) * np.geomspace(1, 0.02, 2048)
def gaussian(shift):
    features = random.normal(shift, size=(6000, 2048)) @ mixing.T / 45
    return Gaussian(features.mean(axis=0), np.cov(features, rowvar=False), len(features))
a, b = gaussian(0.0), gaussian(0.05)

def timed(function):
    start = time.perf_counter()
    value = function()
    return time.perf_counter() - start, value

frechet_distance(a, b)  # threads and libraries are up
# the best of three before and three after the other, half a minute later: a busy neighbour may be gone by then
before = min(timed(lambda: frechet_distance(a, b)) for _ in range(3))
theirs, root = timed(lambda: sqrtm(a.cov @ b.cov))
ours, distance = min(before, *(timed(lambda: frechet_distance(a, b)) for _ in range(3)))
step = a.mean - b.mean
expected = step @ step + np.trace(a.cov) + np.trace(b.cov) - 2 * np.trace(root).real
print(ours, theirs, distance, expected)
"""


@pytest.mark.benchmark
def test_2048_dimensions_under_a_second_and_a_half_and_five_times_faster_than_sqrtm() -> None:
    # a forced core type slows numpy's BLAS, and with it the other side of the ratio
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    run = subprocess.run(
        [sys.executable, "-c", MEASUREMENT], env=environment, capture_output=True, text=True, check=True, timeout=280
    )
    ours, theirs, distance, expected = map(float, run.stdout.split())
    print(f"frechet_distance {ours:.2f} s, sqrtm {theirs:.2f} s, ratio {theirs / ours:.1f}")
    assert distance == pytest.approx(expected, rel=1e-6)
    assert theirs / ours >= 5
    # the absolute figure is of an idle machine: give busy neighbours their share
    busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert ours < 1.5 * busy
