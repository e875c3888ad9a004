from __future__ import annotations

import errno
import json
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from storage.errors import StoreRefused, StoreUnreachable
from storage.files import faults, open_files
from storage.files.s3 import lance_options
from storage.store import Artifact, Manifest, Store, StoreError, fingerprint
from storage.tables import fragments
from storage.tables.fragments import open_table


def make(store: Store, kind: str = "latents", name: str = "emoji", **fields: object) -> Artifact:
    artifact = store.artifact(kind, name, fingerprint(kind, 1, {"name": name}, {}))
    with artifact.lease("test") as lease:
        artifact.commit(artifact.describe(lease, **fields))
    return artifact


def test_bytes_and_json_come_back(root: str) -> None:
    store = Store(root)
    store.write_bytes(f"{root}/a/b.bin", b"\x00\x01")
    store.write_bytes(f"{root}/a/b.bin", b"\x02")
    store.write_json(f"{root}/a/c.json", {"x": [1, 2.5]})
    assert store.read_bytes(f"{root}/a/b.bin") == b"\x02"
    assert store.read_json(f"{root}/a/c.json") == {"x": [1, 2.5]}
    assert store.files.names(f"{root}/a") == ["b.bin", "c.json"]
    assert store.files.names(f"{root}/nothing") == []
    assert store.files.size(f"{root}/a") == 1 + len(store.read_bytes(f"{root}/a/c.json"))
    with pytest.raises(FileNotFoundError):
        store.read_bytes(f"{root}/a/absent")


def test_only_one_creates(root: str) -> None:
    files = Store(root).files
    assert files.create(f"{root}/x", b"first")
    assert not files.create(f"{root}/x", b"second")
    assert files.read(f"{root}/x") == b"first"


def test_large_files_go_up_and_come_down(root: str, tmp_path: Path) -> None:
    files = Store(root).files
    local = tmp_path / "big"
    local.write_bytes(os.urandom(1 << 20))
    files.upload(local, f"{root}/x/big")
    with files.local_copy(f"{root}/x/big") as copy:
        assert copy.read_bytes() == local.read_bytes()
    files.remove(f"{root}/x")
    assert not files.exists(f"{root}/x/big")
    with pytest.raises(FileNotFoundError), files.local_copy(f"{root}/x/big"):
        pass


def test_an_artifact_is_complete_once_its_manifest_is_there(root: str) -> None:
    store = Store(root)
    artifact = store.artifact("latents", "emoji-64", "0123456789ab")
    assert artifact.uri == f"{root}/latents/emoji-64-0123456789ab"
    assert artifact.path("latents.lance", "x") == f"{artifact.uri}/latents.lance/x"
    assert not artifact.complete and artifact.manifest() is None
    assert artifact.summary()["state"] == "absent"
    with artifact.lease("a test") as lease:
        store.write_bytes(artifact.path("data"), b"12345")
        assert artifact.summary()["state"] == "building"
        assert "a test" in artifact.summary()["holder"]
        images = store.artifact("images", "emoji", "a" * 12)
        manifest = artifact.describe(lease, counts={"rows": 7}, inputs={"images": images.reference(3)})
        artifact.commit(manifest)
    found = artifact.manifest()
    assert found == manifest and found is not None
    assert found.inputs["images"].uri == "images/emoji-" + "a" * 12 and found.inputs["images"].version == 3
    assert store.at(found.inputs["images"].uri) == images
    summary = artifact.summary()
    assert summary["state"] == "complete" and summary["counts"] == {"rows": 7} and summary["holder"] is None
    assert summary["bytes"] > 5 and 0 <= summary["age_s"] < 60


def test_artifacts_are_listed_by_kind(root: str) -> None:
    store = Store(root)
    assert store.artifacts() == []
    a, b, c = make(store), make(store, "bank"), make(store, "latents", "with-dash.2")
    store.write_bytes(f"{root}/latents/stray.txt", b"")
    assert store.artifacts("latents") == [a, c]
    assert store.artifacts() == [a, c, b]
    a.remove()
    assert a.summary()["state"] == "absent" and c.complete


