"""What a plan says of the parts of a stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.engine.plan import Plan
from flows.engine.stage import Output, Stage
from flows.recipe.files import load


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(load("emoji", {"store": str(tmp_path)}))


def test_a_job_knows_the_source_from_the_flow(plan: Plan, tmp_path: Path) -> None:
    there = Plan(load("emoji", {"store": str(tmp_path), "data": {"source": "/elsewhere"}}), plan.source_fingerprint)
    assert there.source_fingerprint == plan.source_fingerprint  # nothing is listed again


def test_an_input_that_is_not_wanted_is_not_asked_for(plan: Plan) -> None:
    def refused(_plan: Plan) -> dict[str, Any]:
        raise AssertionError("it cannot be said of this recipe")

    own, outside = Output("samples", 1, lambda _: {}), Output("samples", 1, refused, wanted=lambda _: False)
    before = Output("report", 1, lambda _: {"memorisation": False}, (own, outside))
    now = Output("report", 1, lambda _: {"memorisation": True}, (own, outside))
    artifact = plan.artifact(before)
    with artifact.lease("test") as lease:
        inputs = {"samples": plan.artifact(own).reference()}
        artifact.commit(artifact.describe(lease, parameters=before.parameters(plan), inputs=inputs))
    stage = Stage("evaluate", "samples", (now,), lambda context, progress: pytest.fail("nothing is built"))
    assert plan.why(stage) == "changed: memorisation False -> True"
    assert plan.fingerprints(stage).keys() == {"report", "samples"}


def test_what_is_being_built_stays_what_it_was_begun_as(plan: Plan) -> None:
    """Whatever others do meanwhile, such as training on the network that is being evaluated."""
    step = [2000]
    inner = Output("samples", 1, lambda _: {"step": step[0]})
    part = Output("report", 1, lambda _: {"step": step[0]}, (inner,))
    settled = plan.settled()
    begun = settled.artifact(part)
    step[0] = 3000
    assert settled.artifact(part).uri == begun.uri and settled.parameters(part) == {"step": 2000}
    assert settled.fingerprint(inner) != plan.fingerprint(inner)
    assert plan.artifact(part).uri == plan.settled().artifact(part).uri != begun.uri
