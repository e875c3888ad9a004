"""A file for what a command of `gmem` tells and meets: lines of the screen, warnings, Prefect's log, tracebacks.

It is begun with the first line, so that commands which only answer leave none.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from io import TextIOWrapper
from pathlib import Path
from shlex import join

from flows.console import log as shown
from flows.console import terminal
from storage.addresses import without_userinfo

KEPT = 200
"""Files; older ones are removed as a new one begins."""
OURS = ("flows", "gmem", "storage")
NAME = "%Y%m%d-%H%M%S"


def folder() -> Path:
    """Where the files are: `gmem/logs` in the user's folder for state, as XDG_STATE_HOME or its default names it."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "gmem" / "logs"


def files() -> list[Path]:
    """The newest first."""
    with suppress(OSError):
        return sorted(folder().glob("*.log"), reverse=True)
    return []


class RunLog(logging.FileHandler):
    """The file of this process."""

    def __init__(self, arguments: Sequence[str]) -> None:
        words = [word for word in arguments[:2] if word.isidentifier()]
        name = "-".join([datetime.now().strftime(NAME), *words, str(os.getpid())])
        super().__init__(folder() / f"{name}.log", encoding="utf-8", errors="replace", delay=True)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
        self.command = without_userinfo(join(["gmem", *arguments]))

    @property
    def begun(self) -> bool:
        return self.stream is not None

    @property
    def path(self) -> Path:
        return Path(self.baseFilename)

    def _open(self) -> TextIOWrapper:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for old in files()[KEPT - 1 :]:
                old.unlink(missing_ok=True)
            stream = super()._open()
        except OSError:  # no home that can be written
            self.baseFilename = str(Path(tempfile.gettempdir()) / self.path.name)
            stream = super()._open()
        stream.write(f"{self.command}\nin {Path.cwd()}\n")
        return stream


class Screen(logging.Handler):
    """Our own warnings, on standard error; what others warn of is for the file alone."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] in OURS:
            terminal().print(self.format(record).splitlines()[0], soft_wrap=True)


@contextmanager
def recorded(arguments: Sequence[str]) -> Iterator[RunLog]:
    """While a command runs, its file takes whatever is logged; Prefect, once imported, leaves these handlers be."""
    file, screen = RunLog(arguments), Screen()
    listening = ((logging.getLogger(), file), (logging.getLogger(), screen), (shown, file))
    for logger, handler in listening:
        logger.addHandler(handler)
    try:
        yield file
    finally:
        for logger, handler in listening:
            logger.removeHandler(handler)
        file.close()
