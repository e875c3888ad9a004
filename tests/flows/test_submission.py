"""What travels to a cluster and what comes back, without one; tests/integration/test_cluster.py has one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.cluster import ClusterError, jobs_address
from flows.job import Request, difference, perform, versions
from flows.progress import Lines, Rate, replay
from flows.recipe import Cluster, RecipeError, load
from flows.stage import Plan, StageError
from flows.submission import PACKAGES, Jobs, Output, shipped
from flows.train import STAGE as TRAIN
from storage.store import Store
from storage.tracking import Tracking


class Heard:
    """A report that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.rate = Rate()

    def total(self, rows: int, done: int = 0) -> None:
        self.rate.total(rows, done)

    def advance(self, rows: int, **values: float) -> None:
        self.rate.advance(rows, **values)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(load("emoji", {"store": str(tmp_path / "store")}))


def request_for(plan: Plan) -> Request:
    return Request.of(TRAIN, plan, Tracking("sqlite:///none.db", "emoji"), "a-parent")


def test_events_come_back_as_they_were_told(capsys: pytest.CaptureFixture[str]) -> None:
    lines, heard = Lines(), Heard()
    lines.total(10, done=2)
    lines.advance(3, loss=0.5)
    lines.note("half way")
    print("a library speaks")
    print("50 %|###   ", end="")  # a bar without an end of line
    lines.advance(5)
    told = capsys.readouterr().out.splitlines()
    assert all(replay(line, heard) is None for line in told)
    assert (heard.rate.rows, heard.rate.done, heard.rate.values) == (10, 10, {"loss": 0.5})
    assert heard.notes == ["half way", "a library speaks", "50 %|###"]


@pytest.mark.parametrize(("problem", "bad_input"), [(StageError("mend the recipe"), True), (OSError("no disk"), False)])
def test_an_error_says_whether_the_input_was_bad(
    problem: Exception, bad_input: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    Lines().error(problem)
    failure = replay(capsys.readouterr().out.rstrip("\n"), Heard())
    assert failure is not None
    assert (failure.sentence, failure.bad_input) == (str(problem), bad_input)


def test_a_request_travels_as_json_and_is_understood(plan: Plan) -> None:
    request = request_for(plan)
    assert Request.model_validate_json(request.model_dump_json()) == request
    assert request.fingerprints == {"training": plan.fingerprint(TRAIN.parts[0])}


def test_a_job_knows_the_source_from_the_flow(plan: Plan, tmp_path: Path) -> None:
    there = Plan(load("emoji", {"store": str(tmp_path), "data": {"source": "/elsewhere"}}), plan.source_fingerprint)
    assert there.source_fingerprint == plan.source_fingerprint  # nothing is listed again


def test_a_job_refuses_inputs_that_differ_on_the_cluster(plan: Plan) -> None:
    request = request_for(plan).model_copy(update={"fingerprints": {"training": "0" * 12}})
    with pytest.raises(StageError, match="other training"):
        perform(request, Heard())


def test_other_versions_are_said_in_one_sentence() -> None:
    here = versions()
    assert difference(here, here) == ""
    assert "ray 2.99 (there " in difference(here | {"ray": "2.99"}, here)


def test_the_shipped_code_runs_by_itself_and_knows_its_version() -> None:
    with shipped() as folder:
        assert {path.name for path in Path(folder).iterdir() if path.suffix != ".dist-info"} == set(PACKAGES)
        assert not list(Path(folder).rglob("__pycache__"))
        asked = (
            "import importlib.metadata as m, flows, gmem.shipped, flows.recipe as r;"
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


@pytest.mark.parametrize("address", ["ray://head:10001"])
def test_rays_client_is_refused_with_what_to_say_instead(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"http://head:8265"):
        load("emoji", {"cluster": {"address": address}})
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ValueError, match="http://"):
        jobs_address(Cluster())


def test_jobs_are_submitted_where_the_address_is_one_of_the_jobs_api(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert jobs_address(Cluster()) is None
    assert jobs_address(Cluster(address="auto")) is None
    assert jobs_address(Cluster(address="https://head:8265")) == "https://head:8265"


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
