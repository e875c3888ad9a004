"""One stream of progress from a job; terminal, Prefect and log lines only show it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self
from uuid import UUID

from pydantic import TypeAdapter, ValidationError

from flows.console import log, tell, terminal
from flows.refusals import REFUSALS

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

MARK = "@gmem "  # begins a line of a submitted job's output that is an event


class Progress(Protocol):
    """What a job tells while it runs. `rows` are its own unit: pictures, steps, samples."""

    def total(self, rows: int, done: int = 0) -> None:
        """How many rows there are in all, `done` of them by an earlier run."""

    def advance(self, rows: int, **values: float) -> None:
        """So many rows more; `values` (a loss, say) are shown beside the bar."""

    def note(self, text: str) -> None:
        """A sentence for the log."""


class Rate:
    """Rows done, rows a second and time left, counted from this run's own work."""

    def __init__(self) -> None:
        self.rows = self.done = self.earlier = 0
        self.start = time.monotonic()
        self.values: dict[str, float] = {}

    def total(self, rows: int, done: int = 0) -> None:
        self.rows, self.done, self.earlier = rows, done, done
        self.start = time.monotonic()

    def advance(self, rows: int, **values: float) -> None:
        self.done += rows
        self.values.update(values)

    @property
    def rate(self) -> float:
        return (self.done - self.earlier) / max(time.monotonic() - self.start, 1e-9)

    @property
    def share(self) -> float:
        return 100 * self.done / self.rows if self.rows else 0.0

    def line(self) -> str:
        shown = "".join(f"  {name} {value:.4g}" for name, value in self.values.items())
        if self.done == self.earlier:  # nothing done yet says nothing about the rate
            return f"{self.done:,}/{self.rows:,}{shown}"
        left = f"  {(self.rows - self.done) / self.rate:,.0f} s left" if self.done < self.rows else ""
        return f"{self.done:,}/{self.rows:,}  {self.rate:,.1f}/s{left}{shown}"


