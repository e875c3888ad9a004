"""The way of the data once more, on a real S3 protocol server."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from storage.errors import LeaseLost
from storage.files import open_files
from storage.ids import FIRST_FOREIGN_ID
from storage.images.index import done_shards, index_shards, read_index
from storage.images.shards import ShardPlan, read_shard, write_index, write_shard
from storage.images.sources import list_source
from storage.tables import latents
from storage.tables.bank import Bank
from storage.tables.bank_rows import make_rows, write_fragments
from storage.tables.bank_writer import BankWriter
from storage.tables.latents import Latents, LatentsWriter
from storage.tables.order import BatchOrder
from storage.tables.training_data import TrainingTable

SHAPE, DIM, ENCODER = (2, 4, 4), 6, {"name": "vit", "sha256": "ab"}


def put_pictures(folder: str, count: int) -> None:
    files = open_files(folder)
    for number in range(count):
        buffer = io.BytesIO()
        Image.new("RGB", (20, 30), (10 * number, 0, 0)).save(buffer, "PNG")
        files.write(f"{folder}/class-{number % 2}/{number}.png", buffer.getvalue())


def test_from_pictures_to_batches_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    source, images = f"{bucket}/pictures", f"{bucket}/runs/images/some-0123456789ab"
    put_pictures(source, 10)
    listing = list_source(source)
    assert len(listing) == 10 and listing.fingerprint == list_source(source).fingerprint
    plan = ShardPlan(source, 16, 0.3, tuple(listing.classes()))
    for number in range(2):
        write_shard(images, number, listing.slice(5 * number, 5 * number + 5), plan)
    assert done_shards(images) == {0, 1}
    write_index(images, 2, plan)

    table, bank = f"{bucket}/runs/latents/some-0123456789ab", f"{bucket}/runs/bank/some-0123456789ab"
    writers = LatentsWriter(table, SHAPE, {"name": "vae"}, 1), BankWriter(bank, DIM, ENCODER, 1)
    draw = np.random.default_rng(0)
    for shard in index_shards(read_index(images)):
        pictures = list(read_shard(images, shard))
        ids = np.array([2 * picture.sample for picture in pictures])
        values = draw.normal(size=(len(ids), *SHAPE))
        labels, splits = [p.label for p in pictures], [p.split for p in pictures]
        rows = make_rows(ids, draw.normal(size=(len(ids), DIM)), "dataset", labels=labels, splits=splits, shard=shard)
        writers[0].commit([latents.write_fragments(table, shard, ids, labels, values)])
        writers[1].commit([write_fragments(bank, shard, rows)])
    successor = LatentsWriter(table, SHAPE, {"name": "vae"}, 2)
    with pytest.raises(LeaseLost):
        writers[0].finish_latents(np.arange(0, 20, 2))
    successor.finish_latents(np.arange(0, 20, 2))
    writers[1].finish_bank(np.arange(0, 20, 2))
    assert len(Latents.open(table)) == 10

    opened = Bank(bank)
    opened.tag("trained")
    assert opened.append(np.ones((2, DIM)), "external", ENCODER).tolist() == [FIRST_FOREIGN_ID, FIRST_FOREIGN_ID + 1]
    assert opened.search(np.ones(DIM), k=1)["id"].to_pylist()[0] >= FIRST_FOREIGN_ID
    assert (opened.info().rows, opened.info().content_revision, len(Bank(bank, "trained"))) == (12, 2, 10)

    for limit in (0, 1 << 20):
        data = TrainingTable(table, bank, memory_limit=limit)
        copied = TrainingTable(table, bank, memory_limit=limit, cache=str(tmp_path))
        ids = BatchOrder(0, data.pictures, 4).ids(0)
        assert data.batch(ids)["latent"].shape == (4, *SHAPE) and copied.versions == data.versions
        assert all(torch.equal(values, copied.batch(ids)[name]) for name, values in data.batch(ids).items())
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2


def test_a_tar_in_a_bucket(bucket: str) -> None:
    local = Path(__file__).parents[2] / "flows" / "assets" / "emoji.tar"
    asset = list_source(str(local))
    open_files(bucket).write(f"{bucket}/emoji.tar", local.read_bytes())
    listing = list_source(f"{bucket}/emoji.tar")
    assert [e.key for e in listing.slice(0, 50)] == [e.key for e in asset.slice(0, 50)]
    plan = ShardPlan(f"{bucket}/emoji.tar", 64, 0.15, tuple(listing.classes()))
    assert write_shard(f"{bucket}/images", 0, listing.slice(0, 20), plan).kept == 20
