"""Which rows a sample of the bank consists of."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from storage.errors import Refused
from storage.tables.bank import Bank

from .conftest import ENCODER, snippets


def test_sampling_is_deterministic_and_repeats_only_when_it_must(bank: Bank) -> None:
    ids = bank.sample(24, 1, "split = 'train'")
    assert np.array_equal(ids, bank.sample(24, 1, "split = 'train'"))
    assert not np.array_equal(ids, bank.sample(24, 2, "split = 'train'"))
    assert len(set(ids)) == 24 and all(i % 2 == 0 and i // 2 % 5 for i in ids)
    assert np.array_equal(bank.sample(10, 1, "split = 'train'"), ids[:10])
    twice = bank.sample(12, 0, "split = 'held_out'")
    assert sorted(twice) == sorted([*range(0, 60, 10), *range(0, 60, 10)])
    assert len(set(bank.sample(48, 0, "split = 'train'", mirrored=True))) == 48
    bank.append(snippets(9, 3), "external", ENCODER, splits=["train"] * 3)
    assert np.array_equal(bank.sample(24, 1, "split = 'train' AND origin = 'dataset'"), ids)
    assert not np.array_equal(bank.sample(24, 1, "split = 'train'"), ids)
    with pytest.raises(ValueError, match=r"no such rows .* split is one of held_out, train"):
        bank.sample(1, 0, "split = 'test'")


def test_samples_can_be_balanced(bank: Bank) -> None:
    for n in (1, 2, 7, 30, 100):
        ids = bank.sample(n, 3, balanced_by="class")
        counts = Counter(bank.rows(ids.tolist(), ["class"])["class"].to_pylist())
        assert len(ids) == n and max(counts.values()) - min(counts.values() if len(counts) == 3 else [0]) <= 1
        assert np.array_equal(ids, bank.sample(n, 3, balanced_by="class"))
    bank.append(snippets(7, 50), "external", ENCODER)
    assert not set(bank.sample(60, 0, balanced_by="class")) & set(bank.matching("origin = 'external'"))
    for column in ("colour", "snippet", "class; DROP"):
        with pytest.raises(Refused, match="cannot be balanced by"):
            bank.sample(3, 0, balanced_by=column)
    with pytest.raises(Refused, match="class is one of faces, flags, food"):
        bank.sample(3, 0, "class = 'flgas'")
