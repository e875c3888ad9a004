"""Runs the benchmarks of entries.yaml one after the other, prints one table, and keeps the figures in MLflow.

`make bench` for this machine's figures. A value below its least is marked, and ends the whole with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
import yaml
from measured import Measured
from rich.console import Console
from rich.table import Table

from storage.store import Store
from storage.tracking.tracking import Tracking

HERE = Path(__file__).parent
PACKAGES = ("torch", "pylance", "lancedb", "pillow", "numpy", "ray")


@dataclass(frozen=True)
class Entry:
    """One program and what it should reach."""

    program: str
    arguments: str
    small: str
    least: dict[str, float]


def entries(only: list[str]) -> list[Entry]:
    """Those of entries.yaml whose program is named, all where none is."""
    known = [Entry(**each) for each in yaml.safe_load((HERE / "entries.yaml").read_text(encoding="utf-8"))]
    if unknown := set(only) - {entry.program.removesuffix(".py") for entry in known}:
        raise SystemExit(f"there is no benchmark {', '.join(sorted(unknown))}; see entries.yaml")
    return [entry for entry in known if not only or entry.program.removesuffix(".py") in only]


def run(entry: Entry, small: bool) -> list[Measured]:
    """What its program measured, in a process of its own: memory and threads of one are no other's."""
    arguments = shlex.split(entry.small if small else entry.arguments)
    done = subprocess.run(
        [sys.executable, str(HERE / entry.program), *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    return [Measured(**json.loads(line)) for line in done.stdout.splitlines()]


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def shown(rows: list[tuple[Measured, float | None]]) -> Table:
    """What, ours, by other means with the ratio, share of the limit, and the least."""
    table = Table("what", "ours", "by other means", "share of the limit", "at least", box=None, pad_edge=False)
    for row, least in rows:
        others = "\n".join(
            f"{name} {number(value)} ({row.value / value:.3g} times)" for name, value in row.others.items()
        )
        share = f"{row.value / row.limit:.0%}" if row.limit else ""
        aim = "" if least is None else number(least)
        colour = "red" if least is not None and row.value < least else ""
        what = f"{row.what}\n  {row.note}" if row.note else row.what
        table.add_row(what, f"{number(row.value)} {row.unit}", others, share, aim, style=colour)
    return table


def environment() -> dict[str, str]:
    """What the figures depend on, besides the code."""
    models = [line.split(":", 1)[1].strip() for line in _cpu_lines() if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": str(os.cpu_count()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def keep(rows: list[tuple[Measured, float | None]], store: str) -> str:
    """Logs the figures as a run of the experiment `benchmarks`; returns how to look at them."""
    tracking = Tracking.open(None, Store(store), "benchmarks")
    with tracking.experiment_run("benchmarks", environment(), kind="benchmark") as kept:
        kept.metrics({_metric(row.what): row.value for row, _ in rows})
        kept.table("benchmarks", [{**asdict(row), "least": least} for row, least in rows])
        kept.metrics({"load_before": os.getloadavg()[0]})
    return tracking.command


def _metric(what: str) -> str:
    return "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in what)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help="names of programs, such as sampling; all by default")
    parser.add_argument("--small", action="store_true", help="see that everything runs; the figures say nothing")
    parser.add_argument("--store", default=".gmem", help="whose MLflow database keeps the figures")
    parser.add_argument("--json", action="store_true", help="JSON on standard output in place of the table")
    asked = parser.parse_args()
    errors = Console(stderr=True)
    rows: list[tuple[Measured, float | None]] = []
    for entry in entries(asked.only):
        errors.print(f"{entry.program} {entry.small if asked.small else entry.arguments}", style="dim")
        measured = run(entry, asked.small)
        if missing := entry.least.keys() - {row.what for row in measured} and not asked.small:
            raise SystemExit(f"{entry.program} does not measure {missing}, for which entries.yaml has a least value")
        rows += [(row, None if asked.small else entry.least.get(row.what)) for row in measured]
    if asked.json:
        print(json.dumps([{**asdict(row), "least": least} for row, least in rows]))
    else:
        Console().print(shown(rows))
    if not asked.small:
        errors.print(f"kept in MLflow: {keep(rows, asked.store)}", style="dim", soft_wrap=True)
    return int(any(least is not None and row.value < least for row, least in rows))


if __name__ == "__main__":
    sys.exit(main())
