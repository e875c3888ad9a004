"""What a worker of stage bank makes of a block of pictures."""

from __future__ import annotations

from pathlib import Path
from threading import get_ident
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from flows.engine.context import Context
from flows.recipe.files import load
from flows.stages.bank import driver as bank
from flows.stages.bank.driver import SnippetEncoder, Targets
from flows.stages.extraction import Block
from storage.images.decoding import thumbnail
from storage.store import Store
from storage.tables.bank import Bank
from storage.tables.bank_rows import make_rows
from storage.tables.bank_writer import BankWriter


def test_rows_carry_their_own_thumbnails_encoded_beside_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    block = Block(
        "shard-000000",
        np.arange(3),
        ["a", "b", "c"],
        [None] * 3,
        ["train"] * 3,
        ["flags", None, "food"],
        ["x", None, "y"],
        images,
    )
    written: list[pa.Table] = []
    threads: set[int] = set()

    def small(image: Any) -> bytes:
        threads.add(get_ident())
        return thumbnail(image)

    monkeypatch.setattr(bank, "set_threads_and_device", lambda threads: "cpu")
    monkeypatch.setattr(bank, "thumbnail", small)
    monkeypatch.setattr(bank.bank_rows, "write_fragments", lambda uri, shard, rows: written.append(rows))
    recipe = load("emoji", {"data": {"mirror": True}})
    assert SnippetEncoder(1, recipe, Targets("bank", None)).run(block, None)["rows"] == 6
    assert (
        written[0]["id"].to_pylist() == [0, 2, 4, 1, 3, 5]
        and written[0]["flipped"].to_pylist() == [False] * 3 + [True] * 3
    )
    assert written[0]["class"].to_pylist() == ["flags", None, "food"] * 2
    assert written[0]["caption"].to_pylist() == ["x", None, "y"] * 2
    assert written[0]["thumbnail"].to_pylist() == [thumbnail(each) for each in (*images, *images[:, :, ::-1])]
    assert get_ident() not in threads


def test_what_was_withdrawn_from_an_earlier_bank_does_not_come_back(tmp_path: Path) -> None:
    store, encoder = Store(str(tmp_path)), {"name": "vit", "sha256": "ab"}

    def made(name: str, fingerprint: str, side: int) -> Bank:
        artifact = store.artifact("bank", name, fingerprint)
        writer = BankWriter(artifact.uri, side, encoder)
        snippets = np.random.default_rng(side).normal(size=(4, side))
        rows = make_rows(np.arange(4), snippets, "dataset", keys=["a", "a", "b", "b"], shard="s")
        writer.commit([bank.bank_rows.write_fragments(artifact.uri, "s", rows)])
        writer.finish_bank(np.arange(4))
        with artifact.lease("test") as lease:
            artifact.commit(artifact.describe(lease))
        return Bank(artifact.uri)

    made("emoji", "0" * 12, 4).withdraw("asked for", [2])
    made("another", "1" * 12, 4).withdraw("another recipe", [0])
    later = made("emoji", "2" * 12, 6)  # of another encoder
    context = SimpleNamespace(store=store, recipe=SimpleNamespace(name="emoji"))
    bank._withdraw_again(cast(Context, context), later)
    assert later.matching().tolist() == [0, 1]
    (_, change) = later.history()
    assert change.reason == f"withdrawn from bank/emoji-{'0' * 12}: asked for"
    bank._withdraw_again(cast(Context, context), later)
    assert len(later.history()) == 2
