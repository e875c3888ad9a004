"""The bank at several sizes beside faiss on the same vectors: appending, indexing, searching, gathering, factorising.

faiss is no dependency: `make bench-bank` installs it beside the others, and without it its figures are left out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from clustered import DIM, blocks
from measured import Measured
from numpy.typing import NDArray

from storage.store import Store
from storage.tables.bank import Bank
from storage.tables.bank_index import search_of
from storage.tables.bank_nearest import Nearest, true_nearest
from storage.tables.bank_rows import make_rows, table_uri, write_fragments
from storage.tables.bank_writer import BankWriter
from storage.tables.fragments import open_table

NEAREST, GATHERED, ROUNDS, RANK = 10, 1_024, 20, 64
CONDITIONS = {
    "": None,
    ", of a split": "split = 'held_out'",
    ", of a class": "class = 'class-3'",
    ", of training pictures": "split = 'train'",
    ", of a tenth": "id / 2 % 10 = 3",
}
Queries = NDArray[np.float32]


class Trial:
    """One size: what is measured of it is told at once."""

    def __init__(self, rows: int, queries: int, folder: Path, last: bool) -> None:
        """The last size goes without its number, so that entries.yaml can name it."""
        self.rows, self.queries = rows, queries
        self.artifact = Store(str(folder)).artifact("bank", "clustered", "0" * 12)
        self.at = "bank: " if last else f"bank of {rows:,}: "

    def tell(self, what: str, value: float, unit: str, note: str = "", **others: float) -> None:
        Measured(self.at + what, value, unit, others, note=f"{self.rows:,} rows; {note}".rstrip("; ")).tell()

    def run(self) -> None:
        self._append()
        bank = Bank(self.artifact.uri)
        begun = time.perf_counter()
        kind = bank.build_index() or "no index"
        seconds = time.perf_counter() - begun
        self.tell(
            "rows indexed a second", self.rows / seconds, "rows/s", f"{kind}, {seconds:.1f} s, its trial included"
        )
        wanted = np.random.default_rng(1).integers(self.rows, size=self.queries) * 2
        asked = bank.matrix(wanted.tolist()).astype(np.float32)
        among = [None if where is None else bank.matching(where) for where in CONDITIONS.values()]
        truths = true_nearest(bank, asked, NEAREST, among)
        faiss_found = self._faiss(asked, truths[0])
        self._search(bank, asked, truths, faiss_found)
        self._gather(bank)
        self._load()
        self._factorise(bank)

    def _append(self) -> None:
        encoder = {"name": "random", "sha256": "00"}
        writer = BankWriter(self.artifact.uri, DIM, encoder)
        seconds = 0.0
        for first, classes, snippets in blocks(self.rows):
            numbers = np.arange(first, first + len(snippets))
            begun = time.perf_counter()
            rows = make_rows(
                2 * numbers,
                snippets,
                "dataset",
                keys=[f"picture-{number:09d}" for number in numbers],
                classes=[f"class-{number}" for number in classes],
                splits=np.where(numbers % 50, "train", "held_out").tolist(),
                shard=f"shard-{first}",
            )
            writer.commit([write_fragments(self.artifact.uri, f"shard-{first}", rows)])
            seconds += time.perf_counter() - begun
        writer.finish_bank(2 * np.arange(self.rows))
        with self.artifact.lease("bench") as lease:
            self.artifact.commit(self.artifact.describe(lease))
        self.tell("appended a second", self.rows / seconds, "rows/s")

    def _faiss(self, asked: Queries, true: Nearest) -> dict[str, float]:
        """Searches a second of faiss' inverted file of raw vectors, with as many partitions looked into as find 95 %."""
        try:
            import faiss
        except ImportError as error:
            print(f"without faiss: {error}", file=sys.stderr)
            return {}
        lists = int(np.sqrt(self.rows))
        index = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(DIM), DIM, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )
        seconds = 0.0
        for first, _, snippets in blocks(self.rows):
            units = snippets.astype(np.float32)
            begun = time.perf_counter()
            faiss.normalize_L2(units)
            if not first:
                index.train(units)
            index.add(units)
            seconds += time.perf_counter() - begun
        self.tell("rows indexed a second by faiss", self.rows / seconds, "rows/s", f"{seconds:.0f} s")
        queries = asked.copy()
        faiss.normalize_L2(queries)
        for probes in (1, 2, 4, 8, 16, 32, 64, 128):
            index.nprobe = probes
            took, share = _searches(lambda query: 2 * index.search(query[None], NEAREST)[1][0], queries, true)
            if share >= 0.95:
                break
        return {f"faiss IVF fp16, {probes} probes, recall {share:.3f}": 1 / float(np.median(took))}

    def _search(self, bank: Bank, asked: Queries, truths: list[Nearest], faiss_found: dict[str, float]) -> None:
        for (name, where), true in zip(CONDITIONS.items(), truths, strict=True):
            took, share = _searches(
                lambda query, where=where: bank.search(query, NEAREST, where)["id"].to_numpy(), asked, true
            )
            half, most = np.percentile(took, (50, 95))
            note = f"median {half * 1e3:.1f} ms, 95 % {most * 1e3:.1f} ms, recall at 10 {share:.3f}"
            others = {} if name else faiss_found
            self.tell(f"searches a second{name}", 1 / half, "/s", note, **others)
        known = search_of(bank)
        if known:
            self.tell(
                "recall of the index's trial", known.plain.recall, "", f"{known.plain}, {known.filtered}, {known.wide}"
            )

    def _gather(self, bank: Bank) -> None:
        draw = np.random.default_rng(2)
        some = [(2 * draw.integers(self.rows, size=GATHERED)).tolist() for _ in range(ROUNDS)]
        half = float(np.median([_seconds(lambda ids=ids: bank.matrix(ids)) for ids in some]))
        self.tell("gathers of 1,024 from the table", 1 / half, "/s", f"{half * 1e3:.1f} ms")

    def _load(self) -> None:
        """The bank as two workers of a node hold it, processes of their own so that their memory is told apart."""
        context = multiprocessing.get_context("spawn")
        cache = f"{self.artifact.store.root}/cache"
        pipes, processes = [context.Pipe() for _ in range(2)], []
        for _, ours in pipes:
            processes.append(context.Process(target=_loaded, args=(self.artifact.uri, self.rows, cache, ours)))
            processes[-1].start()
        halves = [theirs.recv() for theirs, _ in pipes]
        for theirs, _ in pipes:
            theirs.send("both hold it")
        held = sum(theirs.recv() for theirs, _ in pipes)
        for theirs, _ in pipes:
            theirs.send("both have told")
        for process in processes:
            process.join()
        self.tell("gathers of 1,024 from the loaded bank", 1 / max(halves), "/s", f"{max(halves) * 1e3:.2f} ms")
        share = held / (2 * DIM * self.rows)
        note = f"{share:.2f} times its bytes, {held / 1e6:,.0f} MB, of two workers together"
        self.tell("fp16 bytes over those of the loaded bank", 1 / share, "", note)

    def _factorise(self, bank: Bank) -> None:
        from flows.exchange.factorising import factorise

        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{self.artifact.store.root}/mlflow.db"
        with _peak() as peak:
            begun = time.perf_counter()
            made = factorise(self.artifact.store, bank, RANK, "reduced")
            seconds = time.perf_counter() - begun
        note = f"{seconds:.0f} s with its index, {peak[0] / 1e9:.1f} GB at most, {made.details['energy']:.1%} of the variance"
        self.tell(f"rows factorised to {RANK} a second", self.rows / seconds, "rows/s", note)


