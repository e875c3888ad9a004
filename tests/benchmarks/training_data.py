"""Batches of latents, snippets and labels in random order: ours, and what others would read them by, on the same rows."""

from __future__ import annotations

import argparse
import io
import os
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import lancedb
import numpy as np
import psutil
import pyarrow as pa
import torch
import webdataset
from lancedb.permutation import Permutation
from measured import Measured, alternating
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from storage.tables import latents
from storage.tables.bank_rows import make_rows
from storage.tables.bank_rows import write_fragments as write_bank
from storage.tables.bank_writer import BankWriter
from storage.tables.latents import LatentsWriter
from storage.tables.order import BatchOrder
from storage.tables.training_data import StepReader, TrainingTable

SHAPE, DIM, BATCH, SHARD = (32, 16, 16), 768, 256, 4096
BATCHES = 32
"""Of ours a round; slower ways read fewer."""


def shards(rows: int) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float32]]]:
    """Number of the first row, latents and snippets of each shard."""
    random = np.random.default_rng(0)
    for start in range(0, rows, SHARD):
        count = min(SHARD, rows - start)
        yield (
            start,
            random.standard_normal((count, *SHAPE), dtype=np.float32),
            random.standard_normal((count, DIM), dtype=np.float32),
        )


def write(rows: int, folder: Path) -> None:
    """The same rows as our tables, as safetensors shards and as webdataset tars."""
    table = LatentsWriter(str(folder / "latents"), SHAPE, {"name": "random"})
    bank = BankWriter(str(folder / "bank"), DIM, {"name": "random", "sha256": "00"})
    for start, latent, snippet in shards(rows):
        name, ids, count = f"shard-{start:09d}", 2 * np.arange(start, start + len(latent)), len(latent)
        table.commit([latents.write_fragments(str(folder / "latents"), name, ids, [0] * count, latent)])
        new = make_rows(ids, snippet, "dataset", labels=[0] * count, splits=["train"] * count, shard=name)
        bank.commit([write_bank(str(folder / "bank"), name, new)])
        halves = {"latent": torch.from_numpy(latent).half(), "snippet": torch.from_numpy(snippet).half()}
        save_file(halves | {"label": torch.zeros(count, dtype=torch.int64)}, folder / f"{name}.safetensors")
        _write_tar(folder / f"{name}.tar", {name: value.numpy() for name, value in halves.items()})
    table.finish_latents(2 * np.arange(rows))
    bank.finish_bank(2 * np.arange(rows))


def _write_tar(path: Path, columns: dict[str, NDArray[np.float16]]) -> None:
    with tarfile.open(path, "w") as tar:
        for row in range(len(columns["latent"])):
            for name, values in columns.items():
                file = io.BytesIO()
                np.save(file, values[row])
                member = tarfile.TarInfo(f"{row:06d}.{name}.npy")
                member.size = file.tell()
                file.seek(0)
                tar.addfile(member, file)


def ours(folder: Path, memory: int) -> Callable[[], float]:
    data = TrainingTable(str(folder / "latents"), str(folder / "bank"), memory_limit=memory)
    reader = StepReader(data, BatchOrder(0, data.pictures, BATCH), slice(None))
    steps = iter(range(10**9))

    def read() -> float:
        for step in islice(steps, BATCHES):
            reader.batch(step)
        return BATCH * BATCHES

    return read


def file_for_each_sample(folder: Path, rows: int) -> Callable[[], float]:
    """A dataset that opens the shard of every sample, as the published loader does."""
    random = np.random.default_rng(1)

    def read() -> float:
        samples = []
        for row in random.integers(rows, size=BATCH):
            start = row // SHARD * SHARD
            with safe_open(folder / f"shard-{start:09d}.safetensors", "pt") as file:
                samples.append([file.get_slice(name)[row - start] for name in ("latent", "snippet")])
        for column in zip(*samples, strict=True):
            torch.stack(column)
        return BATCH

    return read


def permutation(folder: Path) -> Callable[[], float]:
    """LanceDB's own view for training, over the latents alone: it joins no tables."""
    table = lancedb.connect(folder / "latents").open_table("latents")
    rows = table.to_lance().to_table(columns=[], with_row_id=True)["_rowid"].to_numpy()
    order = {
        "row_id": np.random.default_rng(0).permutation(rows),
        "split_id": np.zeros(len(rows), np.uint64),
    }  # as its own builder would make it, which ends by a panic here (lancedb 0.40)
    shuffled = lancedb.connect("memory://").create_table("order", pa.table(order))
    view = Permutation.from_tables(table, shuffled, 0).select_columns(["latent", "label"]).with_format("arrow")

    def batches() -> Iterator[object]:
        while True:
            yield from view.iter(BATCH, skip_last_batch=True)

    return reading(batches())


def reading(stream: Iterator[object]) -> Callable[[], float]:
    """Takes four batches of an endless stream, and gives how many samples these are."""

    def read() -> float:
        for _ in islice(stream, 4):
            pass
        return 4 * BATCH

    return read


def tars(folder: Path) -> Callable[[], float]:
    """webdataset, in the usual order: shards shuffled, a buffer of 1,000 samples."""
    names = sorted(str(path) for path in folder.glob("*.tar"))
    pipeline = webdataset.WebDataset(names, shardshuffle=len(names), seed=0, empty_check=False).shuffle(1000)
    return reading(iter(pipeline.repeat().decode().to_tuple("latent.npy", "snippet.npy").batched(BATCH)))


def chunks(folder: Path) -> Callable[[], float]:
    """LitData, shuffled as it does it: its chunks, and the rows within each."""
    os.environ["LITDATA_DISABLE_VERSION_CHECK"] = "1"
    import litdata

    shards = sorted(map(str, folder.glob("*.safetensors")))
    with redirect_stdout(sys.stderr):  # it tells how far it is
        litdata.optimize(_rows, shards, str(folder / "chunks"), chunk_bytes="64MB", num_workers=1)
    dataset = litdata.StreamingDataset(str(folder / "chunks"), shuffle=True, drop_last=True)
    loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0)

    def batches() -> Iterator[object]:
        while True:
            yield from loader

    return reading(batches())


def _rows(shard: str) -> Iterator[dict[str, torch.Tensor]]:
    columns = load_file(shard)
    for row in range(len(columns["label"])):
        yield {name: columns[name][row].clone() for name in ("latent", "snippet")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="gmem-bench-") as name:
        folder = Path(name)
        write(asked.rows, folder)
        before = psutil.Process().memory_info().rss
        bank_bytes = 2 * DIM * asked.rows
        from_disk = ours(folder, memory=bank_bytes + 8 * asked.rows)
        from_disk()
        beside = (psutil.Process().memory_info().rss - before - bank_bytes) / 1e6
        rates = alternating(
            asked.rounds,
            ours=from_disk,
            held=ours(folder, memory=1 << 40),
            safetensors=file_for_each_sample(folder, asked.rows),
            permutation=permutation(folder),
            webdataset=tars(folder),
            **({"litdata": chunks(folder)} if find_spec("litdata") else {}),
        )
    mine, held = rates.pop("ours"), rates.pop("held")
    note = f"one process and thread; {beside:.0f} MB beside the bank, which is held"
    Measured("training data, latents on disk", mine, "samples/s", rates, note=note).tell()
    note = "as it is up to train.memory_gib"
    Measured("training data, all held in memory", held, "samples/s", rates, note=note).tell()
    Measured("training data, times a file opened for each sample", held / rates["safetensors"], "times").tell()


if __name__ == "__main__":
    main()
