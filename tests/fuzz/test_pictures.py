"""Pictures, damaged: decoded, or listed with a reason."""

from __future__ import annotations

import io

import numpy as np
from hypothesis import given
from PIL import Image, ImageCms

from storage.images.decoding import Decoded, Rejected, centre_crop, decode
from tests.fuzz.mutation import given_many, is_one_sentence, mutated, within_memory

MAX_PIXELS = 1_000_000
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8))
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()


def saved(image: Image.Image, kind: str, **choices: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **choices)
    return buffer.getvalue()


def with_orientation() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


FRAMES = [NOISE.convert("P"), NOISE.rotate(90, expand=False).convert("P")]
WHOLE = [
    saved(NOISE, "JPEG", exif=with_orientation(), icc_profile=PROFILE),
    saved(NOISE, "JPEG", progressive=True, comment=b"of no use"),
    saved(NOISE.convert("CMYK"), "JPEG"),
    saved(NOISE, "PNG", icc_profile=PROFILE, exif=with_orientation()),
    saved(NOISE.convert("P"), "PNG", transparency=3),
    saved(Image.fromarray(np.arange(768, dtype=np.uint16).reshape(24, 32)), "PNG"),
    saved(NOISE.convert("LA"), "PNG"),
    saved(NOISE, "PNG", save_all=True, append_images=[NOISE.rotate(90)]),
    saved(NOISE, "WEBP", lossless=True, exif=with_orientation()),
    saved(NOISE, "WEBP", save_all=True, append_images=[NOISE.rotate(90)]),
    saved(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:], transparency=1),
    saved(NOISE, "BMP"),
    saved(NOISE, "TIFF", compression="tiff_lzw"),
    saved(NOISE, "TIFF", save_all=True, append_images=[NOISE]),
    saved(NOISE, "AVIF"),
]


def decoded(data: bytes) -> Decoded | None:
    with within_memory():
        found = decode(data, MAX_PIXELS)
    if isinstance(found, Rejected):
        assert 0 < len(found.reason) <= 260
        found.reason.encode()  # the index is a file
        return None
    assert found.image.mode == "RGB" and 0 < found.width * found.height <= MAX_PIXELS
    return found


def test_the_whole_ones_are_decoded() -> None:
    assert all(decoded(data) for data in WHOLE)


@given_many(2.0)
@given(mutated(WHOLE))
def test_damaged_pictures(data: bytes) -> None:
    found = decoded(data)
    if found is None:
        return
    if found.suffix:  # what is kept as it is can be read back by anybody
        with Image.open(io.BytesIO(data)) as again:
            assert np.array_equal(np.asarray(again.convert("RGB")), np.asarray(found.image))
    try:
        assert centre_crop(found.image, 16, MAX_PIXELS).size == (16, 16)
    except ValueError as error:
        assert is_one_sentence(error)
