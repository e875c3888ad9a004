"""Parquet as Hugging Face's datasets write it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

FEATURES = {
    "image": {"_type": "Image"},
    "label": {"_type": "ClassLabel", "names": ["cat", "dog", "hen"]},
    "text": {"dtype": "string", "_type": "Value"},
}
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path: Path, pictures: list[bytes | None], labels: list[int], group: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [None if data is None else {"bytes": data, "path": "x.png"} for data in pictures]
    texts = [f"picture {number}" for number in range(len(images))]
    columns = {"image": pa.array(images, IMAGE), "label": pa.array(labels, pa.int64()), "text": pa.array(texts)}
    about = json.dumps({"info": {"features": FEATURES}})
    pq.write_table(pa.table(columns).replace_schema_metadata({"huggingface": about}), path, row_group_size=group)
    return path


def test_pictures_labels_names_and_captions(tmp_path: Path, seen: type, picture: Callable) -> None:
    for split in ("train", "test"):
        write(tmp_path / "in" / f"{split}-00000-of-00001.parquet", [picture(n) for n in range(5)], [2, 0, 1, -1, 2])
    (tmp_path / "in" / "README.md").write_text("a data set")
    found = seen(tmp_path / "in")
    assert len(found.usable) == 10 and found.classes == ["0", "1", "2"]
    assert found.reasons == {"README.md": "not Parquet among Parquet files"}
    rows = [row for row in found.rows(tmp_path / "out") if row["kept"]]
    assert [row["label"] for row in rows[:5]] == [2, 0, 1, None, 2]
    assert [row["class"] for row in rows[:5]] == ["hen", "cat", "dog", None, "hen"]
    assert rows[4]["caption"] == "picture 4" and rows[4]["path"] == "test-00000-of-00001.parquet/4"
    assert len({row["key"] for row in rows}) == 10


def test_any_slice_is_read(tmp_path: Path, seen: type, picture: Callable) -> None:
    from storage.images.sources import read_entries

    pictures = [picture(number) for number in range(200)]
    found = seen(write(tmp_path / "a.parquet", pictures, [0] * 200, group=90))
    for chosen in ([0], [89, 90], [5, 100, 101, 199], list(range(200))):
        assert list(read_entries([found.entries[n] for n in chosen], found.source)) == [pictures[n] for n in chosen]


def test_rows_without_a_picture_and_damaged_tables(tmp_path: Path, seen: type, picture: Callable) -> None:
    good = write(tmp_path / "in" / "a.parquet", [picture(), None, picture()], [0, 1, 1])
    (tmp_path / "in" / "b.parquet").write_bytes(good.read_bytes()[:200])
    pq.write_table(pa.table({"url": ["http://example.org"]}), tmp_path / "in" / "c.parquet")
    found = seen(tmp_path / "in")
    assert found.reasons.keys() == {"b.parquet", "c.parquet"}
    assert found.reasons["c.parquet"] == "a table without a column of pictures"
    rows = found.rows(tmp_path / "out")
    assert [row["kept"] for row in rows] == [True, False, True, False, False]
    assert rows[1]["reason"] == "unreadable: the row holds no picture"


def test_pages_damaged_since_they_were_listed(tmp_path: Path, seen: type, picture: Callable) -> None:
    path = write(tmp_path / "a.parquet", [picture(n) for n in range(4)], [0] * 4)
    found = seen(path)
    data = bytearray(path.read_bytes())
    page = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    data[page : page + 40] = b"\xff" * 40
    path.write_bytes(data)
    reasons = [row["reason"] for row in found.rows(tmp_path / "out") if not row["kept"]]
    assert reasons and all(reason.startswith(("unreadable: damaged table", "broken", "not a")) for reason in reasons)


def test_a_column_whose_name_is_no_text(tmp_path: Path, seen: type, picture: Callable) -> None:
    """Found by damaging tables at random; in the file's own schema, beside which lies Arrow's, whose name is whole."""
    columns = pa.table({"image": [picture(0)], "labelled": [1]})
    pq.write_table(columns, tmp_path / "x.parquet")
    data = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(data.replace(b"labelled", b"\x80abelled"))
    (reason,) = seen(tmp_path / "x.parquet").reasons.values()
    assert reason.startswith("unreadable: damaged table")
