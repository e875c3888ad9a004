"""``gmem logs``: what earlier commands told, and the tracebacks that they did not show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.options import Json, print_json
from flows.console import new_table, show
from storage.errors import Refused

SHOWN = 20
LAST = "last"


def logs(
    run: Annotated[
        str | None, typer.Argument(help=f"'{LAST}', or a name from the list, or a part of one; none: the list")
    ] = None,
    json: Json = False,
) -> None:
    """Shows the log of a command that ran on this machine; tracebacks are there. The files are in
    ~/.local/state/gmem/logs, or gmem/logs below XDG_STATE_HOME; a stage that ran for Prefect is in Prefect's log."""
    from flows.runlog import files, folder

    there = files()
    if run is not None:
        found = [file for file in there if run == LAST or run in file.stem]
        if not found:
            raise Refused(f"there is no log {run[:80]!r} in {folder()}; 'gmem logs' lists those there are")
        text = found[0].read_text(encoding="utf-8", errors="replace")
        if json:
            print_json({"run": found[0].stem, "file": str(found[0]), "text": text})
        else:
            show(text.rstrip("\n"))
        return
    rows = [{"run": file.stem, "command": _first_line(file)} for file in there[:SHOWN]]
    if json:
        print_json({"folder": str(folder()), "logs": rows})
        return
    table = new_table("run", "command", names="run")
    for row in rows:
        table.add_row(row["run"], row["command"])
    show(table)
    show(f"in {folder()}; 'gmem logs RUN' shows one")


def _first_line(file: Path) -> str:
    with file.open(encoding="utf-8", errors="replace") as stream:
        return stream.readline(500).strip()
