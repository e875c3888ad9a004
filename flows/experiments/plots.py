"""Curves of an experiment as pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from statistics import mean
from typing import Any

from flows.experiments.curves import Axis, Point, by_arm, by_seed, by_step, seconds, steps

MARKERS = "osD^vP*X"


def distances(points: Sequence[Point], key: str, title: str) -> bytes:
    """PNG: the distance against steps, and against seconds where they were counted; the band holds every seed.

    Where each arm has one step alone, a bar an arm instead.
    """
    if all(len(by_step(each)) == 1 for each in by_arm(points).values()):
        return _bars(points, key, title)
    axes = [("training steps", steps), ("seconds of training", seconds)]
    counted = [(name, along) for name, along in axes if all(along(point) is not None for point in points)]
    figure, plots = _figure(len(counted))
    for plot, (name, along) in zip(plots, counted, strict=True):
        for marker, (arm, each) in zip(_cycled(MARKERS), by_arm(points).items(), strict=False):
            _curve(plot, each, key, along, arm, marker)
        plot.set(xscale="log", yscale="log", xlabel=name)
        for axis in (plot.xaxis, plot.yaxis):
            _plain(axis)
        plot.grid(True, which="both", alpha=0.25)
    plots[0].set_ylabel(key.rpartition("/")[2])
    # Beside the curves: over them, those of twenty arms would lie under their names.
    figure.set_figwidth(figure.get_figwidth() + 2)
    figure.legend(*plots[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return _png(figure, title)


def _curve(plot: Any, points: Sequence[Point], key: str, along: Axis, label: str, marker: str) -> None:
    measured = by_step(points).values()
    x = [mean(along(point) or 0.0 for point in each) for each in measured]
    values = [[point.metrics[key] for point in each] for each in measured]
    (line,) = plot.plot(x, [mean(each) for each in values], label=label, marker=marker, markersize=4)
    if len(by_seed(points)) > 1:
        low, high = [min(each) for each in values], [max(each) for each in values]
        plot.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def _bars(points: Sequence[Point], key: str, title: str) -> bytes:
    figure, (plot,) = _figure(1)
    arms = by_arm(points)
    values = [[point.metrics[key] for point in each] for each in arms.values()]
    centres = [mean(each) for each in values]
    errors = [
        [centre - min(each) for centre, each in zip(centres, values, strict=True)],
        [max(each) - centre for centre, each in zip(centres, values, strict=True)],
    ]
    plot.barh(list(arms)[::-1], centres[::-1], xerr=[side[::-1] for side in errors], height=0.6, capsize=2)
    plot.set_xlabel(key.rpartition("/")[2])
    plot.tick_params(axis="y", labelsize=8)
    plot.grid(True, axis="x", alpha=0.25)
    figure.set_figheight(max(2.5, 0.35 * len(arms) + 1.2))
    return _png(figure, title)


def _figure(count: int) -> tuple[Any, list[Any]]:
    """Without a window, and without what pyplot keeps of every figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * count + 0.6, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    plots = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    return figure, list(plots)


def _plain(axis: Any) -> None:
    """300 rather than 3 x 10^2."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}") if high < 8 * low else NullFormatter())


def _cycled(signs: str) -> list[str]:
    return list(signs) * 1000


def _png(figure: Any, title: str) -> bytes:
    figure.suptitle(title, fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
