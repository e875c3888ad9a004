"""How cost grows with the number of rows: tables written, checked, opened, read and searched at several sizes.

What is told is the rate at the largest size over that at the one before it: 1 is linear growth, less is worse. A power of
1.05 would be 0.89 over ten times the rows.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
from measured import Measured

from storage.files import open_files
from storage.tables import latents
from storage.tables.bank import Bank
from storage.tables.bank_rows import make_rows
from storage.tables.bank_rows import write_fragments as write_bank
from storage.tables.bank_writer import BankWriter
from storage.tables.latents import LatentsWriter
from storage.tables.training_data import BatchOrder, StepReader, TrainingTable

SHAPE, DIM, SHARD, GROUP, BATCH = (12, 8, 8), 192, 1024, 8, 256
"""As in the demo; a commit takes eight shards."""
READ, SEARCHED = 64, 20
"""Batches and searches timed."""


class Costs:
    """Seconds of each kind of work, and what is left behind, at one size."""

    def __init__(self, rows: int, folder: Path) -> None:
        self.rows, self.folder = rows, folder
        self.seconds: dict[str, float] = {}
        self.counts: dict[str, float] = {}

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - begun

    def measure(self) -> None:
        self._write()
        self._train()
        self._search()
        self.counts["MB resident"] = psutil.Process().memory_info().rss / 1e6

    def _write(self) -> None:
        random, ids = np.random.default_rng(0), 2 * np.arange(self.rows)
        table = LatentsWriter(str(self.folder / "latents"), SHAPE, {"name": "random"})
        bank = BankWriter(str(self.folder / "bank"), DIM, {"name": "random", "sha256": "00"})
        shards = (ids[start : start + SHARD] for start in range(0, self.rows, SHARD))
        while group := list(islice(shards, GROUP)):
            names = [f"shard-{part[0] // 2 // SHARD:06d}" for part in group]
            drawn = [random.standard_normal((len(part), *SHAPE), dtype=np.float32) for part in group]
            with self.timed("write latents"):
                described = [
                    latents.write_fragments(str(self.folder / "latents"), name, part, [0] * len(part), values)
                    for name, part, values in zip(names, group, drawn, strict=True)
                ]
                table.commit(described)
            snippets = [random.standard_normal((len(part), DIM), dtype=np.float32) for part in group]
            with self.timed("write the bank"):
                described = [
                    write_bank(str(self.folder / "bank"), name, self._bank_rows(part, values, name))
                    for name, part, values in zip(names, group, snippets, strict=True)
                ]
                bank.commit(described)
        with self.timed("check and finish both"):
            table.finish_latents(ids)
            bank.finish_bank(ids)
        for name in ("latents", "bank"):
            files = open_files(str(self.folder)).walk(str(self.folder / name))
            self.counts[f"files of {name}"] = len(files)
            self.counts[f"bytes a row of {name}"] = sum(files.values()) / self.rows

    @staticmethod
    def _bank_rows(ids: np.ndarray, snippets: np.ndarray, shard: str) -> object:
        count = len(ids)
        keys = [f"picture-{number:09d}" for number in ids]
        return make_rows(ids, snippets, "dataset", keys=keys, labels=[0] * count, splits=["train"] * count, shard=shard)

    def _train(self) -> None:
        with self.timed("open the training data"):
            data = TrainingTable(str(self.folder / "latents"), str(self.folder / "bank"), memory_limit=0)
        reader = StepReader(data, BatchOrder(0, data.pictures, BATCH), slice(None))
        begun = time.perf_counter()
        for step in range(READ):
            reader.batch(step)
        self.counts["samples/s read from disk"] = READ * BATCH / (time.perf_counter() - begun)

    def _search(self) -> None:
        with self.timed("open the bank and count it"):
            bank = Bank(str(self.folder / "bank"))
            bank.info()
        vector = np.random.default_rng(1).standard_normal(DIM).astype(np.float32)
        bank.search(vector, 10)
        with self.timed("search, every row"):
            for _ in range(SEARCHED):
                bank.search(vector, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[2_000, 20_000, 200_000])
    asked = parser.parse_args()
    measured: list[Costs] = []
    for rows in sorted(asked.rows):
        with tempfile.TemporaryDirectory(prefix="gmem-bench-") as name:
            measured.append(Costs(rows, Path(name)))
            measured[-1].measure()
    *_, before, last = measured
    for what, seconds in last.seconds.items():
        rates = {f"{costs.rows:,} rows": costs.rows / costs.seconds[what] for costs in measured}
        told = ", ".join(f"{rows}: {rate:,.0f}/s" for rows, rate in rates.items())
        growth = (last.rows / seconds) / (before.rows / before.seconds[what])
        Measured(f"growth: {what}", growth, "", note=told).tell()
    for what in last.counts:
        told = ", ".join(f"{costs.rows:,} rows: {costs.counts[what]:,.0f}" for costs in measured)
        Measured(f"at {last.rows:,} rows: {what}", last.counts[what], "", note=told).tell()


if __name__ == "__main__":
    main()