class Terminal:
    """A live bar where there is a terminal, else a line every few seconds."""

    def __init__(self, stage: str, every: float = 10) -> None:
        self.stage, self.every = stage, every
        self.rate = Rate()
        self.said, self.said_of = time.monotonic(), -1
        self.bar: Bars | None = None
        self.task: Any = None

    def __enter__(self) -> Self:
        if terminal().is_terminal:
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

            columns = (
                SpinnerColumn(),
                TextColumn("{task.description:9}"),
                BarColumn(24),
                TextColumn("{task.fields[line]}"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=terminal())
            self.bar.start()
            self.task = self.bar.add_task(self.stage, total=None, line="starting")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()
        elif self.rate.rows and self.said_of != self.rate.done:
            self._say()

    def total(self, rows: int, done: int = 0) -> None:
        self.rate.total(rows, done)
        self._show()

    def advance(self, rows: int, **values: float) -> None:
        self.rate.advance(rows, **values)
        self._show()

    def note(self, text: str) -> None:
        tell(f"{self.stage:9} {text}")
        if self.bar and not self.rate.rows:
            self.bar.update(self.task, line=text)

    def _show(self) -> None:
        if self.bar:
            shown = "".join(f"  {name} {value:.4g}" for name, value in self.rate.values.items())
            line = f"{self.rate.done:,}/{self.rate.rows:,}  {self.rate.rate:,.1f}/s{shown}"
            self.bar.update(self.task, total=self.rate.rows, completed=self.rate.done, line=line)
            if time.monotonic() - self.said > self.every:
                self.said = time.monotonic()
                log.info("%-9s %s", self.stage, self.rate.line())
        elif time.monotonic() - self.said > self.every:
            self._say()

    def _say(self) -> None:
        self.said, self.said_of = time.monotonic(), self.rate.done
        tell(f"{self.stage:9} {self.rate.line()}")


class PrefectProgress:
    """A Prefect progress artifact, refreshed every few seconds, and the run's log.

    It is refreshed from a thread of its own: a server that is slow, or away for a while, does not hold up the work.
    """

    def __init__(self, stage: str, every: float = 3, log_every: float = 30) -> None:
        from prefect.artifacts import create_progress_artifact
        from prefect.logging import get_run_logger

        self.every, self.rate, self.said, self.noted = every, Rate(), 0.0, ""
        self.log_every, self.logged = log_every, time.monotonic()
        self.log = get_run_logger()
        self.artifact: UUID = create_progress_artifact(0.0, key=f"{stage}-progress", description=stage)  # type: ignore[assignment]
        self.sender = ThreadPoolExecutor(1, thread_name_prefix="prefect-progress")
        self.sent: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._send()
        self.sender.shutdown()

    def total(self, rows: int, done: int = 0) -> None:
        self.rate.total(rows, done)
        self._show()

    def advance(self, rows: int, **values: float) -> None:
        self.rate.advance(rows, **values)
        self._show()

    def note(self, text: str) -> None:
        self.log.info(text)
        self.noted = text
        self._show()

    def _show(self) -> None:
        if self.rate.rows and time.monotonic() - self.logged > self.log_every:
            self.logged = time.monotonic()
            self.log.info(self.rate.line())
        if time.monotonic() - self.said > self.every and (self.sent is None or self.sent.done()):
            self.said = time.monotonic()
            self._send()

    def _send(self) -> None:
        self.sent = self.sender.submit(
            self._update, self.rate.share, self.rate.line() if self.rate.rows else self.noted
        )

    def _update(self, share: float, line: str) -> None:
        from prefect.artifacts import update_progress_artifact

        try:
            update_progress_artifact(self.artifact, share, description=line)
        except Exception as error:  # noqa: BLE001 - what a progress bar cannot show is not worth a run
            self.log.warning(
                "Prefect's progress artifact was not refreshed (%s); the work goes on", type(error).__name__
            )


class Everyone:
    """Tells several displays the same."""

    def __init__(self, *displays: Progress) -> None:
        self.displays = displays

    def total(self, rows: int, done: int = 0) -> None:
        self._tell(lambda display: display.total(rows, done))

    def advance(self, rows: int, **values: float) -> None:
        self._tell(lambda display: display.advance(rows, **values))

    def note(self, text: str) -> None:
        self._tell(lambda display: display.note(text))

    def _tell(self, event: Callable[[Progress], None]) -> None:
        for display in self.displays:
            event(display)


class Lines:
    """Writes each event as a line of JSON, for a job that runs far away; `replay` reads them back."""

    def total(self, rows: int, done: int = 0) -> None:
        self._write("total", rows, {"done": done})

    def advance(self, rows: int, **values: float) -> None:
        self._write("advance", rows, values)

    def note(self, text: str) -> None:
        self._write("note", text, {})

    def error(self, problem: BaseException) -> None:
        """Why the job ends; bad input is told apart, because it stays bad."""
        self._write("error", str(problem), {"bad_input": isinstance(problem, REFUSALS)})

    def _write(self, event: str, value: int | str, values: dict[str, Any]) -> None:
        # A bar that some library draws may have left a line unfinished: what is before the mark is not ours.
        sys.stdout.write(MARK + json.dumps([event, value, values]) + "\n")
        sys.stdout.flush()


_EVENT: TypeAdapter[Any] = TypeAdapter(
    tuple[Literal["total"], int, dict[Literal["done"], int]]
    | tuple[Literal["advance"], int, dict[str, float]]
    | tuple[Literal["note"], str, dict[str, str]]
    | tuple[Literal["error"], str, dict[Literal["bad_input"], bool]]
)
"""What `Lines` writes: the event, its value, and more values by their names."""


@dataclass(frozen=True)
class Failure:
    """The last word of a job that failed."""

    sentence: str
    bad_input: bool


def replay(line: str, progress: Progress) -> Failure | None:
    """Passes the event of a line on to `progress`, and notes anything else; returns what an error line says."""
    text, _, event = line.partition(MARK)
    try:
        name, value, values = _EVENT.validate_json(event)
    except ValidationError:  # no event of ours, whatever it holds
        name, value, values, text = "", "", {}, line
    if text.strip():
        progress.note(text.strip())
    if not name:
        return None
    if name == "error":
        return Failure(value, values.get("bad_input", False))
    getattr(progress, name)(value, **values)
    return None


@contextmanager
def shown(stage: str) -> Iterator[Progress]:
    """The terminal's bar and Prefect's artifact."""
    with Terminal(stage) as terminal, PrefectProgress(stage) as prefect:
        yield Everyone(terminal, prefect)
