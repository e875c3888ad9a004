from __future__ import annotations

import numpy as np
import pytest

from gmem.metrics import aligned_similarity, alignment, pixel_copies


def _noise(count: int, seed: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def _framed(count: int, seed: int) -> np.ndarray:
    """Noise in the middle of a grey field, so that a move brings nothing in and takes nothing out."""
    pictures = np.full((count, 32, 32, 3), 128, np.uint8)
    pictures[:, 8:24, 8:24] = _noise(count, seed, 16)
    return pictures


def test_copies_are_known_moved_mirrored_and_in_another_contrast() -> None:
    x = _framed(6, 0)
    assert aligned_similarity(x, x) == pytest.approx(np.ones(6), abs=1e-12)
    for moved in (np.roll(x, (3, -4), (1, 2)), x[:, :, ::-1], np.roll(x[:, :, ::-1], (-2, 4), (1, 2))):
        assert aligned_similarity(x, moved.copy()) == pytest.approx(
            np.ones(6), abs=2e-3
        )  # the frame is not quite the mean
    assert aligned_similarity(x, (x // 2 + 40).astype(np.uint8)) == pytest.approx(np.ones(6), abs=1e-3)


def test_a_move_further_than_allowed_is_another_picture() -> None:
    x = _framed(6, 0)
    assert (aligned_similarity(x, np.roll(x, 6, 2)) < 0.5).all()
    assert aligned_similarity(x, np.roll(x, 6, 2), shift=6) == pytest.approx(np.ones(6), abs=2e-3)
    wrapped = _noise(6, 1)
    assert (aligned_similarity(wrapped, np.roll(wrapped, 3, 2)) < 0.95).all()  # what left does not come in again


def test_strangers_and_plain_pictures_are_not_alike() -> None:
    assert (aligned_similarity(_noise(20, 0), _noise(20, 1)) < 0.2).all()
    plain = np.full((2, 32, 32, 3), 7, np.uint8)
    assert aligned_similarity(plain, _noise(2, 0)) == pytest.approx([0, 0], abs=1e-9)


def test_blocks_agree_with_every_move_computed_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "_PAIRS_AT_ONCE", 2)
    x, y = _noise(5, 2, 8), _noise(5, 3, 8)
    unit = lambda p: (p - p.mean()) / np.linalg.norm(p - p.mean())
    expected = np.full(5, -np.inf)
    for i in range(5):
        for view in (x[i], x[i][:, ::-1]):
            padded, partner = np.pad(unit(view.astype("f8")), ((2, 2), (2, 2), (0, 0))), unit(y[i].astype("f8"))
            for up in range(5):
                for left in range(5):
                    expected[i] = max(expected[i], (padded[up : up + 8, left : left + 8] * partner).sum())
    assert aligned_similarity(x, y, shift=2) == pytest.approx(expected, abs=1e-12)


def test_samples_above_the_held_out_pictures_99th_percentile_are_copies() -> None:
    found = pixel_copies(np.array([0.2, 0.995, 1.0, 0.5]), np.arange(101) / 100)
    assert (found.share, found.similarity) == (0.5, pytest.approx(0.99))


def test_bad_input_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="as many on both sides"):
        aligned_similarity(_noise(2, 0), _noise(3, 0))
    with pytest.raises(ValueError, match="there are none"):
        pixel_copies(np.zeros(0), np.ones(3))