def _searches(search: Callable[[Queries], Any], asked: Queries, true: Nearest) -> tuple[list[float], float]:
    """Seconds of each of the second half of the searches, when all is warm, and the share of the true rows found in all."""
    took, found = [], 0
    for query, ids in zip(asked, true.ids, strict=True):
        begun = time.perf_counter()
        there = search(query)
        took.append(time.perf_counter() - begun)
        found += len(np.intersect1d(there, ids))
    return took[len(took) // 5 :], found / true.ids.size


def _loaded(artifact: str, rows: int, cache: str, other: Any) -> None:
    """Tells the seconds of a gather, and, when another process holds the bank as well, the bytes that it takes here."""
    import torch

    from storage.tables.training_data import _Source

    own = psutil.Process()
    before = own.memory_full_info().pss
    source = _Source(open_table(table_uri(artifact)), {"snippet": (DIM,)}, 2 * np.arange(rows))
    source.load(cache)
    torch.set_num_threads(1)
    assert source.memory is not None
    source.memory["snippet"][:, 0].sum()  # what is mapped counts from when it is read
    draw = np.random.default_rng(3)
    some = [draw.integers(rows, size=GATHERED) for _ in range(ROUNDS)]
    other.send(float(np.median([_seconds(lambda at=at: source.take(at)) for at in some])))
    other.recv()
    other.send(own.memory_full_info().pss - before)
    other.recv()


def _seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


@contextmanager
def _peak() -> Iterator[list[int]]:
    """The most memory that this process has meanwhile, as its pages are counted twenty times a second."""
    import threading

    most, ended, own = [0], threading.Event(), psutil.Process()

    def watch() -> None:
        while not ended.wait(0.05):
            most[0] = max(most[0], own.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    yield most
    ended.set()
    thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--queries", type=int, default=1_000)
    asked = parser.parse_args()
    for rows in asked.rows:
        with tempfile.TemporaryDirectory(prefix="gmem-bench-") as folder:
            Trial(rows, asked.queries, Path(folder), rows == asked.rows[-1]).run()


if __name__ == "__main__":
    main()
