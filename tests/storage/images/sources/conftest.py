"""Small files as people have them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from PIL import Image

from storage.images.index import index_shards, read_index
from storage.images.shards import ShardPlan, read_shard, write_index, write_shard
from storage.images.sources import Entry, list_source

Members = Mapping[str, bytes] | list[tuple[str, bytes]]


def _picture(number: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (number % 256, 80, 160)).save(buffer, "PNG")
    return buffer.getvalue()


def _tar(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def _tree(root: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return root


class Seen:
    """A source as ingest sees it: every input by its path."""

    def __init__(self, source: Path | str, **choices: object) -> None:
        listing = list_source(str(source), **choices)  # type: ignore[arg-type]
        self.source = str(source)
        self.entries: list[Entry] = listing.slice(0, len(listing))
        self.usable = {entry.path: entry for entry in self.entries if entry.reason is None}
        self.labels = {path: entry.label for path, entry in self.usable.items()}
        self.reasons = {entry.path: entry.reason for entry in self.entries if entry.reason}
        self.classes, self.notes = listing.classes(), listing.notes

    def rows(self, root: Path) -> list[dict[str, object]]:
        """The index of its pictures made shards, each kept one read back."""
        plan = ShardPlan(self.source, 16, 0.0, tuple(self.classes))
        write_shard(str(root), 0, self.entries, plan)
        write_index(str(root), 1, plan)
        index = read_index(str(root))
        kept = sum(index["kept"].to_pylist())
        assert sum(1 for shard in index_shards(index) for _ in read_shard(str(root), shard)) == kept
        return index.to_pylist()


@pytest.fixture
def picture() -> Callable[[int], bytes]:
    return _picture


@pytest.fixture
def tar() -> Callable[[Path, Members], Path]:
    return _tar


@pytest.fixture
def tree() -> Callable[[Path, Mapping[str, bytes | str]], Path]:
    return _tree


@pytest.fixture
def seen() -> type[Seen]:
    return Seen


CASES = Path(__file__).parents[5] / "shared" / "cases"


@pytest.fixture
def cases() -> Path:
    """Inputs as people have them, beside the checkout."""
    if not CASES.exists():
        pytest.skip("the collection of cases is not beside the checkout")
    return CASES
