"""Folder trees: what neighbours say, what tools leave, what would hang a reader."""

from __future__ import annotations

import io
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from storage.errors import Refused, StoreUnreachable
from storage.images import formats
from storage.images.sources import list_source
from storage.images.sources.neighbours import from_side_file

Tree = Callable[..., Path]


def test_captions_of_img2dataset(tmp_path: Path, tree: Tree, seen: type) -> None:
    about = json.dumps({"caption": "of the json", "url": "http://example.org", "status": "success"})
    files = {f"00000/00000000{n}{end}": data for n in (0, 1) for end, data in ((".jpg", "x"), (".json", about))}
    tree(tmp_path, files | {"00000/000000000.txt": "a cat\n", "00000_stats.json": "{}"})
    found = seen(tmp_path)
    assert [entry.caption for entry in found.usable.values()] == ["a cat", "of the json"]
    assert found.reasons == {"00000_stats.json": "bookkeeping of img2dataset"}
    assert len(found.notes) == 1 and "data.label=parent" in found.notes[0], "00000 looks like a portion"


def test_labels_of_dataset_json(tmp_path: Path, tree: Tree, seen: type) -> None:
    labels = [["00000/a.png", 10], ["00000/b.png", 2.0], ["00000/c.png", -1], ["00000/gone.png", 1]]
    tree(tmp_path, {f"00000/{name}.png": "x" for name in "abcd"} | {"dataset.json": json.dumps({"labels": labels})})
    found = seen(tmp_path)
    assert list(found.labels.values()) == ["10", "2", None, None] and found.reasons == {}
    assert found.notes == (
        "1 pictures that dataset.json or metadata.csv or metadata.jsonl names are not there",
        "1 pictures are not named in the list of labels beside them: they have none of it",
    )
    tree(tmp_path, {"dataset.json": '{"labels": null}'})
    assert set(seen(tmp_path).labels.values()) == {None}, "the folders are portions all the same"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", "file_name,label,class,text\na.png,1,dog,a dog\nsub/b.png,0,cat,\n"),
        (
            "metadata.jsonl",
            """{"file_name": "a.png", "label": 1, "class": "dog", "caption": "a dog"}

            {"file_name": "sub/b.png", "label": 0, "class": "cat"}""",
        ),
    ],
)
def test_metadata_of_imagefolder(tmp_path: Path, tree: Tree, seen: type, name: str, text: str) -> None:
    tree(tmp_path / "in", {"train/a.png": "x", "train/sub/b.png": "x", f"train/{name}": text})
    found = seen(tmp_path / "in")
    told = [(entry.label, entry.class_name, entry.caption) for entry in found.usable.values()]
    assert told == [("1", "dog", "a dog"), ("0", "cat", None)] and found.reasons == {}


def test_class_and_caption_reach_the_index(tmp_path: Path, tree: Tree, seen: type, picture: Callable) -> None:
    text = "file_name,label,class,text\na.png,1,dog,a dog\n"
    tree(tmp_path / "in", {"a.png": picture(), "metadata.csv": text, "plain/b.png": picture()})
    first, second = seen(tmp_path / "in").rows(tmp_path / "out")
    assert (first["label"], first["label_name"], first["class"], first["caption"]) == (1, "1", "dog", "a dog")
    assert (second["label"], second["class"], second["caption"]) == (None, None, None)


def test_neighbours_that_say_nothing_are_listed(tmp_path: Path, tree: Tree, seen: type, picture: Callable) -> None:
    deep = "[" * 10_000 + "]" * 10_000
    tree(
        tmp_path / "in",
        {f"x/{name}.png": picture() for name in "abcd"}
        | {"x/a.json": deep, "x/b.json": '{"label": "\\ud800", "caption": "\\udfff half"}', "x/c.json": "[1]"}
        | {"x/d.json": " " * (2 << 20), "dataset.json": "{"},
    )
    found = seen(tmp_path / "in")
    assert list(found.labels.values()) == ["x", "\\ud800", "x", "x"]
    assert found.reasons == {
        "dataset.json": "nothing is learnt from it: not JSON",
        "x/a.json": "nothing is learnt from it: JSON that is nested too deeply",
        "x/c.json": "nothing is learnt from it: JSON, but no object",
        "x/d.json": "nothing is learnt from it: larger than 1 MiB",
    }
    kept = [row["caption"] for row in found.rows(tmp_path / "out") if row["kept"]]
    assert kept == [None, "\\udfff half", None, None]


