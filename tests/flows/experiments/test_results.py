"""Findings as JSON, as a table and as a page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from flows.experiments.curves import Point
from flows.experiments.design import load
from flows.experiments.results import Findings, lines, table, write
from storage.errors import Refused

EXPERIMENT = {
    "name": "worth",
    "description": "What the memory is worth.",
    "baseline": "none",
    "arms": {"memory": {}, "none": {"network.conditioning": "none"}},
    "steps": [100, 400],
    "seeds": [1, 2],
    "reach": [5],
}


def _point(arm: str, seed: int, step: int, distance: float, calls: int = 20) -> Point:
    metrics = {"train/samples/fd-eye": distance, "held_out/samples/fd-eye": 2 * distance}
    return Point(arm, seed, step, step / 10, float(step), calls, metrics, "report/x")


@pytest.fixture
def findings() -> Findings:
    values = {("memory", 100): 8.0, ("memory", 400): 2.0, ("none", 100): 16.0, ("none", 400): 8.0}
    return Findings(
        experiment=load(EXPERIMENT).model_dump(),
        recipe="emoji",
        overrides={"train": {"batch": 8}},
        metric="fd-eye",
        points=[_point(arm, seed, step, value) for seed in (1, 2) for (arm, step), value in values.items()],
        floors={"train": 1.0},
        made="2026-01-01",
        hardware="2 CPUs",
        versions={"torch": "2"},
        run_id="abc",
    )


def test_findings_go_into_json_and_come_back(findings: Findings) -> None:
    assert Findings.from_json(findings.to_json()) == findings
    for damaged in ("[]", "{}", "{", json.dumps({"points": [{"arm": 1}]}), "[" * 100_000):
        with pytest.raises(Refused, match="no findings of an experiment"):
            Findings.from_json(damaged)


def test_the_table_has_a_row_an_arm_and_a_gain_on_the_baseline(findings: Findings) -> None:
    columns, rows = table(findings)
    memory, none = (dict(zip(columns, row, strict=True)) for row in rows)
    assert memory["train"] == "2 ± 0" and memory["least, held-out"] == "4 ± 0" and memory["calls"] == "20"
    assert memory["× sooner, train, steps"] == "at least 4 (4 to 4)" and none["× sooner, train, steps"] == ""
    assert memory["epochs to 5"] == "16 ± 0" and memory["× sooner, held-out, seconds"] == "at least 4 (4 to 4)"
    assert none["epochs to 5"] == "never"


def test_distances_that_not_every_arm_has_are_left_out(findings: Findings) -> None:
    first, *rest = findings.points
    lacking = replace(first, metrics={"train/samples/fd-eye": 1.0})
    assert replace(findings, points=[lacking, *rest]).distances == ["train/samples/fd-eye"]


def test_a_sampler_with_fewer_calls_that_is_nearly_as_good_is_named(findings: Findings) -> None:
    quick = [
        replace(point, arm="quick", calls=5, metrics={"train/samples/fd-eye": 2.1}) for point in findings.points[:1]
    ]
    said = "\n".join(lines(replace(findings, points=findings.points + quick)))
    assert "least distance from train snippets: 2 ± 0 by memory (floor, the tokenizer's reconstructions: 1)" in said
    assert "within a tenth of it with 5 network calls in place of 20: 2.1 by quick" in said


def test_a_page_has_a_chapter_with_table_plots_and_what_was_changed(findings: Findings, tmp_path: Path) -> None:
    page = write(
        [findings, replace(findings, experiment=findings.experiment | {"name": "again"})],
        tmp_path / "R.md",
        tmp_path / "plots",
    )
    text = page.read_text()
    assert "## worth\n\nWhat the memory is worth." in text and "## again" in text
    assert (
        "![Distances of worth](plots/worth-held-out.png)" in text and (tmp_path / "plots/worth-held-out.png").exists()
    )
    assert '- none: network.conditioning="none"' in text and "with train.batch=8; training seeds: 1, 2" in text
    assert Findings.from_json((tmp_path / "plots" / "again.json").read_text()).design.name == "again"