def test_a_manifest_cut_in_half_is_told(root: str) -> None:
    store = Store(root)
    artifact = make(store)
    path = artifact.path("manifest.json")
    data = store.read_bytes(path)
    store.write_bytes(path, data[: len(data) // 2])
    with pytest.raises(StoreError, match=r"manifest\.json is damaged .*: remove this file and run again"):
        artifact.manifest()
    assert artifact.summary()["state"] == "damaged"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, r"format version 2, and this version of the project reads up to 1: update it"),
        ({"format_version": 0}, r"format version 0, which is read no more \(now 1\): remove this file"),
        ({"format_version": None}, r"no known format version \(None\): remove this file"),
        ({"counts": "many"}, r"damaged \(counts: .*\): remove this file"),
        ({"surprise": 1}, r"damaged \(surprise: .*\): remove this file"),
    ],
)
def test_manifests_of_another_format_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    store = Store(str(tmp_path))
    artifact = make(store)
    content = store.read_json(artifact.path("manifest.json"))
    store.write_json(artifact.path("manifest.json"), content | change)
    with pytest.raises(StoreError, match=message):
        artifact.manifest()


def test_a_commit_needs_the_lease_in_force(root: str) -> None:
    artifact = Store(root).artifact("bank", "emoji", "0" * 12)
    with artifact.lease("first") as first:
        pass
    with artifact.lease("second") as second:
        assert second.number == first.number + 1
        with pytest.raises(StoreError, match="taken over by another run"):
            artifact.commit(artifact.describe(first))
        assert not artifact.complete
        artifact.commit(artifact.describe(second.number))
    assert artifact.complete
    other = Manifest(kind="bank", name="other", fingerprint="0" * 12, lease=second.number)
    with pytest.raises(ValueError, match="not of bank/emoji"):
        artifact.commit(other)


def test_fingerprints_depend_on_everything_and_not_on_order() -> None:
    first = fingerprint("bank", 1, {"a": 1, "b": [1, 2]}, {"images": "x", "encoder": "y"})
    assert first == fingerprint("bank", 1, {"b": (1, 2), "a": 1}, {"encoder": "y", "images": "x"})
    others = [
        fingerprint("latents", 1, {"a": 1, "b": [1, 2]}, {"images": "x", "encoder": "y"}),
        fingerprint("bank", 2, {"a": 1, "b": [1, 2]}, {"images": "x", "encoder": "y"}),
        fingerprint("bank", 1, {"a": 2, "b": [1, 2]}, {"images": "x", "encoder": "y"}),
        fingerprint("bank", 1, {"a": 1, "b": [1, 2]}, {"images": "z", "encoder": "y"}),
    ]
    assert len({first, *others}) == 5 and len(first) == 12
    with pytest.raises(ValueError, match="plain values"):
        fingerprint("bank", 1, {"a": float("nan")}, {})


def test_names_that_would_leave_the_store_are_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for kind, name, mark in [("latents", "../x", "0" * 12), ("nonsense", "x", "0" * 12), ("bank", "x", "../" * 4)]:
        with pytest.raises(ValueError):
            store.artifact(kind, name, mark)
    with pytest.raises(StoreError, match="is no artifact"):
        store.at("../../etc/passwd")


def test_a_root_that_cannot_be_written_is_told(tmp_path: Path, bucket: str) -> None:
    (tmp_path / "file").write_text("in the way")
    for root in [str(tmp_path / "file" / "runs"), "/proc/runs", "s3://no-such-bucket-here/runs"]:
        with pytest.raises(StoreError, match="cannot be written"):
            Store(root).require_writable()
        assert Store(root).artifacts() == []
    with pytest.raises(ValueError, match="neither a folder nor s3://"):
        Store("ftp://somewhere")
    Store(bucket).require_writable()


