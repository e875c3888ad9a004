"""How cost grows with the number of rows: indices and tables written, checked, opened, read and searched at several sizes.

Seconds of this process' own, as the machine may be busy with others', are fitted by a power of the number of rows. What is
told is one over it: 1 is linear growth, less is worse, and 0.95 is a power of 1.05.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import lance
import numpy as np
import psutil
from measured import Measured

from storage.files import open_files
from storage.images.index import number_parts, read_index, shard_name, write_part
from storage.tables import latents
from storage.tables.bank import Bank
from storage.tables.bank_rows import make_rows
from storage.tables.bank_rows import write_fragments as write_bank
from storage.tables.bank_writer import BankWriter
from storage.tables.latents import LatentsWriter
from storage.tables.order import BatchOrder
from storage.tables.training_data import StepReader, TrainingTable

SHAPE, DIM, SHARD, GROUP, BATCH = (12, 8, 8), 192, 1024, 8, 256
"""As in the demo; a commit takes eight shards."""
READ, SEARCHED = 64, 20
"""Batches and searches timed."""
READING, SEARCHING = f"read {READ * BATCH:,} samples for training", f"{SEARCHED} searches of every row"


class Costs:
    """Seconds of each kind of work, and what is left behind, at one size."""

    def __init__(self, rows: int, folder: Path) -> None:
        self.rows, self.folder = rows, folder
        self.seconds: dict[str, float] = {}
        self.counts: dict[str, float] = {}

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        begun = time.process_time()
        yield
        self.seconds[what] = self.seconds.get(what, 0.0) + time.process_time() - begun

    def measure(self) -> None:
        self._index()
        self._write()
        self._train()
        self._search()
        self.counts["MB resident"] = psutil.Process().memory_info().rss / 1e6

    def _index(self) -> None:
        root, shards = str(self.folder / "images"), -(-self.rows // SHARD)
        for shard in range(shards):
            about = {"source": "pictures", "label_name": "label", "split": "train", "shard": shard_name(shard)}
            places = range(shard * SHARD, min((shard + 1) * SHARD, self.rows))
            rows = [{"path": f"{place:09d}.jpg", "key": f"{place:09d}", "kept": True, **about} for place in places]
            with self.timed("leave the parts of the index"):
                write_part(root, shard, rows)
        with self.timed("number the pictures"):
            number_parts(root, shards, {})
        with self.timed("read the index for encoding"):
            read_index(root, columns=["sample", "shard"])
        with self.timed("read the index shard by shard"):
            for shard in range(shards):
                read_index(root, shard_name(shard))
        self.counts["bytes a row of the index"] = open_files(root).size(f"{root}/index.parquet") / self.rows

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
            dataset = lance.dataset(str(self.folder / name / f"{name}.lance"))
            self.counts[f"fragments of {name}"] = len(dataset.get_fragments())
            self.counts[f"versions of {name}"] = len(dataset.versions())

    @staticmethod
    def _bank_rows(ids: np.ndarray, snippets: np.ndarray, shard: str) -> object:
        count = len(ids)
        keys = [f"picture-{number:09d}" for number in ids]
        return make_rows(ids, snippets, "dataset", keys=keys, labels=[0] * count, splits=["train"] * count, shard=shard)

    def _train(self) -> None:
        with self.timed("open the training data"):
            data = TrainingTable(str(self.folder / "latents"), str(self.folder / "bank"), memory_limit=0)
        reader = StepReader(data, BatchOrder(0, data.pictures, BATCH), slice(None))
        with self.timed(READING):
            for step in range(READ):
                reader.batch(step)

    def _search(self) -> None:
        with self.timed("open the bank and count it"):
            bank = Bank(str(self.folder / "bank"))
            bank.info()
        vector = np.random.default_rng(1).standard_normal(DIM).astype(np.float32)
        bank.search(vector, 10)
        with self.timed(SEARCHING):
            for _ in range(SEARCHED):
                bank.search(vector, 10)


def power(measured: list[Costs], what: str) -> float:
    """Of the number of rows by which the seconds of a kind of work grow. The same number of samples is read at every size:
    for that, of the seconds that as many samples as there are rows would take."""
    rows = np.log([costs.rows for costs in measured])
    seconds = np.log([costs.seconds[what] for costs in measured])
    return float(np.polyfit(rows, seconds, 1)[0]) + (what == READING)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[2_000, 20_000, 200_000])
    asked = parser.parse_args()
    measured: list[Costs] = []
    for rows in sorted(asked.rows):
        with tempfile.TemporaryDirectory(prefix="gmem-bench-") as name:
            measured.append(Costs(rows, Path(name)))
            measured[-1].measure()
    last = measured[-1]
    for what in last.seconds:
        told = ", ".join(f"{costs.rows:,} rows: {costs.seconds[what]:.3g} s" for costs in measured)
        growth = power(measured, what)
        Measured(f"growth: {what}", 1 / max(growth, 0.1), "", note=f"power {growth:.2f}; {told}").tell()
    for what in last.counts:
        told = ", ".join(f"{costs.rows:,} rows: {costs.counts[what]:,.0f}" for costs in measured)
        Measured(f"at {last.rows:,} rows: {what}", last.counts[what], "", note=told).tell()


if __name__ == "__main__":
    main()
