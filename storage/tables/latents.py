"""The latents table: for every kept picture, and its mirror image where wanted, what the tokenizer made of it.

`<artifact>/latents.lance` with columns `id` (2·sample + flipped), `label`, `shard`, `latent` (float16, C·H·W). Its
metadata tells the shape, the tokenizer's identity and, when finished, the mean and standard deviation of each channel
over all rows, merged from the float64 sums that came with each shard's commit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from lance.dataset import LanceDataset
from numpy.typing import NDArray

from storage.errors import Refused
from storage.tables import fragments
from storage.tables.fragments import FragmentWriter, fixed_size, open_table, require_format, to_float16
from storage.tables.metadata import schema_entry

TABLE = "latents.lance"
FORMAT_VERSION = "1"


def table_uri(artifact: str) -> str:
    return f"{artifact.rstrip('/')}/{TABLE}"


def schema(shape: tuple[int, int, int], tokenizer: dict[str, Any]) -> pa.Schema:
    """Columns and metadata for latents of `shape` (C, H, W) by the tokenizer of this identity."""
    metadata = {
        "format_version": FORMAT_VERSION,
        "shape": json.dumps(list(shape)),
        "tokenizer": json.dumps(tokenizer, sort_keys=True),
    }
    return pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("label", pa.int32()),
            pa.field("shard", pa.string(), nullable=False),
            pa.field("latent", pa.list_(pa.float16(), int(np.prod(shape))), nullable=False),
        ],
        metadata,
    )


def write_fragments(
    artifact: str,
    shard: str,
    ids: NDArray[np.int64],
    labels: list[int | None],
    latents: NDArray[np.floating],
) -> dict[str, Any]:
    """In a worker: writes one shard's latents [N,C,H,W]; returns the JSON description for `LatentsWriter.commit`.

    Refused when a latent is not finite as float16.
    """
    stored = to_float16(latents, f"latents of {shard}")
    rows = pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "label": pa.array(labels, pa.int32()),
            "shard": pa.array([shard] * len(stored), pa.string()),
            "latent": fixed_size(stored),
        },
        schema=schema(stored.shape[1:], {}),
    )
    return fragments.write_fragments(table_uri(artifact), shard, rows, channel_sums(stored))


def channel_sums(latents: NDArray[np.float16]) -> dict[str, Any]:
    """Count of values a channel, sum and sum of squares of each channel of [N,C,H,W], in float64."""
    values = latents.astype(np.float64)
    return {
        "count": values.size // values.shape[1],
        "sum": values.sum(axis=(0, 2, 3)).tolist(),
        "square": np.square(values).sum(axis=(0, 2, 3)).tolist(),
    }


def moments(sums: list[dict[str, Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean [C] and standard deviation [C] of all values behind the sums."""
    count = sum(part["count"] for part in sums)
    mean = np.sum([part["sum"] for part in sums], axis=0) / count
    variance = np.sum([part["square"] for part in sums], axis=0) / count - mean**2
    return mean, np.sqrt(np.maximum(variance, 0.0))


class LatentsWriter(FragmentWriter):
    """The committer of a latents table: `commit` groups of described shards, then `finish_latents`."""

    def __init__(
        self,
        artifact: str,
        shape: tuple[int, int, int],
        tokenizer: dict[str, Any],
        lease: int = 0,
    ) -> None:
        super().__init__(table_uri(artifact), schema(shape, tokenizer), lease)

    def finish_latents(self, expected: NDArray[np.int64]) -> LanceDataset:
        """Checks that each expected id is there once, and writes mean and deviation into the metadata."""
        self.verify(expected)
        mean, std = moments([self.done[shard]["memory"] for shard in sorted(self.done)])
        if not (std > 0).all():
            raise Refused(f"{self.uri}: channels {np.flatnonzero(std == 0).tolist()} are constant; check the tokenizer")
        return self.finish({"mean": json.dumps(mean.tolist()), "std": json.dumps(std.tolist())})


@dataclass(frozen=True)
class Latents:
    """A finished latents table at one version."""

    dataset: LanceDataset
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tokenizer: dict[str, Any]

    @classmethod
    def open(cls, artifact: str, version: int | None = None) -> Latents:
        """Refused when there is no finished latents table."""
        try:
            dataset = open_table(table_uri(artifact), version)
        except FileNotFoundError as error:
            raise Refused(f"{artifact} holds no latents table; run the latents stage first") from error
        require_format(dataset.schema, FORMAT_VERSION, dataset.uri)
        if b"mean" not in dataset.schema.metadata:
            raise Refused(f"the latents table in {artifact} is unfinished; run the latents stage again")
        return cls(
            dataset,
            shape=schema_entry(dataset.schema, "shape", tuple[int, int, int], dataset.uri),
            mean=schema_entry(dataset.schema, "mean", tuple[float, ...], dataset.uri),
            std=schema_entry(dataset.schema, "std", tuple[float, ...], dataset.uri),
            tokenizer=schema_entry(dataset.schema, "tokenizer", dict[str, Any], dataset.uri),
        )

    @property
    def version(self) -> int:
        return self.dataset.version

    def __len__(self) -> int:
        return self.dataset.count_rows()
