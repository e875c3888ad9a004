"""Rank-reduced snippets: what is stored gives them back, and is compared as they would be."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from storage.errors import Refused
from storage.tables.bank_basis import Basis, basis_of
from storage.tables.bank_rows import schema

RANDOM = np.random.default_rng(0)
DIRECTIONS = np.linalg.qr(RANDOM.normal(size=(12, 4)))[0].T.astype(np.float32)
BASIS = Basis(DIRECTIONS, RANDOM.normal(size=12).astype(np.float32))
SNIPPETS = (BASIS.mean + 7 * RANDOM.normal(size=(50, 12))).astype(np.float32)


def nearest_shown(snippets: np.ndarray) -> np.ndarray:
    """The orthogonal projection on mean + the span of the directions."""
    return BASIS.mean + (snippets - BASIS.mean) @ DIRECTIONS.T @ DIRECTIONS


def test_what_is_stored_gives_back_the_nearest_that_the_directions_show() -> None:
    stored = BASIS.project(SNIPPETS)
    assert stored.shape == (50, 5)
    np.testing.assert_allclose(BASIS.full(stored), nearest_shown(SNIPPETS), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(BASIS.project(BASIS.full(stored)), stored, rtol=1e-3, atol=1e-5)


def test_products_with_a_query_are_cosines() -> None:
    query = RANDOM.normal(size=12)
    shown = nearest_shown(SNIPPETS)
    cosines = shown @ query / np.linalg.norm(shown, axis=1) / np.linalg.norm(query)
    np.testing.assert_allclose(BASIS.project(SNIPPETS) @ BASIS.query(query), cosines, atol=1e-5)


def test_it_travels_in_a_tables_metadata() -> None:
    made = schema(12, {"name": "vit"}, BASIS)
    assert made.field("snippet").type == pa.list_(pa.float16(), 5) and made.metadata[b"format_version"] == b"2"
    again = basis_of(made)
    assert again is not None and np.array_equal(again.matrix, BASIS.matrix) and (again.rank, again.dim) == (4, 12)
    plain = schema(12, {"name": "vit"})
    assert basis_of(plain) is None and plain.metadata[b"format_version"] == b"1"


def test_a_snippet_of_which_nothing_is_shown_is_refused() -> None:
    centred = Basis(DIRECTIONS, np.zeros(12, np.float32))
    with pytest.raises(Refused, match="keep more of them"):
        centred.project(np.zeros((1, 12)))
