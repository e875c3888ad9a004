"""What a Lance table says of itself in JSON: entries of its schema's metadata, and of its commits."""

from __future__ import annotations

import pyarrow as pa
from lance.dataset import Transaction

from storage.documents import Shape, read_json
from storage.errors import Damaged

REMEDY = "go back to an earlier version of the table, or remove its artifact and run again."


def schema_entry(schema: pa.Schema, name: str, shape: type[Shape], uri: str, default: Shape | None = None) -> Shape:
    """An entry of a table's metadata; Damaged where it is of another type, or absent without a default."""
    stored = (schema.metadata or {}).get(name.encode())
    return _entry(stored, name, shape, uri, default)


def commit_entry(about: Transaction, name: str, shape: type[Shape], uri: str, default: Shape | None = None) -> Shape:
    """As `schema_entry`, of what a commit says of itself."""
    return _entry(properties(about).get(name), name, shape, uri, default)


def properties(transaction: Transaction) -> dict[str, str]:
    return transaction.transaction_properties or {}


def _entry(stored: str | bytes | None, name: str, shape: type[Shape], uri: str, default: Shape | None) -> Shape:
    if stored is not None:
        return read_json(stored, f"{name} of {uri}", shape, REMEDY)
    if default is None:
        raise Damaged(f"{uri} is damaged (no {name} in its metadata): {REMEDY}")
    return default
