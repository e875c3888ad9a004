"""What a job tells is heard elsewhere as it was told."""

from __future__ import annotations

import pytest

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
