"""What Prefect is told of a stage's artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prefect.assets import Asset

from flows.engine.context import Result
from flows.engine.stage import Plan
from flows.lineage import LONGEST, emit_made, key_of
from flows.recipe.files import load
from flows.stages.bank.stage import BANK, PATCHES
from flows.stages.bank.stage import STAGE as BANK_STAGE
from flows.stages.ingest.stage import IMAGES
from flows.stages.ingest.stage import STAGE as INGEST

PAGE = "http://127.0.0.1:5000/#/experiments/1/runs/ab"


def result(plan: Plan, fresh: bool = True, **more: Any) -> Result:
    artifacts = {output.kind: plan.artifact(output).uri for output in (BANK, PATCHES)}
    return Result(
        stage="bank",
        unit="rows",
        fresh=fresh,
        seconds=2.04,
        rows=40,
        artifacts=artifacts,
        versions={"bank": 10, "patches": 5},
        run_id="ab",
        store=plan.store.root,
        details={"metrics": {"fd": 7.5}},
    )


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    monkeypatch.setattr("prefect.events.emit_event", lambda **event: events.append(event))
    return events


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(load("emoji", {"store": str(tmp_path / "My Store #1")}))


def test_artifacts_are_assets_with_what_they_were_made_of(plan: Plan, told: list[dict[str, Any]]) -> None:
    emit_made(result(plan), BANK_STAGE, plan, PAGE)
    made = {event["resource"]["prefect.resource.id"]: event for event in told if "materialization" in event["event"]}
    assert set(made) == {key_of(plan.artifact(output).uri) for output in (BANK, PATCHES)}
    bank = made[key_of(plan.artifact(BANK).uri)]
    assert bank["event"] == "prefect.asset.materialization.succeeded"
    assert bank["payload"] == {
        "uri": plan.artifact(BANK).uri, "version": 10, "rows": 40, "unit": "rows", "seconds": 2.0, "mlflow_run": "ab",
        "fd": 7.5,
    }  # fmt: skip
    assert made[key_of(plan.artifact(PATCHES).uri)]["payload"]["version"] == 5
    assert bank["resource"]["prefect.resource.name"] == "bank of emoji"
    assert bank["resource"]["prefect.asset.url"] == PAGE
    assert {each["prefect.resource.id"] for each in bank["related"]} == {key_of(plan.artifact(IMAGES).uri), "gmem"}
    told.clear()
    emit_made(result(plan), INGEST, plan, "run ab, mlflow ui")
    assert {event["resource"]["prefect.resource.id"] for event in told if event["event"].endswith("referenced")} == {
        key_of(plan.recipe.source)
    }


def test_what_was_there_already_is_made_no_second_time(plan: Plan, told: list[dict[str, Any]]) -> None:
    emit_made(result(plan, fresh=False), BANK_STAGE, plan, PAGE)
    assert told == []


def test_nothing_of_it_costs_a_run(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_event: Any) -> None:
        raise OSError("no server")

    monkeypatch.setattr("prefect.events.emit_event", broken)
    emit_made(result(plan), BANK_STAGE, plan, PAGE)


@pytest.mark.parametrize(
    ("uri", "key"),
    [
        ("s3://bucket/runs/bank/x-0", "s3://bucket/runs/bank/x-0"),
        ("/data/My Store #1/bank", "file:///data/My_Store__1/bank"),
        ("/data/" + "ü" * 900, ("file:///data/" + "ü" * 900)[:LONGEST]),
    ],
)
def test_every_address_becomes_a_key_that_prefect_takes(uri: str, key: str) -> None:
    assert Asset(key=key_of(uri)).key == key
