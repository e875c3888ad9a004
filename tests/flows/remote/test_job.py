"""What a flow asks of a job, and what the job refuses."""

from __future__ import annotations

import pytest

from flows.engine.errors import StageError
from flows.engine.progress import Lines
from flows.engine.stage import Plan
from flows.remote.job import Request, difference, perform, versions
from flows.stages.train.stage import STAGE as TRAIN
from storage.tracking.tracking import Tracking


def request_for(plan: Plan) -> Request:
    return Request.of(TRAIN, plan, Tracking("sqlite:///none.db", "emoji"), "a-parent")


def test_a_request_travels_as_json_and_is_understood(plan: Plan) -> None:
    request = request_for(plan)
    assert Request.model_validate_json(request.model_dump_json()) == request
    assert request.fingerprints == {"training": plan.fingerprint(TRAIN.outputs[0])}


def test_a_job_refuses_inputs_that_differ_on_the_cluster(plan: Plan) -> None:
    request = request_for(plan).model_copy(update={"fingerprints": {"training": "0" * 12}})
    with pytest.raises(StageError, match="other training"):
        perform(request, Lines())


def test_other_versions_are_said_in_one_sentence() -> None:
    here = versions()
    assert difference(here, here) == ""
    assert "ray 2.99 (there " in difference(here | {"ray": "2.99"}, here)
