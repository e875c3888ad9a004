"""The benchmark for GPUs runs through wherever torch does; its figures are for a GPU alone."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """In tiny sizes, on the CPU."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    gpu = import_module("gpu")
    return gpu.Bench(gpu.SMALL, torch.device("cpu"))


def test_every_measurement_runs_in_tiny_sizes(bench: Any) -> None:
    bench.run()
    failed = {row.what: row.note for row in bench.rows if row.value is None}
    # Not every processor has float8.
    assert failed.keys() <= {"matrix product, float8", "T/1 step, float8", "CUDA graphs"}, failed
    assert failed["CUDA graphs"] == "RuntimeError: CUDA graphs are a GPU's"
    measured = {row.what: row.value for row in bench.rows}
    assert measured["T/1: largest difference after a resume"] == 0
    assert len(measured) >= 15


def test_a_failure_is_a_row_with_its_reason(bench: Any) -> None:
    def broken() -> None:
        raise RuntimeError("out of memory\nand more")

    bench.attempt("a step", broken)
    assert (bench.rows[0].value, bench.rows[0].note) == (None, "RuntimeError: out of memory")
