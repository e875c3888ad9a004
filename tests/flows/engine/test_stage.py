"""What a plan says of the outputs of a stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.engine.stage import Output, Plan, Stage, result_of
from flows.recipe.files import load


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(load("emoji", {"store": str(tmp_path)}))


def test_a_job_knows_the_source_from_the_flow(plan: Plan, tmp_path: Path) -> None:
    there = Plan(load("emoji", {"store": str(tmp_path), "data": {"source": "/elsewhere"}}), plan.source_fingerprint)
    assert there.source_fingerprint == plan.source_fingerprint  # nothing is listed again


def test_why_a_stage_would_run_names_what_changed(plan: Plan) -> None:
    samples = Output("samples", 1, lambda _: {})
    before = Output("report", 1, lambda _: {"memorisation": False}, lambda _: (samples,))
    now = Output("report", 1, lambda _: {"memorisation": True}, lambda _: (samples,))
    artifact = plan.artifact(before)
    with artifact.lease("test") as lease:
        inputs = {"samples": plan.artifact(samples).reference()}
        artifact.commit(artifact.describe(lease, parameters=before.parameters(plan), inputs=inputs))
    stage = stage_of(now)
    assert plan.why(stage) == "changed: memorisation False -> True"
    assert plan.fingerprints(stage).keys() == {"report", "samples"}


def test_why_names_inputs_that_are_others_or_new_or_gone(plan: Plan) -> None:
    bank, memory, other = (
        Output("bank", 1, lambda _: {}),
        Output("memory", 1, lambda _: {}),
        Output("bank", 2, lambda _: {}),
    )
    before = Output(
        "training", 1, lambda _: {}, lambda _: (bank,), reads=lambda _: (Output("latents", 1, lambda _: {}),)
    )
    artifact = plan.artifact(before)
    with artifact.lease("test") as lease:
        inputs = {kind: plan.artifact(bank).reference() for kind in ("bank", "latents")}
        artifact.commit(artifact.describe(lease, inputs=inputs))
    smaller = stage_of(Output("training", 1, lambda _: {}, lambda _: (bank, memory), reads=before.reads))
    assert plan.why(smaller) == "changed: with memory"
    assert plan.why(stage_of(Output("training", 1, lambda _: {}, lambda _: (other,)))) == (
        "changed: bank is another, without latents"
    )


def stage_of(*outputs: Output) -> Stage:
    """A stage that is never run."""
    return Stage(
        name="evaluate",
        description="",
        unit="samples",
        outputs=outputs,
        driver="",
        rows=lambda recipe, pictures: pictures,
    )


@pytest.mark.parametrize("key", ["figures", "pictures"])
def test_figures_are_found_where_the_store_is_now(plan: Plan, key: str) -> None:
    """Release 0.1 kept their addresses in full, and marks for the terminal in the lines."""
    output = Output("report", 1, lambda _: {})
    named = {"figures": "pairs.png", "pictures": "/elsewhere/runs/report/x-0123456789ab/pairs.png"}[key]
    lines = ["fd of 4 samples: [bold]7.6[/] (floor: 2)", f"pairs: {named}"]
    artifact = plan.artifact(output)
    with artifact.lease("test") as lease:
        details = {key: {"pairs": named}, "lines": lines if key == "pictures" else ["fd of 4 samples: 7.6 (floor: 2)"]}
        artifact.commit(artifact.describe(lease, counts={"rows": 4}, details=details))
    result = result_of(stage_of(output), plan, False, 0.0)
    assert result.pictures == {"pairs": artifact.path("pairs.png")}
    assert result.details["lines"] == ["fd of 4 samples: 7.6 (floor: 2)"]


def test_what_is_being_built_stays_what_it_was_begun_as(plan: Plan) -> None:
    """Whatever others do meanwhile, such as training on the network that is being evaluated."""
    step = [2000]
    inner = Output("samples", 1, lambda _: {"step": step[0]})
    output = Output("report", 1, lambda _: {"step": step[0]}, lambda _: (inner,))
    settled = plan.settled()
    begun = settled.artifact(output)
    step[0] = 3000
    assert settled.artifact(output).uri == begun.uri and settled.parameters(output) == {"step": 2000}
    assert settled.fingerprint(inner) != plan.fingerprint(inner)
    assert plan.artifact(output).uri == plan.settled().artifact(output).uri != begun.uri
