"""What an experiment found, as a table, as a page of RESULTS.md, and as the JSON that both are made from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from flows.experiments.curves import (
    Axis,
    Point,
    Spread,
    at_last,
    best,
    by_arm,
    by_seed,
    by_step,
    epochs,
    leader,
    reached,
    seconds,
    speed_up,
    steps,
)
from flows.experiments.design import Experiment
from flows.experiments.plots import distances
from storage.errors import Refused
from storage.images.shards import HELD_OUT, TRAIN

ADAPTED = (
    "New pictures, added to the bank and generated from at once, without training. In the figure each true picture stands "
    "above what was generated from its snippet, and above the nearest training picture."
)
NEAR = 1.1
"""Samplers within a tenth of the best distance are worth naming where they ask for fewer network calls."""


@dataclass(frozen=True)
class Findings:
    """An experiment's points, with all that is needed to read them and to do it again."""

    experiment: dict[str, Any]
    recipe: str
    overrides: dict[str, Any]
    """Of the recipe, for all arms, besides those of the experiment itself."""
    metric: str
    points: list[Point]
    floors: dict[str, float]
    """The distance of the tokenizer's reconstructions, by split."""
    made: str
    """Date of the run that put them together."""
    hardware: str
    versions: dict[str, str]
    run_id: str
    """In MLflow."""
    note: str = ""
    """What else a reader should know, such as what else the machine did."""
    registered: str = ""
    """Where MLflow has the network and sampler of the best point, if that was asked for."""

    @classmethod
    def from_json(cls, text: str) -> Findings:
        """The inverse of `to_json`; Refused for anything else."""
        try:
            values = json.loads(text)
            points = [Point(**each) for each in values.pop("points")]
            return cls(
                points=points, **{field.name: values[field.name] for field in fields(cls) if field.name in values}
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise Refused(
                f"this holds no findings of an experiment ({error!s:.80}); run the experiment again"
            ) from None

    def to_json(self) -> str:
        return json.dumps(asdict(self), allow_nan=False, indent=1)

    @property
    def design(self) -> Experiment:
        return Experiment.model_validate(self.experiment)

    @property
    def distances(self) -> list[str]:
        """The distance from snippets of each split that every point has."""
        keys = [f"{split}/samples/{self.metric}" for split in (TRAIN, HELD_OUT)]
        return [key for key in keys if all(key in point.metrics for point in self.points)]


def table(found: Findings) -> tuple[list[str], list[list[str]]]:
    """Columns and rows, a row an arm. By the split of the snippets: the distance at the last step, the least of all, and
    how many times sooner than the baseline the arm reached the baseline's least, in steps and in seconds."""
    columns = list(_columns(found))
    rows = [[arm, *(cell(points) for _, cell in columns)] for arm, points in by_arm(found.points).items()]
    return ["arm", *(name for name, _ in columns)], rows


def _columns(found: Findings) -> Iterator[tuple[str, Callable[[Sequence[Point]], str]]]:
    arms = by_arm(found.points)
    several = any(len(by_step(points)) > 1 for points in arms.values())
    for key in found.distances:
        split = split_of(key)
        yield split, partial(_text, figure=at_last, key=key)
        if several:
            yield f"least, {split}", partial(_text, figure=best, key=key)
        if baseline := arms.get(found.design.baseline or ""):
            for name, along in (("steps", steps), ("seconds", seconds)):
                yield f"× sooner, {split}, {name}", partial(_gain, baseline=baseline, key=key, along=along)
    for level in found.design.reach:
        yield f"epochs to {level:g}", partial(_epochs, key=found.distances[0], level=level)
    yield "calls", lambda points: "/".join(str(calls) for calls in sorted({point.calls for point in points}))


def _text(points: Sequence[Point], figure: Callable[[Sequence[Point], str], Spread], key: str) -> str:
    return str(figure(points, key))


def _gain(points: Sequence[Point], baseline: Sequence[Point], key: str, along: Axis) -> str:
    ratio = None if points[0].arm == baseline[0].arm else speed_up(points, baseline, key, along)
    return "" if ratio is None else str(ratio)


def split_of(key: str) -> str:
    """The split that a metric's key names, as people read it."""
    return key.partition("/")[0].replace("_", "-")


def _epochs(points: Sequence[Point], key: str, level: float) -> str:
    """EP-FD@level over the seeds that reach it."""
    found = [reached(each, key, level, epochs) for each in by_seed(points).values()]
    there = [each for each in found if each]
    if not there:
        return "never"
    bound = "" if all(each.exact for each in there) else "at most "
    missed = f" ({len(found) - len(there)} of {len(found)} never)" if len(there) < len(found) else ""
    return f"{bound}{Spread.of([each.at for each in there])}{missed}"


def lines(found: Findings) -> list[str]:
    """What a person reads beside the table."""
    said = []
    for key in found.distances:
        split, arms = split_of(key), by_arm(found.points)
        first = leader(found.points, key)
        least = best(arms[first], key)
        floor = found.floors.get(key.partition("/")[0])
        about = "" if floor is None else f" (floor, the tokenizer's reconstructions: {floor:.3g})"
        said.append(f"least distance from {split} snippets: {least} by {first}{about}")
        quick = [arm for arm in arms if best(arms[arm], key).mean <= NEAR * least.mean]
        fewest = min(quick, key=lambda arm: arms[arm][0].calls)
        if arms[fewest][0].calls < arms[first][0].calls:
            calls = f"{arms[fewest][0].calls} network calls in place of {arms[first][0].calls}"
            said.append(f"within a tenth of it with {calls}: {best(arms[fewest], key)} by {fewest}")
    return said


@dataclass(frozen=True)
class Adapted:
    """What `gmem adapt` found, by the batch of pictures that it added."""

    name: str
    lines: list[str]
    figure: bytes
    run_id: str


def write(findings: Sequence[Findings], page: Path, figures: Path, adapted: Sequence[Adapted] = ()) -> Path:
    """Writes a page with a chapter an experiment, and its plots and JSON into a folder; where the page lies."""
    figures.mkdir(parents=True, exist_ok=True)
    page.parent.mkdir(parents=True, exist_ok=True)
    chapters = [
        "# Results\n\nWritten by `gmem results` from the experiments' runs in MLflow; the findings lie beside the plots.\n"
    ]
    for found in findings:
        name, pictures = found.design.name, []
        (figures / f"{name}.json").write_text(found.to_json() + "\n")
        for key in found.distances:
            plot = figures / f"{name}-{split_of(key)}.png"
            plot.write_bytes(distances(found.points, key, f"{found.metric} from {split_of(key)} snippets"))
            pictures.append(os.path.relpath(plot, page.parent))
        chapters.append(markdown(found, pictures))
    for each in adapted:
        picture = figures / f"{each.name.replace(' ', '-')}.png"
        picture.write_bytes(each.figure)
        said = "\n".join(f"- {line}" for line in each.lines)
        shown = f"![True pictures, generated ones, nearest training pictures]({os.path.relpath(picture, page.parent)})"
        chapters.append(f"## {each.name}\n\n{ADAPTED}\n\n{said}\n\n{shown}\n\nMLflow run {each.run_id}.\n")
    page.write_text("\n".join(chapters))
    return page.absolute()


def markdown(found: Findings, pictures: Sequence[str] = ()) -> str:
    """A chapter of RESULTS.md; `pictures` are the paths of its plots."""
    design = found.design
    columns, rows = table(found)
    text = [f"## {design.name}", design.description, f"{found.metric}, by the split of the snippets:"]
    text.append("\n".join([_row(columns), _row(["---"] + ["---:"] * (len(columns) - 1)), *map(_row, rows)]))
    text.append("\n".join(f"- {line}" for line in lines(found)))
    text += [f"![Distances of {design.name}]({picture})" for picture in pictures]
    changed = "\n".join(f"- {arm}: {_told(changes) or 'the recipe as it is'}" for arm, changes in design.arms.items())
    text += [changed, found.note, _about(found)]
    return "\n\n".join(part for part in text if part) + "\n"


def _about(found: Findings) -> str:
    design = found.design
    seeds = ", ".join(map(str, design.seeds)) or "the recipe's"
    for_all = _told(design.common | found.overrides)
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    return (
        f"Recipe {found.recipe}{f' with {for_all}' if for_all else ''}; training seeds: {seeds}. Values after ± are deviations "
        f"over the seeds. {found.hardware}; {versions}; {found.made}; MLflow run {found.run_id}."
    )


def _told(changes: dict[str, Any], prefix: str = "") -> str:
    parts = []
    for key, value in changes.items():
        inner = isinstance(value, dict)
        parts.append(_told(value, f"{prefix}{key}.") if inner else f"{prefix}{key}={json.dumps(value)}")
    return ", ".join(parts)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
