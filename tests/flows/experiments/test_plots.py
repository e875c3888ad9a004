"""Curves where there are steps, bars where there is one."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from flows.experiments.curves import Point
from flows.experiments.plots import distances

KEY = "train/samples/fd"
POINTS = [
    Point(arm, seed, step, step / 10, 2.0 * step, 20, {KEY: (1 + seed) * 1000 / step}, "report/x")
    for arm in ("memory", "none")
    for seed in (0, 1)
    for step in (100, 1000)
]


def drawn(points: list[Point]) -> Image.Image:
    image = Image.open(io.BytesIO(distances(points, KEY, "a title")))
    assert image.format == "PNG" and len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 10
    return image


def test_two_plots_where_seconds_were_counted_and_one_where_not() -> None:
    both, one = drawn(POINTS), drawn([replace(point, seconds=None) for point in POINTS])
    assert both.width == pytest.approx(5 / 3 * one.width, rel=0.05) and both.height == one.height


def test_arms_of_a_single_step_are_bars_and_more_of_them_are_higher() -> None:
    few = [point for point in POINTS if point.step == 100]
    many = few + [replace(point, arm=f"arm {number}") for number in range(20) for point in few]
    assert drawn(many).height > 2 * drawn(few).height