def test_an_unreachable_server_is_told(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    with pytest.raises(StoreUnreachable, match="cannot be written"):
        Store("s3://bucket/runs").require_writable()
    monkeypatch.setattr("storage.files.s3.PATIENCE", "1")
    with pytest.raises(StoreUnreachable, match="cannot be read"):
        open_table("s3://bucket/runs/latents.lance")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EIO, StoreUnreachable),
        (errno.ESTALE, StoreUnreachable),
        (errno.ECONNRESET, StoreUnreachable),
        (errno.ETIMEDOUT, StoreUnreachable),
        (errno.EACCES, StoreRefused),
        (errno.EROFS, StoreRefused),
        (errno.ENOSPC, StoreRefused),
    ],
)
def test_what_may_pass_is_told_apart(code: int, kind: type[StoreError]) -> None:
    with pytest.raises(StoreError, match="cannot be read") as by_files, faults.translate_errors("read", "x"):
        raise OSError(code, os.strerror(code))
    with pytest.raises(StoreError, match="cannot be read") as by_lance, fragments.translate_errors("read", "x"):
        raise OSError(f"LanceError(IO): Generic LocalFileSystem error: {os.strerror(code)} (os error {code})")
    assert type(by_files.value) is type(by_lance.value) is kind


@pytest.mark.parametrize(("status", "kind"), [(503, StoreUnreachable), (500, StoreUnreachable), (403, StoreRefused)])
def test_what_a_server_answers_is_told_apart(
    status: int, kind: type[StoreError], monkeypatch: pytest.MonkeyPatch, s3_server: str
) -> None:
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("storage.files.s3.PATIENCE", "1")
    with answering(lambda _: (status, "Some")) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        with pytest.raises(StoreError, match="cannot be read") as by_files:
            Store("s3://bucket/runs").read_bytes("s3://bucket/runs/x")
        with pytest.raises(StoreError, match="cannot be read") as by_lance:
            open_table("s3://bucket/runs/latents.lance")
    assert type(by_files.value) is type(by_lance.value) is kind


def test_of_two_who_create_one_wins_whatever_words_the_server_has(
    s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SeaweedFS refuses without naming the condition; a server may also say that another creation is under way."""
    monkeypatch.setattr("storage.files.s3._UNDER_WAY", (0.0, 0.0))
    busy, refused = (409, "ConditionalRequestConflict"), (412, "PreconditionFailed")
    puts = iter([busy, refused, busy, (200, ""), busy, busy, busy])
    with answering(lambda method: next(puts) if method == "PUT" else (200, "theirs")) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        place = open_files("s3://bucket")
        assert not place.create("s3://bucket/lease", b"ours")
        assert place.create("s3://bucket/lease", b"ours")
        with pytest.raises(StoreUnreachable):
            place.create("s3://bucket/lease", b"ours")


@contextmanager
def answering(answer_to: Callable[[str], tuple[int, str]]) -> Iterator[str]:
    """Address of a server that answers a request of this method with such a status, and its code or content."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # clients wait to be told to go on before they put

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            status, word = answer_to(self.command)
            body = word if status == 200 else f"<Error><Code>{word}</Code><Message>no</Message></Error>"
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body.encode())

        do_GET = do_PUT = do_HEAD = do_POST = answer

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    path = f"{tmp_path}/x.json"
    store.write_json(path, 1)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        store.write_json(path, 2)
    assert json.loads(Path(path).read_text()) == 1
    assert os.listdir(tmp_path) == ["x.json"]


def test_relative_roots_and_pickled_stores_mean_the_same_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("./runs")
    store.write_json(f"{store.root}/x", 1)
    assert store.root == str(tmp_path / "runs") == Store(f"file://{tmp_path}/runs/").root
    again = pickle.loads(pickle.dumps(store))
    monkeypatch.chdir("/")
    assert again == store and again.read_json(f"{again.root}/x") == 1


def test_lance_opens_tables_in_the_store(root: str) -> None:
    import lance
    import pyarrow as pa

    store = Store(root)
    artifact = store.artifact("latents", "emoji", "0" * 12)
    uri = artifact.path("latents.lance")
    lance.write_dataset(pa.table({"id": [1, 2, 3]}), uri, storage_options=lance_options(store.root))
    assert lance.dataset(uri, storage_options=lance_options(store.root)).count_rows() == 3
    assert "secret" not in json.dumps(lance_options(store.root)).lower()
    assert artifact.summary()["bytes"] > 0
