"""Lance tables of pictures, as LanceDB and Lance write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lance
import lancedb
import pyarrow as pa
import pytest

from storage.images.sources import read_entries

KINDS = {
    "bytes": pa.field("image", pa.binary()),
    "blobs": pa.field("image", pa.large_binary(), metadata={"lance-encoding:blob": "true"}),
    "hugging": pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
}


def write(path: Path, pictures: list[bytes | None], kind: str = "blobs") -> lance.LanceDataset:
    field = KINDS[kind]
    images = [data if kind != "hugging" or data is None else {"bytes": data, "path": "x"} for data in pictures]
    numbers = list(range(len(images)))
    columns = {
        "label": pa.array([number % 3 for number in numbers]),
        "class": [("cat", "dog", "hen")[number % 3] for number in numbers],
        "caption": [f"picture {number}" for number in numbers],
    }
    schema = pa.schema([field, *(pa.field(name, pa.array(each).type) for name, each in columns.items())])
    table = pa.table([pa.array(images, field.type), *columns.values()], schema=schema)
    return lance.write_dataset(table, str(path), max_rows_per_file=4)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_labels_names_and_captions(kind: str, tmp_path: Path, seen: type, picture: Callable) -> None:
    pictures = [picture(number) for number in range(10)]
    write(tmp_path / "pets.lance", pictures, kind)
    found = seen(tmp_path / "pets.lance")
    assert len(found.usable) == 10 and found.reasons == {} and found.classes == ["0", "1", "2"]
    for chosen in ([3], [0, 1, 5], [2, 3, 4, 9], list(range(10))):
        assert list(read_entries([found.entries[n] for n in chosen], found.source)) == [pictures[n] for n in chosen]
    rows = found.rows(tmp_path / "out")
    assert all(row["kept"] for row in rows) and rows[4]["path"] == "pets.lance/4"
    assert (rows[4]["label"], rows[4]["class"], rows[4]["caption"]) == (1, "dog", "picture 4")


def test_a_folder_of_tables_and_what_lies_beside_them(tmp_path: Path, seen: type, picture: Callable) -> None:
    database = lancedb.connect(str(tmp_path / "db"))
    for name in ("a", "b"):
        database.create_table(name, [{"image": picture(number), "label": number} for number in range(3)])
    database.create_table("words", [{"text": "no picture"}])
    (tmp_path / "db" / "notes.md").write_text("words")
    found = seen(tmp_path / "db")
    assert set(found.usable) == {f"{name}.lance/{row}" for name in "ab" for row in range(3)}
    assert found.reasons == {
        "notes.md": "not of a Lance table, and beside one",
        "words.lance": "a table without a column of pictures",
    }
    assert len({row["key"] for row in found.rows(tmp_path / "out") if row["kept"]}) == 6


def test_deleted_rows_are_gone_and_later_ones_are_another_source(tmp_path: Path, seen: type, picture: Callable) -> None:
    pictures = [picture(number) for number in range(8)]
    table = write(tmp_path / "pets.lance", pictures)
    table.delete("label = 1")
    found = seen(tmp_path / "pets.lance")
    kept = [data for number, data in enumerate(pictures) if number % 3 != 1]
    assert list(read_entries(found.entries, found.source)) == kept
    table.delete("label = 2")
    assert list(read_entries(found.entries, found.source)) == kept, "the version that was listed"
    assert len(seen(tmp_path / "pets.lance").usable) == 3


def test_rows_without_a_picture_and_damaged_tables(tmp_path: Path, seen: type, picture: Callable) -> None:
    for kind in ("bytes", "blobs"):
        write(tmp_path / kind / "x.lance", [picture(), None, picture()], kind)
        rows = seen(tmp_path / kind / "x.lance").rows(tmp_path / "out" / kind)
        assert [row["kept"] for row in rows] == [True, False, True]
        assert rows[1]["reason"] == "unreadable: the row holds no picture"
    found = seen(tmp_path / "blobs" / "x.lance")
    for file in (tmp_path / "blobs" / "x.lance" / "data").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert all(isinstance(data, OSError) for data in read_entries(found.entries, found.source))
    assert seen(tmp_path / "blobs").reasons["x.lance"].startswith("unreadable: damaged table")
    for manifest in (tmp_path / "blobs" / "x.lance" / "_versions").glob("*.manifest"):
        manifest.write_bytes(b"\xff" * 64)
    assert seen(tmp_path / "blobs").reasons["x.lance"].startswith("unreadable: damaged table")