def test_classes_do_not_depend_on_what_is_refused(tmp_path: Path, tree: Tree, seen: type) -> None:
    tree(tmp_path, {"a/1.png": "x", "c/1.png": "x", "b/notes.txt": "x", "d/.hidden.png": "x", "e/Thumbs.db": "x"})
    (tmp_path / "b2").mkdir()
    (tmp_path / "b2" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert seen(tmp_path).classes == ["a", "b2", "c"], "b2's picture may be there tomorrow, and no number moves"


def test_what_tools_leave_is_listed_once_and_changes_no_fingerprint(tmp_path: Path, tree: Tree, seen: type) -> None:
    from storage.images.sources import list_source

    tree(
        tmp_path, {"a/1.png": "x", ".git/objects/1.png": "x", ".git/2.png": "x", "a/._1.png": "x", "@eaDir/1.png": "x"}
    )
    assert seen(tmp_path).reasons == {".git": "hidden", "@eaDir": "left behind by a tool", "a/._1.png": "hidden"}
    before = list_source(str(tmp_path)).fingerprint
    tree(tmp_path, {".git/objects/2.png": "x", "a/._1.png": "longer"})
    assert list_source(str(tmp_path)).fingerprint == before


def test_litter_in_a_bucket(seen: type) -> None:
    import fsspec

    fsspec.filesystem("memory").pipe(
        {f"/litter/{name}": b"x" for name in ("a/1.png", "__MACOSX/a/1.png", ".x/b/1.png")}
    )
    found = seen("memory://litter")
    assert list(found.labels.values()) == ["a"]
    assert found.reasons == {".x": "hidden", "__MACOSX": "left behind by a tool"}


def test_neighbours_in_a_bucket(seen: type) -> None:
    import fsspec

    files = {"a/1.png": b"x", "a/2.png": b"x", "a/1.txt": b"one", "a/2.txt": b"two"}
    fsspec.filesystem("memory").pipe({f"/beside/{name}": data for name, data in files.items()})
    assert [entry.caption for entry in seen("memory://beside").usable.values()] == ["one", "two"]


@pytest.mark.parametrize(
    ("rule", "labels"),
    [
        (None, ["train", "val"]),
        ("folder", ["train", "val"]),
        ("parent", ["n01", "n02"]),
        ("none", [None, None]),
    ],
)
def test_splits_that_look_like_classes(tmp_path: Path, tree: Tree, seen: type, rule: str, labels: list[str]) -> None:
    tree(tmp_path, {"train/n01/1.png": "x", "val/n02/1.png": "x"})
    found = seen(tmp_path, rule=rule)
    assert list(found.labels.values()) == labels
    assert bool(found.notes) == (rule is None)


def test_images_and_annotations_look_like_parts(tmp_path: Path, tree: Tree, seen: type) -> None:
    tree(tmp_path, {"images/1.png": "x", "annotations/trimaps/1.png": "x", "annotations/list.txt": "x"})
    [note] = seen(tmp_path).notes
    assert "annotations, images" in note and "data.label=none" in note and "data.source" in note
    tree(tmp_path, {"cats/1.png": "x"})
    assert seen(tmp_path).notes == ()


def test_special_files_are_not_opened(tmp_path: Path, tree: Tree, seen: type) -> None:
    tree(tmp_path, {"a.png": "x"})
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "a.txt")
    (tmp_path / "null.png").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as listening:
        before = os.getcwd()
        os.chdir(tmp_path)  # an address of a socket has no room for a long path
        listening.bind("socket.png")
        os.chdir(before)
    found = seen(tmp_path)
    assert list(found.usable) == ["a.png"]
    assert found.reasons == {
        "a.txt": "not a file but a named pipe",
        "null.png": "not a file but a device",
        "pipe.png": "not a file but a named pipe",
        "socket.png": "not a file but a socket",
    }
    assert seen(tmp_path / "pipe.png").reasons == {"pipe.png": "not a file but a named pipe"}


def test_folders_that_link_to_each_other_end(tmp_path: Path, tree: Tree, seen: type) -> None:
    names = [f"f{number}" for number in range(8)]
    tree(tmp_path, {f"{name}/1.png": "x" for name in names})
    for one in names:
        for other in names:
            if one != other:
                (tmp_path / one / other).symlink_to(tmp_path / other)
    found = seen(tmp_path)
    assert len(found.usable) <= 16 * len(names)
    assert "a link to a folder that is listed many times already" in found.reasons.values()


# --- which layout ----------------------------------------------------------------------------------------------------


