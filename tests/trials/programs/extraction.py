"""A small extraction as a process of its own: `extraction.py ROOT [STOP [SKEW]]`.

Ten shards of 20 latents, each committed by itself, under the artifact's lease. Tells each shard it has written; before
it commits the one numbered STOP it waits for a line. SKEW seconds are what this machine's clock is off by. Ends with
code 2 and one sentence where it cannot go on.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from storage.store import Store, StoreError
from storage.tables.latents import LatentsWriter, write_fragments

SHARDS, ROWS, SHAPE = 10, 20, (4, 8, 8)


def run(root: str, stop: int) -> None:
    artifact = Store(root).artifact("latents", "trial", "0" * 12)
    with artifact.lease("an extraction", wait=60, ttl=2.0) as lease:
        if artifact.complete:
            return
        writer = LatentsWriter(artifact.uri, SHAPE, {"name": "none"}, lease.number)
        for number in range(SHARDS):
            shard, ids = f"shard-{number:03d}", np.arange(number * ROWS, (number + 1) * ROWS)
            if shard in writer.done:
                continue
            values = np.random.default_rng(number).normal(size=(ROWS, *SHAPE))
            described = write_fragments(artifact.uri, shard, ids, [None] * ROWS, values)
            print("written", number, flush=True)
            if number == stop:
                sys.stdin.readline()
            writer.commit([described])
        version = writer.finish_latents(np.arange(SHARDS * ROWS)).version
        artifact.commit(artifact.describe(lease, counts={"rows": SHARDS * ROWS}, details={"version": version}))


if __name__ == "__main__":
    root, stop, skew = [*sys.argv[1:], "-1", "0"][:3] if len(sys.argv) < 4 else sys.argv[1:4]
    true_time = time.time
    time.time = lambda: true_time() + float(skew)
    try:
        run(root, int(stop))
    except StoreError as problem:
        print("refused:", problem, flush=True)
        sys.exit(2)
    print("finished", flush=True)
