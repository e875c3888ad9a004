"""Rows of the bank: their columns, how they are made, and whether they are sound."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from lance.dataset import LanceDataset
from numpy.typing import NDArray

from storage.errors import Refused
from storage.tables import fragments
from storage.tables.bank_basis import BASIS, Basis
from storage.tables.fragments import fixed_size, to_float16, to_matrix

TABLE = "bank"
FORMAT_VERSION = "1"
REDUCED_VERSION = "2"
"""Of a rank-reduced bank, which release 0.1 would misread."""
ORIGINS = ("dataset", "external", "mixed", "imported")
ENCODER = "encoder"
LATER_COLUMNS = (pa.field("class", pa.string()), pa.field("caption", pa.string()))
"""Not in banks of release 0.1, where they are read as null."""


def table_uri(artifact: str) -> str:
    return f"{artifact.rstrip('/')}/{TABLE}.lance"


def canonical(encoder: dict[str, Any]) -> str:
    """An encoder's identity as text: equal text, equal encoder."""
    return json.dumps(encoder, sort_keys=True)


def schema(dim: int, encoder: dict[str, Any], basis: Basis | None = None) -> pa.Schema:
    """The bank's columns for snippets of `dim` numbers by the encoder of this identity; with a basis, rank-reduced."""
    about = {"format_version": FORMAT_VERSION, ENCODER: canonical(encoder)}
    if basis:
        about |= {"format_version": REDUCED_VERSION, BASIS: basis.packed()}
        dim = basis.rank + 1
    return pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("key", pa.string()),
            pa.field("flipped", pa.bool_()),
            pa.field("label", pa.int32()),
            pa.field("split", pa.string()),
            pa.field("shard", pa.string()),
            pa.field("origin", pa.string(), nullable=False),
            pa.field("parents", pa.list_(pa.int64())),
            pa.field("snippet", pa.list_(pa.float16(), dim), nullable=False),
            pa.field("thumbnail", pa.binary()),
            *LATER_COLUMNS,
        ],
        about,
    )


def make_rows(
    ids: NDArray[np.int64],
    snippets: NDArray[np.floating],
    origin: str,
    *,
    keys: Sequence[str | None] | None = None,
    flipped: Sequence[bool | None] | None = None,
    labels: Sequence[int | None] | None = None,
    classes: Sequence[str | None] | None = None,
    captions: Sequence[str | None] | None = None,
    splits: Sequence[str | None] | None = None,
    shard: str | None = None,
    parents: Sequence[Sequence[int] | None] | None = None,
    thumbnails: Sequence[bytes | None] | None = None,
) -> pa.Table:
    """Rows of the bank from snippets [N,D] as the encoder gives them.

    Whatever is not told is null; only that a row is no mirror image is said where nothing else is.

    Raises:
        Refused: a snippet is zero, not finite or beyond float16, or the origin is unknown.
    """
    stored = to_float16(snippets, "snippets")
    if origin not in ORIGINS:
        raise Refused(f"origin {origin!r} is unknown; use one of {', '.join(ORIGINS)}")
    if not stored.any(axis=1).all():
        raise Refused("snippets must not be zero, which has no direction; check the encoder")
    nothing = [None] * len(stored)
    return pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "key": keys or nothing,
            "flipped": flipped or [False] * len(stored),
            "label": labels or nothing,
            "split": splits or nothing,
            "shard": [shard] * len(stored),
            "origin": [origin] * len(stored),
            "parents": parents or nothing,
            "snippet": fixed_size(stored),
            "thumbnail": thumbnails or nothing,
            "class": classes or nothing,
            "caption": captions or nothing,
        },
        schema=schema(stored.shape[1], {}).remove_metadata(),
    )


def write_fragments(artifact: str, shard: str, rows: pa.Table) -> dict[str, Any]:
    """In a worker: writes one shard's rows; returns the JSON description for `BankWriter.commit`."""
    return fragments.write_fragments(table_uri(artifact), shard, rows)


def with_later_columns(rows: pa.Table, names: Sequence[str]) -> pa.Table:
    """`rows` with those of the `names` that an earlier release did not write, as nulls, in the order of `names`."""
    for field in LATER_COLUMNS:
        if field.name in names and field.name not in rows.column_names:
            rows = rows.append_column(field, pa.nulls(len(rows), field.type))
    return rows.select([*names, *(name for name in rows.column_names if name not in names)])


def require_sound(dataset: LanceDataset, advice: str) -> None:
    """Reads the whole table. Refused when a row is one that we would not have written: an id that comes twice, a snippet
    that is zero or not finite, an origin nobody knows. `advice` ends the sentence."""
    problem = _double_ids(dataset) or _unknown_origins(dataset) or _unusable_snippets(dataset)
    if problem:
        raise Refused(f"{dataset.uri} was changed by another client and {problem}; {advice}")


def _double_ids(dataset: LanceDataset) -> str | None:
    ids = np.sort(dataset.to_table(columns=["id"])["id"].to_numpy())
    doubled = ids[1:][ids[1:] == ids[:-1]]
    return f"has {len(doubled)} rows of an id that is there already (first {doubled[0]})" if len(doubled) else None


def _unknown_origins(dataset: LanceDataset) -> str | None:
    known = ", ".join(f"'{origin}'" for origin in ORIGINS)
    rows = dataset.to_table(columns=["id", "origin"], filter=f"origin NOT IN ({known})").to_pylist()
    if not rows:
        return None
    return f"has {len(rows)} rows of an unknown origin (first {rows[0]['origin'][:80]!r}, id {rows[0]['id']})"


def _unusable_snippets(dataset: LanceDataset) -> str | None:
    for batch in dataset.to_batches(columns=["id", "snippet"]):
        snippets = to_matrix(batch["snippet"])
        usable = np.isfinite(snippets).all(axis=1) & snippets.any(axis=1)
        if not usable.all():
            return f"has snippets that are zero or not finite (first id {batch['id'][int(np.argmin(usable))]})"
    return None
