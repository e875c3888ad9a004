"""What a worker of stage bank makes of a block of pictures."""

from __future__ import annotations

from threading import get_ident
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from flows.recipe.files import load
from flows.stages.bank import driver as bank
from flows.stages.bank.driver import SnippetEncoder, Targets
from flows.stages.extraction import Block
from storage.images.decoding import thumbnail


def test_rows_carry_their_own_thumbnails_encoded_beside_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    block = Block("shard-000000", np.arange(3), ["a", "b", "c"], [None] * 3, ["train"] * 3, images)
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
    assert written[0]["thumbnail"].to_pylist() == [thumbnail(each) for each in (*images, *images[:, :, ::-1])]
    assert get_ident() not in threads
