"""Sheets are as wide as their pictures need, and captions as their pictures are."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from flows.figures import BAND, GAP, PAPER, _fitted, grid, pairs, sheet


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def black(count: int, side: int = 96) -> np.ndarray:
    return np.zeros((count, side, side, 3), np.uint8)


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (8, 8, 1), (9, 8, 2)])
def test_a_sheet_is_as_wide_as_its_pictures_need(count: int, columns: int, rows: int) -> None:
    assert opened(grid(black(count))).size == (columns * 100 + GAP, rows * 100 + GAP)
    assert opened(pairs(black(count), black(count))).size == (columns * 100 + GAP, rows * 196 + GAP)


def test_captions_stay_below_their_pictures() -> None:
    key = "1f9d1-1f3fb-200d-2764-fe0f-200d-1f9d1-1f3fc 0.03"
    image = opened(sheet(list(black(2)), [key, ""]))
    assert image.height == 96 + BAND + 2 * GAP
    pixels = np.asarray(image)
    below = pixels[GAP + 96 :]
    assert (below[:, GAP : GAP + 96] != PAPER).any()
    assert (below[:, GAP + 96 :] == PAPER).all()


def test_a_long_caption_keeps_its_last_word() -> None:
    length = ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength
    assert _fitted("25ab-fe0f 0.03", 96, length) == "25ab-fe0f  0.03"
    fitted = _fitted("1f9d1-1f3fb-200d-2764\n-fe0f 0.03", 96, length)
    assert fitted.startswith("1f9d1-") and fitted.endswith("…  0.03") and length(fitted) <= 96
    assert _fitted("x" * 200, 20, length).startswith("x") and length(_fitted("x" * 200, 20, length)) <= 20
    assert _fitted("x" * 200, 1, length) == "x…", "there is no narrower one"


def test_no_pictures_make_no_sheet() -> None:
    with pytest.raises(ValueError, match="no pictures"):
        grid(black(0))
