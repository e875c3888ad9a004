"""What the processes of a node hold in memory together: real processes, and their memory as the kernel counts it."""

from __future__ import annotations

import platform
import sys
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE, Popen, check_output

import pytest
import torch
from torch import Tensor

from storage.tables import cache, held
from storage.tables.held import SHARED_FROM

ROWS, WIDTH = 65_536, 768
BYTES = 2 * ROWS * WIDTH
SHAPES = {"snippet": (ROWS, WIDTH)}


HOLD = f"""
import re, sys
from pathlib import Path
import torch
from storage.tables.held import held

def proportional():
    return int(re.search(r"^Pss: +(\\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.M)[1]) << 10

def numbers(rows):
    rows["snippet"].copy_(torch.arange({ROWS})[:, None] % 1000)

before = proportional()
rows = held({SHAPES}, numbers, "bank", sys.argv[1])["snippet"]
print(int(rows[:, 5].sum(dtype=torch.int64)), flush=True)
input()
print(proportional() - before, flush=True)
input()
"""
"""Holds, and says what that takes when it is told that another holds as well."""


def growth(folder: str) -> tuple[list[int], int]:
    """Sums of a column as each of two processes sees it, and bytes that they take together."""
    command = [sys.executable, "-c", HOLD, folder]
    with ExitStack() as stack:
        both = [stack.enter_context(Popen(command, stdin=PIPE, stdout=PIPE, text=True)) for _ in range(2)]
        sums = [_answer(process) for process in both]
        for process in both:
            _go_on(process)
        grown = [_answer(process) for process in both]
        for process in both:
            _go_on(process)
    return sums, sum(grown)


def _answer(process: Popen[str]) -> int:
    assert process.stdout
    return int(process.stdout.readline())


def _go_on(process: Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def test_two_processes_hold_one_bank_between_them(tmp_path: Path) -> None:
    assert BYTES > SHARED_FROM
    expected = [sum(row % 1000 for row in range(ROWS))] * 2
    sums, together = growth(str(tmp_path))
    assert sums == expected and together < 1.1 * BYTES


def numbers(rows: dict[str, Tensor]) -> None:
    for name, values in rows.items():
        values.copy_(torch.arange(values.numel()).reshape(values.shape) + len(name))


def test_it_is_written_once_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "SHARED_FROM", 0)
    small = {"snippet": (5, 3), "tokens": (5, 2, 2)}
    first = held.held(small, numbers, "a", str(tmp_path))
    again = held.held(small, lambda rows: pytest.fail("it is there"), "a", str(tmp_path))
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in small)
    again["snippet"][:] = 0
    assert first["snippet"].any(), "what one process does to it is no other's"
    other = held.held(small, lambda rows: [values.zero_() for values in rows.values()], "b", str(tmp_path))
    assert not other["tokens"].any() and len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2


@pytest.mark.parametrize("spoilt", ["a file", "no room"])
def test_where_it_cannot_be_written_each_holds_its_own(
    spoilt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(held, "SHARED_FROM", 0)
    folder, said = tmp_path / "cache", "cannot be written"
    if spoilt == "a file":
        folder.write_text("in the way")
    else:
        monkeypatch.setattr(cache, "KEPT_FREE", 1.0)
        said = "has no room"
    rows = held.held({"snippet": (5, 3)}, numbers, "a", str(folder))
    assert rows["snippet"][4].tolist() == [19.0, 20.0, 21.0]
    assert len(caplog.messages) == 1 and said in caplog.text and "each process holds for itself" in caplog.text


KEEP = """
import re
from pathlib import Path
import numpy as np
from storage.tables.held import give_back

def proportional():
    return int(re.search(r"^Pss: +(\\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.M)[1]) << 10

many = [np.ones(100_000, np.uint8) for _ in range(1000)]
del many[:-1]
kept = proportional()
give_back()
print(kept - proportional())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="gives back by itself, or not at all")
def test_what_was_only_needed_to_read_goes_back() -> None:
    given = int(check_output([sys.executable, "-c", KEEP], text=True))
    assert given > 80_000_000
