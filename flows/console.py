"""The terminal: what was asked for goes to standard output, whatever is told beside it to standard error."""

from __future__ import annotations

import logging
import os
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # rich costs a tenth of a second, which a command that prints JSON need not wait for
    from rich.console import Console
    from rich.table import Table

PIPE_WIDTH = 200
"""Columns of what is read by a program or a file, which has no edge to fold at."""

log = logging.getLogger("flows.screen")
log.setLevel(logging.INFO)
log.propagate = False  # nobody listens but the file of a command (flows/runlog.py): others would show it twice


@cache
def terminal() -> Console:
    """Standard error: progress, notes, errors."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False)


def new_table(*columns: str, names: str | None = None, title: str | None = None, header: bool = True) -> Table:
    """An empty table; the column `names` is never broken over lines, since people copy from it."""
    from rich.table import Column, Table

    made = [Column(column, overflow="fold", no_wrap=column == names) for column in columns]
    return Table(*made, title=title, show_header=header)


def show(result: Table | str) -> None:
    """A result, on standard output."""
    from rich.console import Console

    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    _print(Console(highlight=False, markup=False, width=wide), result)


def tell(what: Any) -> None:
    """A note, on standard error, and for the log."""
    _print(terminal(), what)
    if not hasattr(what, "add_row"):  # a table is a result, though told beside another
        log.info("%s", what)


def _print(console: Console, what: Any) -> None:
    """A table within the width there is, a text as it is: people copy names and addresses out of it."""
    from rich.table import Table

    console.print(what, soft_wrap=not isinstance(what, Table))
