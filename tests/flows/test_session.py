from __future__ import annotations

from prefect.states import Failed

from flows.cluster.errors import explained
from flows.session import _worth_retrying
from storage.errors import StoreError, StoreUnreachable


def test_a_store_that_is_away_is_worth_another_attempt() -> None:
    unreachable, wrapped = StoreUnreachable("no answer"), RuntimeError("a task failed")
    unreachable.__cause__, wrapped.__cause__ = TimeoutError(), unreachable
    assert str(said := explained(wrapped)) == "no answer"
    assert _worth_retrying(None, None, Failed(data=said))
    assert not _worth_retrying(None, None, Failed(data=StoreError("no room")))
