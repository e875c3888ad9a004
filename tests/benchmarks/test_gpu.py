"""The benchmark for GPUs runs through wherever torch does; its figures are for a GPU alone."""

from __future__ import annotations

import torch

from tests.benchmarks.gpu import SMALL, Bench


def test_every_measurement_runs_in_tiny_sizes() -> None:
    bench = Bench(SMALL, torch.device("cpu"))
    bench.run()
    failed = {row.what: row.note for row in bench.rows if row.value is None}
    assert failed.keys() <= {"matrix product, float8"}, failed  # not every processor has it
    measured = {row.what: row.value for row in bench.rows}
    assert measured["T/1: largest difference after a resume"] == 0
    assert len(measured) >= 15


def test_a_failure_is_a_row_with_its_reason() -> None:
    bench = Bench(SMALL, torch.device("cpu"))

    def broken() -> None:
        raise RuntimeError("out of memory\nand more")

    bench.attempt("a step", broken)
    assert (bench.rows[0].value, bench.rows[0].note) == (None, "RuntimeError: out of memory")
