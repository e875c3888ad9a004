from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from storage.tables import latents, patches
from storage.tables.bank_basis import Basis
from storage.tables.bank_rows import make_rows
from storage.tables.bank_rows import write_fragments as write_bank
from storage.tables.bank_writer import BankWriter
from storage.tables.latents import LatentsWriter
from storage.tables.memory import Memory
from storage.tables.order import BatchOrder
from storage.tables.patches import PatchesWriter
from storage.tables.training_data import StepReader, TrainingTable

SHAPE, DIM, TOKENS, RANK = (2, 2, 2), 5, 4, 3
PICTURES, PER_SHARD = 30, 10
ENCODER = {"name": "vit", "sha256": "ab"}


def value(ids: np.ndarray, shape: tuple[int, ...], offset: float) -> np.ndarray:
    """Numbers that tell the id they belong to, exact in float16."""
    return np.broadcast_to((ids + offset).reshape(-1, *[1] * len(shape)), (len(ids), *shape)).astype(np.float32)


@pytest.fixture(scope="module", params=[True, False], ids=["mirrored", "plain"])
def artifacts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Latents, bank and tokens whose shards were committed in different orders; every fifth picture is held out."""
    root: Path = tmp_path_factory.mktemp("artifacts")
    uris = {kind: str(root / kind) for kind in ("latents", "bank", "patches")}
    writers = {
        "latents": LatentsWriter(uris["latents"], SHAPE, {"name": "vae"}),
        "bank": BankWriter(uris["bank"], DIM, ENCODER),
        "patches": PatchesWriter(uris["patches"], TOKENS, torch.eye(RANK, 7), torch.ones(7), ENCODER),
    }
    every = []
    for shard in (2, 0, 1):
        samples = np.arange(shard * PER_SHARD, (shard + 1) * PER_SHARD)
        ids = np.concatenate([2 * samples, 2 * samples + 1]) if request.param else 2 * samples
        name, labels = f"shard-{shard}", [int(i >> 1) % 4 for i in ids]
        splits = ["held_out" if (i >> 1) % 5 == 0 else "train" for i in ids]
        noise = np.random.default_rng(shard).random((len(ids), *SHAPE)) / 4
        rows = make_rows(ids, value(ids, (DIM,), 1), "dataset", splits=splits, shard=name)
        tokens = value(ids, (TOKENS, RANK), 0.5)
        described = {
            "latents": latents.write_fragments(uris["latents"], name, ids, labels, value(ids, SHAPE, 0) + noise),
            "bank": write_bank(uris["bank"], name, rows),
            "patches": patches.write_fragments(uris["patches"], name, ids[::-1], tokens[::-1]),
        }
        for kind, writer in writers.items():
            writer.commit([described[kind]])
        every.append(ids)
    expected = np.concatenate(every)
    writers["latents"].finish_latents(expected)
    writers["bank"].finish_bank(expected)
    writers["patches"].verify(expected)
    return uris | {"mirrored": str(request.param)}


def table(artifacts: dict[str, str], **options: object) -> TrainingTable:
    return TrainingTable(artifacts["latents"], artifacts["bank"], artifacts["patches"], **options)


@pytest.mark.parametrize("limit", [0, 1 << 20], ids=["disk", "memory"])
def test_rows_are_joined_by_id_in_the_order_asked_for(artifacts: dict[str, str], limit: int) -> None:
    data = table(artifacts, memory_limit=limit)
    assert data.in_memory == bool(limit)
    ids = np.random.default_rng(0).permutation(data.ids)[:12]
    ids[3] = ids[7]
    rows = data.batch(torch.from_numpy(ids))
    assert rows["latent"].shape == (12, *SHAPE) and rows["latent"].dtype == torch.float16
    assert rows["snippet"].shape == (12, DIM) and rows["tokens"].shape == (12, TOKENS, RANK)
    assert torch.equal(rows["latent"].float().amin((1, 2, 3)).floor(), torch.from_numpy(ids).float())
    assert torch.equal(rows["snippet"][:, 0].long(), torch.from_numpy(ids + 1))
    assert torch.equal(rows["tokens"][:, 2, 1].float(), torch.from_numpy(ids).float() + 0.5)
    assert torch.equal(rows["label"], torch.from_numpy((ids >> 1) % 4))


def test_only_the_split_asked_for_is_there(artifacts: dict[str, str]) -> None:
    train, held_out = table(artifacts), table(artifacts, split="held_out")
    assert all(i % 5 for i in train.pictures) and not any(i % 5 for i in held_out.pictures)
    assert len(train.pictures) == 24 and len(held_out.pictures) == 6
    with pytest.raises(ValueError, match="outside"):
        train.batch([0])
    with pytest.raises(ValueError, match="outside"):
        train.batch([10**6])
    assert len(table(artifacts, split="nothing").ids) == 0


def test_it_says_what_it_is_made_of(artifacts: dict[str, str]) -> None:
    data = table(artifacts)
    assert (data.snippet_dim, data.token_dim, data.classes, data.encoder) == (DIM, 7, 4, ENCODER)
    assert data.patches is not None and data.batch(data.ids[:2])["tokens"].shape == (2, *data.patches.shape)
    assert set(data.versions) == {"latents", "bank", "patches"} and data.latents.tokenizer == {"name": "vae"}
    assert len(data.ids) == len(data.pictures) * (2 if artifacts["mirrored"] == "True" else 1)
    pinned = table(artifacts, versions=data.versions)
    assert pinned.versions == data.versions


def test_a_row_without_its_latent_is_told(artifacts: dict[str, str], tmp_path: Path) -> None:
    short = str(tmp_path / "latents")
    writer = LatentsWriter(short, SHAPE, {"name": "vae"})
    ids = np.arange(0, 20, 2)
    values = value(ids, SHAPE, 0)
    writer.commit([latents.write_fragments(short, "shard-0", ids, [None] * 10, values)])
    writer.finish_latents(ids)
    with pytest.raises(ValueError, match=r"lacks .* rows of the bank"):
        TrainingTable(short, artifacts["bank"])


@pytest.mark.parametrize("limit", [0, 1 << 20], ids=["disk", "memory"])
@pytest.mark.parametrize("part", [slice(None), slice(2, 5)])
def test_steps_read_together_are_those_read_alone(artifacts: dict[str, str], limit: int, part: slice) -> None:
    data = table(artifacts, memory_limit=limit)
    order = BatchOrder(3, data.pictures, 7, mirrored=artifacts["mirrored"] == "True")
    reader = StepReader(data, order, part)
    assert (reader.steps > 1) == (limit == 0)
    for step in [0, 1, 2, 900, 901, 5]:  # on, far on, and back
        alone = data.batch(order.ids(step)[part])
        together = reader.batch(step)
        assert alone.keys() == together.keys()
        assert all(torch.equal(alone[name], together[name]) for name in alone)


def test_small_tables_are_held_first(artifacts: dict[str, str]) -> None:
    data = table(artifacts)
    sizes = sorted(source.bytes for source in data._sources)
    some = table(artifacts, memory_limit=sizes[0] + sizes[1])
    held = sorted(source.bytes for source in some._sources if source.memory is not None)
    assert held == sizes[:2] and not some.in_memory
    assert all(torch.equal(some.batch(data.ids)[name], values) for name, values in data.batch(data.ids).items())


@pytest.mark.parametrize("limit", [0, 1 << 20], ids=["disk", "memory"])
def test_with_a_memory_snippets_are_those_kept_each_once(artifacts: dict[str, str], limit: int) -> None:
    whole = table(artifacts)
    kept = whole.pictures[[3, 3, 10]][np.arange(len(whole.pictures)) % 3]
    kept[[3, 10]] = whole.pictures[[3, 10]]
    memory = Memory(whole.pictures, kept)
    data = table(artifacts, memory=memory, memory_limit=limit)
    rows = data.batch(data.ids[::-1].copy())
    assert torch.equal(rows["snippet"][:, 0].long(), torch.from_numpy(memory.standing(data.ids[::-1]) + 1))
    assert torch.equal(rows["latent"], whole.batch(data.ids[::-1].copy())["latent"])
    views = len(data.ids) // len(data.pictures)
    assert np.array_equal(data.drawn_from, data.ids[np.isin(data.ids >> 1, kept)]) and len(data.drawn_from) == 2 * views
    assert whole.bytes - data.bytes == 2 * DIM * (len(data.ids) - 2 * views)
    held_out = table(artifacts, split="held_out", memory=memory)
    assert torch.equal(held_out.batch(held_out.ids)["snippet"][:, 0].long(), torch.from_numpy(held_out.ids + 1))


@pytest.mark.parametrize("limit", [0, 1 << 20], ids=["disk", "memory"])
def test_of_a_rank_reduced_memory_coefficients_are_held(artifacts: dict[str, str], limit: int) -> None:
    whole = table(artifacts)
    along = np.full((1, DIM), DIM**-0.5, np.float32)  # all snippets of this table lie on one line
    memory = Memory(np.zeros(0, np.int64), np.zeros(0, np.int64), Basis(along, np.ones(DIM, np.float32)))
    data = table(artifacts, memory=memory, memory_limit=limit)
    ids = data.ids[[5, 2, 5]]
    rows = data.batch(ids)
    assert rows["snippet"].dtype == torch.float16
    assert torch.allclose(rows["snippet"].float(), whole.batch(ids)["snippet"].float(), rtol=2e-3)
    assert whole.bytes - data.bytes == 2 * (DIM - 2) * len(data.ids)
    assert np.array_equal(data.drawn_from, data.ids)
