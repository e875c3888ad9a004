"""docs/bank.md as readers run it: LanceDB, Lance, Polars and DuckDB on the bank of a small run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DOCUMENT = Path(__file__).parents[2] / "docs" / "bank.md"
BLOCKS = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("code", BLOCKS, ids=["LanceDB", "Lance", "Polars", "DuckDB"])
def test_another_client_reads_the_bank(first: dict[str, dict[str, Any]], code: str) -> None:
    uri = first["bank"]["artifacts"]["bank"]
    told = f"uri = {uri!r}\n{code}\nprint('rows', len(near))"
    done = subprocess.run([sys.executable, "-c", told], check=False, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 0
