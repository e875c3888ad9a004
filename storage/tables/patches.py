"""Patch tokens for the alignment loss, projected on their leading principal components.

`<artifact>/tokens.lance` with columns `id` and `tokens` (float16, T·K: T tokens of K coefficients each, row by row).
The components and the mean that bring them back to full width lie in the table's metadata as safetensors, so that a
version of the table can never meet another basis.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from lance.dataset import LanceDataset
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from storage.errors import Damaged, Refused
from storage.tables import fragments
from storage.tables.fragments import FragmentWriter, fixed_size, open_table, require_format, to_float16
from storage.tables.metadata import REMEDY, schema_entry

TABLE = "tokens.lance"
FORMAT_VERSION = "1"


def table_uri(artifact: str) -> str:
    return f"{artifact.rstrip('/')}/{TABLE}"


def columns(tokens: int, components: int) -> pa.Schema:
    width = tokens * components
    return pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("tokens", pa.list_(pa.float16(), width), nullable=False),
        ]
    )


def write_fragments(artifact: str, shard: str, ids: NDArray[np.int64], tokens: NDArray[np.floating]) -> dict[str, Any]:
    """In a worker: writes one shard's projected tokens [N,T,K]; returns the JSON description for the committer."""
    stored = to_float16(tokens, f"patch tokens of {shard}")
    rows = pa.table({"id": pa.array(ids, pa.int64()), "tokens": fixed_size(stored)}, schema=columns(*stored.shape[1:]))
    return fragments.write_fragments(table_uri(artifact), shard, rows)


class PatchesWriter(FragmentWriter):
    """The committer of a token table, begun with the basis: `components` [K,D] and `mean` [D]."""

    def __init__(
        self,
        artifact: str,
        tokens: int,
        components: Tensor,
        mean: Tensor,
        encoder: dict[str, Any],
        lease: int = 0,
    ) -> None:
        basis = {"components": components.float().cpu().contiguous(), "mean": mean.float().cpu().contiguous()}
        metadata = {
            "format_version": FORMAT_VERSION,
            "tokens": str(tokens),
            "encoder": json.dumps(encoder, sort_keys=True),
            "basis": base64.b64encode(save(basis)).decode(),
        }
        schema = columns(tokens, len(components)).with_metadata(metadata)
        super().__init__(table_uri(artifact), schema, lease)


def stored_basis(artifact: str) -> tuple[Tensor, Tensor] | None:
    """Components [K,D] and mean [D] of a table that was begun, finished or not; None where there is none.

    A resumed extraction goes on with the basis it began with.
    """
    try:
        dataset = open_table(table_uri(artifact))
    except FileNotFoundError:
        return None
    return _basis(dataset)


def _basis(dataset: LanceDataset) -> tuple[Tensor, Tensor]:
    try:
        tensors = load(base64.b64decode(dataset.schema.metadata[b"basis"]))
        return tensors["components"], tensors["mean"]
    except (ValueError, KeyError, SafetensorError) as problem:
        raise Damaged(f"basis of {dataset.uri} is damaged (not two tensors): {REMEDY}") from problem


@dataclass(frozen=True)
class Patches:
    """A token table at one version. Full tokens are `projected @ components + mean`."""

    dataset: LanceDataset
    tokens: int
    components: Tensor
    mean: Tensor
    encoder: dict[str, Any]

    @classmethod
    def open(cls, artifact: str, version: int | None = None) -> Patches:
        """Refused when there is no token table."""
        try:
            dataset = open_table(table_uri(artifact), version)
        except FileNotFoundError as error:
            raise Refused(f"{artifact} holds no patch tokens; run the bank stage with alignment on") from error
        require_format(dataset.schema, FORMAT_VERSION, dataset.uri)
        tokens = schema_entry(dataset.schema, "tokens", int, dataset.uri)
        encoder = schema_entry(dataset.schema, "encoder", dict[str, Any], dataset.uri)
        return cls(dataset, tokens, *_basis(dataset), encoder)

    @property
    def shape(self) -> tuple[int, int]:
        """(T, K)."""
        return self.tokens, len(self.components)

    @property
    def version(self) -> int:
        return self.dataset.version
