from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from lance.commit import CommitConflictError
from lance.dataset import Transaction

from storage.errors import LeaseLost, StoreError
from storage.tables.latents import Latents, LatentsWriter, channel_sums, moments, table_uri, write_fragments

SHAPE = (4, 2, 3)
TOKENIZER = {"name": "vae", "sha256": "12" * 32, "factor": 8, "channels": 4}


def latents(shard: int, n: int = 6) -> np.ndarray:
    """[n, C, H, W], other mean and deviation in each channel."""
    values = np.random.default_rng(shard).normal(size=(n, *SHAPE)).astype(np.float32)
    return values * np.array([0.5, 1, 2, 4]).reshape(-1, 1, 1) + np.array([0, 100, -3, 8]).reshape(-1, 1, 1)


def described(artifact: str, shard: int, n: int = 6) -> dict:
    """A worker's answer, as it arrives: through JSON."""
    ids = np.arange(shard * n, (shard + 1) * n)
    labels = [None if i % 3 == 0 else int(i) for i in ids]
    return json.loads(json.dumps(write_fragments(artifact, f"shard-{shard}", ids, labels, latents(shard, n))))


@pytest.fixture
def artifact(tmp_path: Path) -> str:
    return str(tmp_path / "latents")


def writer(artifact: str, lease: int = 1) -> LatentsWriter:
    return LatentsWriter(artifact, SHAPE, TOKENIZER, lease)


def test_a_table_is_filled_and_finished(artifact: str) -> None:
    committer = writer(artifact)
    assert committer.commit([described(artifact, 0), described(artifact, 1)]) == 12
    assert committer.commit([described(artifact, 2)]) == 6
    assert set(committer.done) == {"shard-0", "shard-1", "shard-2"}
    committer.finish_latents(np.arange(18))

    table = Latents.open(artifact)
    every = np.concatenate([latents(shard) for shard in range(3)]).astype(np.float16).astype(np.float64)
    assert len(table) == 18 and table.shape == SHAPE and table.tokenizer == TOKENIZER
    assert np.allclose(table.mean, every.mean((0, 2, 3)), rtol=1e-12)
    assert np.allclose(table.std, every.std((0, 2, 3)), rtol=1e-9)
    rows = table.dataset.to_table()
    assert rows.schema.field("latent").type == pa.list_(pa.float16(), 24)
    assert rows.schema.field("id").type == pa.int64() and rows.schema.field("label").type == pa.int32()
    assert rows["label"].to_pylist()[:4] == [None, 1, 2, None]
    assert set(rows["shard"].to_pylist()) == {"shard-0", "shard-1", "shard-2"}
    stored = np.array(rows["latent"].to_pylist()).reshape(-1, *SHAPE)
    assert np.array_equal(stored[rows["id"].to_numpy().argsort()], every)


def test_sums_merge_like_one_pass_over_everything() -> None:
    parts = [np.random.default_rng(n).normal(5, 2, size=(n, 2, 3, 3)).astype(np.float16) for n in (1, 4, 9)]
    mean, std = moments([channel_sums(part) for part in parts])
    every = np.concatenate(parts).astype(np.float64)
    assert np.allclose(mean, every.mean((0, 2, 3))) and np.allclose(std, every.std((0, 2, 3)))


def test_what_was_written_and_not_committed_is_as_if_it_never_was(artifact: str) -> None:
    first = writer(artifact)
    first.commit([described(artifact, 0)])
    described(artifact, 1)  # killed here: the fragment's file lies there, nobody committed it

    second = writer(artifact, lease=2)
    assert set(second.done) == {"shard-0"}
    assert second.commit([described(artifact, 0), described(artifact, 1)]) == 6, "a shard is never committed twice"
    second.finish_latents(np.arange(12))
    table = Latents.open(artifact)
    assert sorted(table.dataset.to_table()["id"].to_pylist()) == list(range(12))
    every = np.concatenate([latents(0), latents(1)]).astype(np.float16).astype(np.float64)
    assert np.allclose(table.mean, every.mean((0, 2, 3))), "the first run's sums are part of the mean"


def test_a_holder_thought_dead_cannot_commit_any_more(artifact: str) -> None:
    old = writer(artifact, lease=1)
    old.commit([described(artifact, 0)])
    new = writer(artifact, lease=2)
    with pytest.raises(LeaseLost, match="taken over"):
        old.commit([described(artifact, 1)])
    with pytest.raises(LeaseLost):
        old.finish_latents(np.arange(6))
    with pytest.raises(LeaseLost, match="lease 2"):
        writer(artifact, lease=1)
    new.commit([described(artifact, 1)])
    new.finish_latents(np.arange(12))


