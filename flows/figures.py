"""Pictures for people: grids of samples, pairs of source and sample, contact sheets of the bank."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from storage.tables.bank import Bank

ABOUT = {
    "pairs": "Pictures of the data, each above a sample of its snippet",
    "samples": "Samples of snippets that are no picture's",
    "seeds": "A snippet's picture above samples that differ by their noise alone",
    "nearest": "The samples that lie nearest to a training picture, each above it; below 1 it counts as a copy",
    "training": "Samples of a few fixed snippets as the training ended",
    "first": "The first samples, below the pictures of their snippets",
}
"""What a figure shows, by the first word of its title."""

COLUMNS, GAP, BAND, PAPER, INK = 8, 4, 14, (255, 255, 255), (70, 70, 70)
BLANK = (230, 230, 230)
"""Stands for a picture that the bank does not have."""
SMALLEST = 96
"""Small pictures are enlarged to about this side, in whole steps, so that people can see them."""


def grid(images: NDArray[np.uint8]) -> bytes:
    """PNG of uint8 [N, H, W, 3], row by row."""
    return sheet(list(images), [""] * len(images))


def pairs(sources: NDArray[np.uint8], *samples: NDArray[np.uint8], captions: Sequence[str] = ()) -> bytes:
    """PNG in which each source uint8 [N, H, W, 3] stands above its samples [N, H, W, 3], such as those of its snippet,
    and above its caption, where captions are given."""
    joined = np.concatenate([sources, *samples], axis=1)
    return sheet(list(joined), captions or [""] * len(joined))


def sheet(images: Sequence[NDArray[np.uint8]], captions: Sequence[str]) -> bytes:
    """PNG of pictures uint8 [H, W, 3], which may differ in size, each with a caption below where there is one.

    A caption is as wide as its picture at most: where it is longer, all but its last word is shortened.
    """
    if not images:
        raise ValueError("there are no pictures to draw")
    scale = max(1, round(SMALLEST / min(image.shape[1] for image in images)))
    width = scale * max(image.shape[1] for image in images)
    height = scale * max(image.shape[0] for image in images) + (BAND if any(captions) else 0)
    columns = min(COLUMNS, len(images))
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = GAP + place % columns * (width + GAP), GAP + place // columns * (height + GAP)
        large = Image.fromarray(image).resize(
            (scale * image.shape[1], scale * image.shape[0]), Image.Resampling.NEAREST
        )
        canvas.paste(large, (left, top))
        draw.text((left, top + large.height + 1), _fitted(caption, width, draw.textlength), fill=INK)
    return png(canvas)


SPACE = "  "
"""Before the last word: the font's own blank hardly shows."""


def _fitted(caption: str, width: int, length: Callable[[str], float]) -> str:
    head, _, last = " ".join(caption.split()).rpartition(" ")
    text = f"{head}{SPACE}{last}" if head else last
    while length(text) > width and (head or len(last) > 1):
        if head:
            head = head[:-1]
        else:
            last = last[:-1]
        text = f"{head}…{SPACE}{last}" if head else f"{last}…"
    return text


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def thumbnails(bank: Bank, ids: NDArray[np.int64], side: int) -> NDArray[np.uint8]:
    """uint8 [N, side, side, 3]: the pictures of rows; grey where the bank has none."""
    return np.stack([_picture(data, side) for data in bank.rows(ids.tolist(), ["thumbnail"])["thumbnail"].to_pylist()])


def resized(images: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """uint8 [N, side, side, 3] of square pictures [N, S, S, 3]."""
    return np.stack([_square(Image.fromarray(image), side) for image in images])


def _picture(data: bytes | None, side: int) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(data)).convert("RGB") if data else Image.new("RGB", (side, side), BLANK)
    return _square(image, side)


def _square(image: Image.Image, side: int) -> NDArray[np.uint8]:
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
