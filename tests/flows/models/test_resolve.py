"""Artifacts as people name them."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.models.resolve import in_full
from storage.errors import Refused
from storage.store import Artifact, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "runs"))


def finished(store: Store, kind: str, name: str, fingerprint: str) -> Artifact:
    artifact = Artifact(store, kind, name, fingerprint)
    with artifact.lease("a test") as lease:
        artifact.commit(artifact.describe(lease))
    return artifact


def test_a_name_will_do_where_it_is_one_artifact_s(store: Store) -> None:
    mine = finished(store, "weights", "mine", "0123456789ab")
    assert in_full("weights/mine", store) == in_full(store.relative(mine.uri), store) == mine.uri
    assert in_full("weights/mine/checkpoints/step-00000000", store) == f"{mine.uri}/checkpoints/step-00000000"
    assert in_full("weights/nobody", store) == f"{store.root}/weights/nobody"
    assert in_full(mine.uri, store) == mine.uri


def test_of_several_one_must_be_named(store: Store) -> None:
    for fingerprint in ("0123456789ab", "ba9876543210"):
        finished(store, "bank", "emoji", fingerprint)
    with pytest.raises(Refused, match="2 of bank/emoji: name one of emoji-0123456789ab, emoji-ba9876543210"):
        in_full("bank/emoji", store)