@pytest.mark.parametrize("stands_still_before", ["UpdateConfig", "Merge"])
def test_a_holder_that_stood_still_while_it_took_over_drops_nothing(
    artifact: str, stands_still_before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run takes over and commits, between the stale one's look at the table and its own fence."""
    writer(artifact, lease=1).commit([described(artifact, 0)])
    committed, rivals = LatentsWriter._committed, []

    def slowly(self: LatentsWriter, operation: Any, dataset: Any, about: dict[str, str]) -> Any:
        if type(operation).__name__ == stands_still_before and self.lease == 2:
            monkeypatch.undo()
            rivals.append(writer(artifact, lease=3))
            rivals[0].commit([described(artifact, 1)])
        return committed(self, operation, dataset, about)

    monkeypatch.setattr(LatentsWriter, "_committed", slowly)
    with pytest.raises(LeaseLost, match="lease 3"):
        writer(artifact, lease=2)
    assert rivals[0].commit([described(artifact, 2)]) == 6
    rivals[0].finish_latents(np.arange(18))


def test_a_restore_that_was_prepared_before_others_took_over_is_refused(artifact: str) -> None:
    old = writer(artifact, lease=1)
    old.commit([described(artifact, 0)])
    seen = old._dataset.version
    writer(artifact, lease=2).commit([described(artifact, 1)])
    with pytest.raises(CommitConflictError):
        lance.LanceDataset.commit(table_uri(artifact), Transaction(seen, lance.LanceOperation.Restore(seen)))
    assert lance.dataset(table_uri(artifact)).count_rows() == 12


def test_a_commit_that_slips_in_while_another_takes_over_is_kept_whole(
    artifact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = writer(artifact, lease=1)
    committed = LatentsWriter._committed

    def late(self: LatentsWriter, operation: Any, dataset: Any, about: dict[str, str]) -> Any:
        if type(operation).__name__ == "Merge":
            monkeypatch.undo()
            old.commit([described(artifact, 0)])
        return committed(self, operation, dataset, about)

    monkeypatch.setattr(LatentsWriter, "_committed", late)
    new = writer(artifact, lease=2)
    assert set(new.done) == {"shard-0"}
    with pytest.raises(LeaseLost):
        old.commit([described(artifact, 1)])
    new.finish_latents(np.arange(6))


def test_what_a_restore_by_hand_undid_is_done_again(artifact: str) -> None:
    old = writer(artifact, lease=1)
    seen = old._dataset
    old.commit([described(artifact, 0)])
    operation = lance.LanceOperation.Restore(seen.version)
    lance.LanceDataset.commit(table_uri(artifact), Transaction(old._dataset.version, operation))

    new = writer(artifact, lease=3)
    assert not new.done
    new.commit([described(artifact, 0)])
    new.finish_latents(np.arange(6))


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (np.arange(13), r"1 ids missing \(first \[12\]\)"),
        (np.arange(11), r"1 not expected \(first \[11\]\)"),
        (np.arange(1, 13), r"1 ids missing .* 1 not expected"),
    ],
)
def test_each_expected_id_must_be_there_once(artifact: str, expected: np.ndarray, message: str) -> None:
    committer = writer(artifact)
    committer.commit([described(artifact, 0), described(artifact, 1)])
    with pytest.raises(ValueError, match=message):
        committer.finish_latents(expected)
    with pytest.raises(ValueError, match="unfinished"):
        Latents.open(artifact)


def test_doubled_ids_are_found(artifact: str) -> None:
    committer = writer(artifact)
    again = described(artifact, 0) | {"shard": "shard-0-again"}
    committer.commit([described(artifact, 0), again])
    with pytest.raises(ValueError, match="6 doubled"):
        committer.finish_latents(np.arange(6))


def test_rows_by_an_unknown_hand_stop_the_build(artifact: str) -> None:
    writer(artifact).commit([described(artifact, 0)])
    stranger = lance.dataset(table_uri(artifact)).to_table()
    lance.write_dataset(stranger, table_uri(artifact), mode="append")
    with pytest.raises(ValueError, match="12 rows, of which 6 are accounted for"):
        writer(artifact, lease=2)


def test_another_tokenizer_or_shape_is_refused(artifact: str) -> None:
    writer(artifact)
    with pytest.raises(ValueError, match="another tokenizer"):
        LatentsWriter(artifact, SHAPE, TOKENIZER | {"sha256": "34" * 32}, 2)
    with pytest.raises(ValueError, match="other columns"):
        LatentsWriter(artifact, (8, 2, 3), TOKENIZER, 2)


def test_latents_that_float16_cannot_hold_are_refused(artifact: str) -> None:
    writer(artifact)
    for bad in (1e6, np.nan):
        with pytest.raises(ValueError, match="float16"):
            write_fragments(artifact, "s", np.arange(1), [None], np.full((1, *SHAPE), bad, np.float32))


def test_a_missing_table_is_told_in_a_sentence(artifact: str) -> None:
    with pytest.raises(ValueError, match="run the latents stage first"):
        Latents.open(artifact)


def test_a_damaged_newest_version_is_told_with_its_remedy(artifact: str) -> None:
    writer(artifact).commit([described(artifact, 0)])
    versions = Path(table_uri(artifact), "_versions")
    newest = min(versions.glob("*.manifest"))  # Lance numbers them downwards
    for damaged in (newest.read_bytes()[:100], b"\xff" * 64):  # at the second Lance panics
        newest.write_bytes(damaged)
        with pytest.raises(
            StoreError, match=r"newest version is damaged; remove the newest .manifest in its _versions"
        ):
            writer(artifact, lease=2)
    newest.unlink()
    again = writer(artifact, lease=2)
    assert not again.done
    again.commit([described(artifact, 0)])
    again.finish_latents(np.arange(6))


def test_a_store_that_cannot_be_reached_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("storage.files.s3.PATIENCE", "0")
    with pytest.raises(StoreError, match=r"cannot be read .*: check the store's address"):
        Latents.open("s3://bucket/latents")
