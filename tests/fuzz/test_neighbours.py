"""What lies beside pictures, damaged: learnt from, or Unreadable."""

from __future__ import annotations

import io
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import Refused
from storage.images.sources import list_source, read_entries
from storage.images.sources.neighbours import Unreadable, from_list, from_side_file
from tests.fuzz.mutation import given_many, mutated, rewritten, within_memory

OBJECT = b'{"label": 3, "class": "cat", "caption": ["a cat", "b"], "group": null, "text": "\\ud83d", "n": 5}'
LISTS = {
    "dataset.json": b'{"labels": [["a/b.png", 3], ["c.png", -1]], "x": [1, 2.5, true]}',
    "metadata.csv": b'file_name,label,text\na.png,3,"one, two"\n"b.png",dog,\n',
    "metadata.jsonl": OBJECT + b'\n{"file_name": "a.png", "label": 1}\n',
}


def table() -> bytes:
    images = pa.array([{"bytes": b"one", "path": "a"}, {"bytes": None, "path": None}] * 4)
    buffer = io.BytesIO()
    columns = pa.table({"image": images, "label": list(range(8)), "text": ["words"] * 8})
    pq.write_table(columns.replace_schema_metadata({"huggingface": '{"info": {"features": {}}}'}), buffer)
    return buffer.getvalue()


@given_many(2.0)
@given(mutated([OBJECT, b"12", b"a caption"]) | rewritten([OBJECT]), st.sampled_from(("json", "cls", "txt")))
def test_damaged_side_files(data: bytes, suffix: str) -> None:
    with suppress(Unreadable):
        facts = from_side_file(suffix, data)
        "".join(each or "" for each in (facts.label, facts.class_name, facts.caption, facts.group)).encode()


@given_many(2.0)
@given(mutated(list(LISTS.values())) | rewritten([LISTS["dataset.json"], OBJECT]), st.sampled_from(sorted(LISTS)))
def test_damaged_lists(data: bytes, name: str) -> None:
    with suppress(Unreadable):
        for path, facts in from_list(f"folder/{name}", data):
            assert isinstance(path, str)
            (facts.label or "").encode()


@cache
def lance_table() -> dict[str, bytes]:
    """The files of a table, by their path in it."""
    images = pa.field("image", pa.large_binary(), metadata={"lance-encoding:blob": "true"})
    schema = pa.schema([images, pa.field("label", pa.int64()), pa.field("text", pa.string())])
    rows = pa.table([pa.array([b"one", b"two"] * 4, pa.large_binary()), range(8), ["words"] * 8], schema=schema)
    with tempfile.TemporaryDirectory() as folder:
        lance.write_dataset(rows, folder, mode="overwrite")
        files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@given_many(0.3)
@given(st.data())
def test_damaged_lance_tables(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder, within_memory(), suppress(Refused):
        root = Path(folder) / "x.lance"
        files = lance_table()
        damaged = data.draw(st.sampled_from([name for name in files if name.startswith(("_versions/1", "data/"))]))
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data.draw(mutated([content])) if name == damaged else content)
        listing = list_source(str(root))
        entries = [entry for entry in listing.slice(0, len(listing)) if entry.reason is None]
        assert all(isinstance(each, bytes | OSError) for each in read_entries(entries, str(root)))


@given_many()
@given(mutated([table()]))
def test_damaged_tables(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, within_memory(), suppress(Refused):
        path = Path(folder) / "x.parquet"
        path.write_bytes(data)
        listing = list_source(str(path))
        entries = [entry for entry in listing.slice(0, len(listing)) if entry.reason is None]
        assert all(isinstance(each, bytes | OSError) for each in read_entries(entries, str(path)))
