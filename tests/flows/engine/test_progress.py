"""What a job tells is heard elsewhere as it was told."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from flows.console import terminal as terminal_console
from flows.engine.errors import StageError
from flows.engine.progress import MARK, Lines, Rate, Terminal, replay
from storage.errors import StoreUnreachable


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


def test_events_come_back_as_they_were_told(capsys: pytest.CaptureFixture[str]) -> None:
    lines, heard = Lines(), Heard()
    lines.total(10, done=2)
    lines.advance(3, loss=0.5)
    lines.note("half way")
    print("a library speaks")
    print("at [/tmp/x.py:3]")
    print(MARK + "is not always ours")
    print("50 %|###   ", end="")  # a bar without an end of line
    lines.advance(5)
    told = capsys.readouterr().out.splitlines()
    assert all(replay(line, heard) is None for line in told)
    assert (heard.rate.rows, heard.rate.done, heard.rate.values) == (10, 10, {"loss": 0.5})
    assert heard.notes == [
        "half way",
        "a library speaks",
        "at [/tmp/x.py:3]",
        f"{MARK}is not always ours".strip(),
        "50 %|###",
    ]


@pytest.mark.parametrize(
    "event",
    [
        "[" * 10_000 + "]" * 10_000,
        '["total", ' + "9" * 5000 + ', {"done": 0}]',
        "7",
        '["total", "many", {}]',
        '["total", 1, {"made": 1}]',
        '["__init__", 1, {}]',
        '["error", null, {}]',
    ],
)
def test_what_only_looks_like_an_event_is_a_note(event: str) -> None:
    heard = Heard()
    assert replay(MARK + event, heard) is None
    assert heard.notes == [(MARK + event).strip()]
    assert heard.rate.rows == 0


def test_the_last_line_is_said_once_and_tells_no_time_left() -> None:
    with terminal_console().capture() as shown, Terminal("sample", every=0) as terminal:
        terminal.total(2)
        terminal.advance(1)
        terminal.advance(1)
    lines = shown.get().splitlines()
    assert [line.split()[1] for line in lines] == ["0/2", "1/2", "2/2"]
    assert ["left" in line for line in lines] == [False, True, False]
    with terminal_console().capture() as shown, Terminal("sample", every=3600) as terminal:
        terminal.total(2)
        terminal.advance(2)
    assert [line.split()[1] for line in shown.get().splitlines()] == ["2/2"]


def test_what_is_being_started_stands_beside_the_bar_until_there_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(force_terminal=True, file=io.StringIO(), width=100)
    monkeypatch.setattr("flows.engine.progress.terminal", lambda: screen)
    with Terminal("train", every=0) as terminal:
        assert terminal.bar is not None
        terminal.note("starting the training worker")
        assert terminal.bar.tasks[0].fields["line"] == "starting the training worker"
        terminal.total(10)
        terminal.advance(1)
        terminal.note("a checkpoint")
        assert terminal.bar.tasks[0].fields["line"].startswith("1/10")


def test_brackets_of_foreign_words_are_shown_as_they_are() -> None:
    with terminal_console().capture() as shown, Terminal("train") as terminal:
        terminal.note("a library speaks at [/tmp/x.py:3] of [red]")
    assert "[/tmp/x.py:3] of [red]" in shown.get()


@pytest.mark.parametrize(
    ("problem", "bad_input"),
    [(StageError("mend the recipe"), True), (OSError("no disk"), False), (StoreUnreachable("timed out"), False)],
)
def test_an_error_says_whether_the_input_was_bad(
    problem: Exception, bad_input: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    Lines().error(problem)
    failure = replay(capsys.readouterr().out.rstrip("\n"), Heard())
    assert failure is not None
    assert (failure.sentence, failure.bad_input) == (str(problem), bad_input)
