from __future__ import annotations

import logging

import pytest
from prefect.states import Failed

from flows.cluster.errors import explained
from flows.recipe.files import load
from flows.session import DEPLOYED_WAIT, _patient, _worth_retrying
from storage.errors import Refused, StoreRefused, StoreUnreachable


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


def test_a_runs_log_has_the_sentence_of_what_a_person_must_change_and_tracebacks_of_the_rest() -> None:
    def logged(problem: Exception) -> logging.LogRecord:
        found: list[logging.LogRecord] = []

        class Keep(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                found.append(record)

        log, handler = logging.getLogger("prefect.flow_runs"), Keep()
        log.addHandler(handler)
        try:
            raise problem
        except Exception as error:
            log.exception("Encountered exception during execution: %r", error)  # noqa: TRY401 - as Prefect does
        finally:
            log.removeHandler(handler)
        return found[0]

    refused = logged(Refused("recipe 'emojy' does not exist"))
    assert refused.getMessage() == "recipe 'emojy' does not exist" and not refused.exc_info
    broken = logged(KeyError("snippet"))
    assert "Encountered" in broken.getMessage() and broken.exc_info
