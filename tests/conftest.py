"""The table of the trials: what was killed, what had to be done again, which rows were lost or doubled.

A trial is marked `trials`, takes the fixture `trial`, and tells it once how things ended, which fails on lost or
doubled rows:  trial("latents: its process", "SIGKILL at 90 %", redone=24, lost=0, doubled=0, of=960)
`outcome` says what the user saw where that is not a completed run; `of` is the number of rows in all.
`make trials` runs them and prints the table; where the environment names a file in GMEM_TRIALS, it is also JSON there.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Column, Table
from xdist.scheduler import LoadFileScheduling


@dataclass(frozen=True)
class Row:
    trial: str
    killed: str
    redone: int | None
    of: int | None
    lost: int | None
    doubled: int | None
    seconds: float
    outcome: str


ROWS = pytest.StashKey[list[Row]]()


class Together(LoadFileScheduling):
    """For several processes at once (`-n`): the tests of a file share fixtures, and those of the whole chain a store."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "integration" if "/integration/" in file else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    return Together(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest begin."""
    items.sort(key=lambda item: item.path.parent.name != "integration")


@pytest.fixture(scope="session", autouse=True)
def _state_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Commands of tests leave no log among a person's."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture
def trial(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """Notes how a trial ended; see above. One that fails before it says so is noted as failed."""
    rows = request.config.stash.setdefault(ROWS, [])
    began, before = time.monotonic(), len(rows)

    def note(
        what: str, killed: str, redone: int, lost: int, doubled: int, of: int | None = None, outcome: str = "completed"
    ) -> None:
        said = re.sub(r"\S*/pytest-\d+/[^/\s]+", "…", outcome)  # whoever reads the table has no use for where it ran
        rows.append(Row(what, killed, redone, of, lost, doubled, round(time.monotonic() - began, 1), said))
        assert lost == 0 and doubled == 0, f"{what}: {lost} rows lost, {doubled} doubled"

    yield note
    if len(rows) == before:
        name, seconds = request.node.name, round(time.monotonic() - began, 1)
        rows.append(Row(name, "", None, None, None, None, seconds, "failed before its end"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not (rows := config.stash.get(ROWS, [])):
        return
    if path := os.environ.get("GMEM_TRIALS"):
        Path(path).write_text(json.dumps([asdict(row) for row in rows], indent=2))
    table = Table(
        "trial",
        "what was killed or broken",
        *(Column(name, justify="right") for name in ("redone", "lost", "doubled", "s")),
        Column("outcome", overflow="fold"),
        title=f"{len(rows)} trials in {sum(row.seconds for row in rows):.0f} s",
    )
    for row in rows:
        redone = "" if row.redone is None else f"{row.redone}" + (f" of {row.of}" if row.of else "")
        counts = ("" if value is None else str(value) for value in (row.lost, row.doubled, row.seconds))
        table.add_row(row.trial, row.killed, redone, *counts, row.outcome)
    terminalreporter.write_line("")
    Console(width=150, file=terminalreporter._tw._file).print(table)
