from __future__ import annotations

import pytest
from prefect.states import Failed

from flows.cluster.errors import explained
from flows.recipe.files import load
from flows.session import DEPLOYED_WAIT, _patient, _worth_retrying
from storage.errors import StoreRefused, StoreUnreachable


def test_a_store_that_is_away_is_worth_another_attempt() -> None:
    unreachable, wrapped = StoreUnreachable("no answer"), RuntimeError("a task failed")
    unreachable.__cause__, wrapped.__cause__ = TimeoutError(), unreachable
    assert str(said := explained(wrapped)) == "no answer"
    assert _worth_retrying(None, None, Failed(data=said))
    assert not _worth_retrying(None, None, Failed(data=StoreRefused("no room")))


def test_a_deployments_run_waits_for_anothers_lease_unless_its_recipe_says_how_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = load("emoji", {"tracking": {"lease_wait": 5}})
    assert _patient(load("emoji")).tracking.lease_wait == 0
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "a-deployment")
    assert _patient(load("emoji")).tracking.lease_wait == DEPLOYED_WAIT
    assert _patient(chosen).tracking.lease_wait == 5