def test_where_two_layouts_are_plausible_a_person_says(tmp_path: Path, tree: Tree, tar: Callable, seen: type) -> None:
    tree(tmp_path, {"cats/1.png": "x"})
    tar(tmp_path / "more.tar", {"2.jpg": b"x"})
    with pytest.raises(Refused, match=r"as folder, tars: say data\.layout=folder or data\.layout=tars"):
        seen(tmp_path)
    assert list(seen(tmp_path, layout="folder").usable) == ["cats/1.png"]
    assert list(seen(tmp_path, layout="tars").usable) == ["more.tar/2.jpg"]


def test_a_picture_or_a_pattern_of_them(tmp_path: Path, tree: Tree, seen: type) -> None:
    tree(tmp_path, {"a.png": "x", "b.png": "x", "odd[1]{x}::.png": "x", "c.txt": "x"})
    assert list(seen(f"{tmp_path}/?.png").usable) == ["a.png", "b.png"]
    assert list(seen(tmp_path / "odd[1]{x}::.png").usable) == ["odd[1]{x}::.png"]


@pytest.mark.parametrize("source", ["http://example.org/a.tar", "https://example.org", "pipe:cat a.tar", "no://where"])
def test_sources_that_cannot_be_read_at_random(seen: type, source: str) -> None:
    with pytest.raises(Refused, match=r"data\.source"):
        seen(source)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("$PICTURES/x", "the name of a variable"),
        ("s3://${BUCKET}/x", "the name of a variable"),
        ("gs://bucket/x", "install gcsfs.*: install that here and on every node"),
        ("az://container/x", "Install adlfs.*: install that here and on every node"),
        ("s3://not a bucket/x", "Invalid bucket name"),
        ("nowhere://x", "Protocol not known: nowhere"),
        ("reference://x", "another address that fsspec knows"),
        ("zip://x::/none.zip", "another address that fsspec knows"),
        ("x" * 10_000, "no address that can exist"),
        ("a\0b", "no address that can exist"),
        ("{1..100000000}.tar", "more than 250,000 files"),
        ("{1..99999}{1..99999}.tar", "more than 250,000 files"),
        ("{0,1}" * 40, "more than 250,000 files"),
        ("{0,1{2,3}}" * 40, "more than 250,000 files"),
    ],
    ids=lambda text: text[:20].replace("\0", "0"),
)
def test_addresses_that_lead_nowhere(seen: type, source: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason) as refusal:
        seen(source)
    assert len(str(refusal.value)) < 450 and "\n" not in str(refusal.value)


def test_a_server_that_is_away_may_come_back(seen: type) -> None:
    with pytest.raises(StoreUnreachable, match=r"data\.source 'ftp://127\.0\.0\.1:9/x' cannot be reached"):
        seen("ftp://me:secret@127.0.0.1:9/x")


def test_signs_of_a_shell_in_a_name_that_is_there(tmp_path: Path, tree: Tree, seen: type) -> None:
    assert list(seen(tree(tmp_path / "$HOME {a,b}", {"x.png": "x"})).usable) == ["x.png"]


def test_archives_are_listed_with_the_remedy(tmp_path: Path, tree: Tree, seen: type) -> None:
    tree(tmp_path, {"a.png": "x", "more.zip": "x", "b.psd": "x", "c.tar.gz": "x"})
    assert seen(tmp_path).reasons == {
        "b.psd": "a picture in a format that is not read: .psd",
        "c.tar.gz": "an archive: unpack it to use what is in it",
        "more.zip": "an archive: unpack it to use what is in it",
    }


@pytest.mark.parametrize("plugin", formats.PLUGINS, ids=lambda plugin: plugin.name)
def test_pictures_that_a_plug_in_reads_are_taken_or_told_with_the_package(
    plugin: formats.Plugin, tree: Callable[..., Path], seen: type, tmp_path: Path
) -> None:
    name = f"cats/a.{plugin.suffixes[0]}"
    data = picture_of(plugin) if plugin.installed else b"\xff\x0a"
    found = seen(tree(tmp_path / "in", {name: data}))
    if plugin.installed:
        assert found.labels == {name: "cats"} and all(row["kept"] for row in found.rows(tmp_path / "out"))
    else:
        assert plugin.package in found.reasons[name]


def picture_of(plugin: formats.Plugin) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, formats.enable(plugin))
    return buffer.getvalue()


def test_a_name_is_a_caption_where_json_has_no_other() -> None:
    assert from_side_file("json", b'{"label": "flags", "name": "flag-bd"}').caption == "flag-bd"
    assert from_side_file("json", b'{"caption": "a flag", "name": "flag-bd"}').caption == "a flag"
    emoji = list_source(str(Path(__file__).parents[4] / "flows" / "assets" / "emoji.tar"))
    assert emoji.slice(0, 1)[0].caption == "hash" and not emoji.table["caption"].null_count
