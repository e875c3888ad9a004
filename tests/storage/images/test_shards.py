from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from PIL import Image

from storage.images.index import done_shards, index_shards, read_index
from storage.images.shards import ShardPlan, read_shard, split_of, write_index, write_shard
from storage.images.sources import list_source

SIZE = 16


def save(path: Path, width: int, height: int, seed: int, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).save(path, **options)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Seven pictures of two classes, four things that are none; sorted so that they mix."""
    root = tmp_path / "pictures"
    save(root / "cats" / "a.png", SIZE, SIZE, 0)
    save(root / "cats" / "b.jpg", 40, 30, 1)
    save(root / "cats" / "c.webp", 5, 9, 2, lossless=True)
    save(root / "dogs" / "d.png", 33, 70, 3)
    save(root / "dogs" / "e.jpg", SIZE, SIZE, 4)
    save(root / "dogs" / "f.gif.png", 20, 20, 5)
    save(root / "z.png", 64, 64, 6)
    (root / "cats" / "broken.png").write_bytes((root / "dogs" / "d.png").read_bytes()[:200])
    (root / "cats" / "empty.jpg").touch()
    (root / "notes.txt").write_text("not a picture")
    (root / "dogs" / "text.png").write_text("not a picture either")
    return root


def ingest(source: Path, root: Path, shard_size: int = 4, held_out: float = 0.3) -> ShardPlan:
    listing = list_source(str(source))
    plan = ShardPlan(str(source), SIZE, held_out, tuple(listing.classes()))
    count = -(-len(listing) // shard_size)
    for number in range(count):
        write_shard(str(root), number, listing.slice(number * shard_size, (number + 1) * shard_size), plan)
    write_index(str(root), count, plan)
    return plan


def test_every_input_is_accounted_for(source: Path, tmp_path: Path) -> None:
    ingest(source, tmp_path / "images")
    index = read_index(str(tmp_path / "images"))
    rows = {row["path"]: row for row in index.to_pylist()}
    assert len(rows) == 11 and sorted(rows) == list(rows)
    assert {path for path, row in rows.items() if not row["kept"]} == {
        "cats/broken.png", "cats/empty.jpg", "dogs/text.png", "notes.txt",
    }  # fmt: skip
    assert rows["cats/empty.jpg"]["reason"] == "empty file"
    assert rows["cats/empty.jpg"]["sample"] is None and rows["cats/empty.jpg"]["split"] is None
    kept = [row for row in rows.values() if row["kept"]]
    assert [row["sample"] for row in kept] == list(range(7))
    assert all(row["reason"] is None for row in kept)
    assert (rows["cats/b.jpg"]["width"], rows["cats/b.jpg"]["height"]) == (40, 30)
    assert [(row["label"], row["label_name"]) for row in kept] == [*[(0, "cats")] * 3, *[(1, "dogs")] * 3, (None, None)]
    assert json.loads(index.schema.metadata[b"classes"]) == ["cats", "dogs"]


def test_pictures_come_back_as_they_were_stored(source: Path, tmp_path: Path) -> None:
    root = str(tmp_path / "images")
    ingest(source, tmp_path / "images")
    shards = index_shards(read_index(root))
    pictures = [picture for shard in shards for picture in read_shard(root, shard)]
    assert [picture.sample for picture in pictures] == list(range(7))
    assert [picture.key for picture in pictures] == [
        "cats/a",
        "cats/b",
        "cats/c",
        "dogs/d",
        "dogs/e",
        "dogs/f_gif",
        "z",
    ]
    assert all(picture.image.shape == (SIZE, SIZE, 3) and picture.image.dtype == np.uint8 for picture in pictures)
    assert [picture.label for picture in pictures] == [0, 0, 0, 1, 1, 1, None]
    assert [picture.split for picture in pictures] == [split_of(picture.key, 0.3) for picture in pictures]
    with Image.open(source / "cats" / "a.png") as original:
        assert np.array_equal(pictures[0].image, np.asarray(original))


def test_a_picture_that_fits_keeps_its_bytes(source: Path, tmp_path: Path) -> None:
    ingest(source, tmp_path / "images")
    members = {}
    for path in sorted((tmp_path / "images").glob("*.tar")):
        with tarfile.open(path) as tar:
            members |= {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
    assert members["cats/a.png"] == (source / "cats" / "a.png").read_bytes()
    assert members["dogs/e.jpg"] == (source / "dogs" / "e.jpg").read_bytes()
    assert "cats/b.webp" in members and "cats/b.jpg" not in members
    assert json.loads(members["cats/b.json"]) == {
        "label": 0, "label_name": "cats", "source": "cats/b.jpg", "width": 40, "height": 30, "group": "cats/b",
    }  # fmt: skip


def test_the_shards_are_ordinary_webdatasets(source: Path, tmp_path: Path) -> None:
    ingest(source, tmp_path / "images")
    urls = sorted(map(str, (tmp_path / "images").glob("*.tar")))
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples][:2] == ["cats/a", "cats/b"]
    assert samples[1]["json"]["label"] == 0 and samples[1]["webp"].shape == (SIZE, SIZE, 3)


def test_equal_inputs_give_equal_bytes(source: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        ingest(source, tmp_path / name)
    digests = [
        {
            str(path.relative_to(tmp_path / name)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in ("one", "two")
    ]
    assert digests[0] == digests[1] and len(digests[0]) == 3 + 3 + 3


def test_a_killed_ingest_goes_on_where_it_was(source: Path, tmp_path: Path) -> None:
    listing, root = list_source(str(source)), str(tmp_path / "images")
    plan = ShardPlan(str(source), SIZE, 0.3, tuple(listing.classes()))
    write_shard(root, 0, listing.slice(0, 4), plan)
    (tmp_path / "images" / "shard-000001.tar").write_bytes(b"killed after the tar, before its part of the index")
    assert done_shards(root) == {0}
    with pytest.raises(ValueError, match="not written yet"):
        write_index(root, 3, plan)
    for number in {0, 1, 2} - done_shards(root):
        write_shard(root, number, listing.slice(4 * number, 4 * number + 4), plan)
    write_index(root, 3, plan)
    assert sum(1 for shard in index_shards(read_index(root)) for _ in read_shard(root, shard)) == 7


def test_nothing_readable_left_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "pictures" / name).write_text("no")
    with pytest.raises(ValueError, match=r"no picture of .* can be used \(2 inputs, mostly: not a JPEG"):
        ingest(tmp_path / "pictures", tmp_path / "images")
    assert not list((tmp_path / "images").glob("*.tar"))


def test_a_group_never_straddles_the_split(tmp_path: Path) -> None:
    path = tmp_path / "grouped.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(60):
            buffer = io.BytesIO()
            Image.new("RGB", (SIZE, SIZE), (number, 0, 0)).save(buffer, "PNG")
            about = json.dumps({"group": f"g{number % 12}", "label": "red"}).encode()
            for name, data in ((f"{number:03d}.png", buffer.getvalue()), (f"{number:03d}.json", about)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    ingest(path, tmp_path / "images", held_out=0.4)
    splits: dict[str, set[str]] = {}
    for row in read_index(str(tmp_path / "images")).to_pylist():
        splits.setdefault(row["group"], set()).add(row["split"])
    assert len(splits) == 12 and all(len(found) == 1 for found in splits.values())
    assert {split for found in splits.values() for split in found} == {"train", "held_out"}


def test_the_split_holds_out_the_share_asked_for() -> None:
    held_out = [split_of(f"picture-{n}", 0.05) == "held_out" for n in range(20_000)]
    assert abs(np.mean(held_out) - 0.05) < 0.005
    assert all(split_of(f"picture-{n}", 0.15) == "held_out" for n, held in enumerate(held_out[:1000]) if held)


def test_the_shipped_emoji_are_whole() -> None:
    listing = list_source(str(Path(__file__).parents[3] / "flows" / "assets" / "emoji.tar"))
    assert len(listing) == 1911 and not any(entry.reason for entry in listing.slice(0, 1911))
    assert len(listing.classes()) == 10


def as_release_01_wrote_it(root: Path, rows_a_group: int = 4) -> None:
    """The index in one file, without the columns that came later."""
    new, index = ["class", "caption"], read_index(str(root)).drop_columns(["class", "caption"])
    shutil.rmtree(root / "index.parquet")
    pq.write_table(index, root / "index.parquet", row_group_size=rows_a_group)
    for path in (root / "parts").iterdir():
        pq.write_table(pq.read_table(path).drop_columns(new), path)


def test_an_earlier_index_names_classes_by_their_labels_and_has_no_captions(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "images"
    ingest(source, root)
    assert read_index(str(root))["class"].to_pylist().count("cats") == 3
    as_release_01_wrote_it(root)
    index = read_index(str(root))
    assert index["class"].to_pylist() == index["label_name"].to_pylist()
    assert index["caption"].null_count == len(index)
    shard = index_shards(index)[0]
    named = dict(zip(index["sample"].to_pylist(), index["label_name"].to_pylist(), strict=True))
    assert all(picture.class_name == named[picture.sample] for picture in read_shard(str(root), shard))
    ingest_parts = len(list((root / "parts").iterdir()))
    write_index(str(root), ingest_parts, ShardPlan(str(source), SIZE, 0.3, ("cats", "dogs")))
    assert read_index(str(root)).equals(index)


def test_an_index_of_one_file_is_read_as_one_of_parts_is(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "images"
    ingest(source, root)
    whole, shards = read_index(str(root)), index_shards(read_index(str(root)))
    parts = [read_index(str(root), shard) for shard in shards]
    few = read_index(str(root), columns=["sample", "shard"])
    shutil.rmtree(root / "index.parquet")
    pq.write_table(whole, root / "index.parquet", row_group_size=4)
    assert read_index(str(root)).equals(whole) and read_index(str(root), columns=["sample", "shard"]).equals(few)
    assert [read_index(str(root), shard).equals(part) for shard, part in zip(shards, parts, strict=True)] == [True] * 3
    assert json.loads(read_index(str(root)).schema.metadata[b"classes"]) == ["cats", "dogs"]
