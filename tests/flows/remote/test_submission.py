"""The jobs of a cluster, without one; tests/integration/test_cluster.py has one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.cluster.errors import ClusterError
from flows.engine.stage import Plan
from flows.remote.submission import PACKAGES, Jobs, Output, shipped
from flows.stages.train.stage import STAGE as TRAIN
from storage.store import Store


def test_the_shipped_code_runs_by_itself_and_knows_its_version() -> None:
    with shipped() as folder:
        assert {path.name for path in Path(folder).iterdir() if path.suffix != ".dist-info"} == set(PACKAGES)
        assert not list(Path(folder).rglob("__pycache__"))
        asked = (
            "import importlib.metadata as m, flows, gmem.weights, flows.recipe.files as r;"
            "print(flows.__file__, m.version('gmem-pipeline'), r.load('emoji').name)"
        )
        told = subprocess.run(
            [sys.executable, "-c", asked],
            env={"PYTHONPATH": folder},
            cwd="/",
            capture_output=True,
            text=True,
            check=True,
        )
        assert told.stdout.split() == [f"{folder}/flows/__init__.py", "0.1.0", "emoji"]


def test_a_cluster_that_is_not_there_is_said_without_the_password(plan: Plan) -> None:
    with pytest.raises(ClusterError, match=r"jobs API at http://127\.0\.0\.1:9 ") as caught:
        Jobs("http://me:secret@127.0.0.1:9", TRAIN, plan)
    assert "secret" not in str(caught.value)


class Client:
    """A jobs API whose connection breaks after each of `pieces`; a new one tells everything from the start again."""

    def __init__(self, *pieces: str) -> None:
        self.pieces, self.calls = pieces, 0

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        self.calls += 1
        for piece in self.pieces[: self.calls]:
            yield piece
        if self.calls < len(self.pieces):
            raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_status(self, job: str) -> Any:
        return SimpleNamespace(is_terminal=lambda: self.calls >= len(self.pieces))


def test_every_line_is_given_once_whatever_becomes_of_the_connection() -> None:
    client = Client("one\ntw", "o\nthree\n", "four")
    assert list(Output(client, "job")) == ["one", "two", "three", "four"]  # type: ignore[arg-type]
    assert client.calls == 3


def test_the_same_artifacts_give_the_same_job_and_other_stores_another(plan: Plan, monkeypatch: Any) -> None:
    monkeypatch.setattr(Jobs, "_connect", lambda self, address: None)
    first, again = Jobs("http://a:1", TRAIN, plan), Jobs("http://b:2", TRAIN, Plan(plan.recipe))
    assert first.name == again.name
    other = Plan(plan.recipe.model_copy(update={"store": Store(f"{plan.store.root}2").root}))
    assert Jobs("http://a:1", TRAIN, other).name != first.name
