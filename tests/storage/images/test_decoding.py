from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from storage.images.decoding import Decoded, Rejected, centre_crop, decode, lossless_webp, thumbnail


def picture(width: int = 24, height: int = 16, seed: int = 0) -> Image.Image:
    """Smooth, so that lossy codecs stay close."""
    small = np.random.default_rng(seed).integers(0, 256, (2, 3, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes, **options: int) -> np.ndarray:
    decoded = decode(data, **options)
    assert isinstance(decoded, Decoded), decoded
    assert decoded.image.mode == "RGB"
    return np.asarray(decoded.image)


def reason(data: bytes, **options: int) -> str:
    rejected = decode(data, **options)
    assert isinstance(rejected, Rejected)
    return rejected.reason


@pytest.mark.parametrize(("kind", "suffix"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_plain_pictures_may_keep_their_bytes(kind: str, suffix: str) -> None:
    decoded = decode(encoded(picture(), kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert isinstance(decoded, Decoded)
    assert (decoded.suffix, decoded.width, decoded.height) == (suffix, 24, 16)
    assert np.abs(np.asarray(decoded.image).astype(int) - np.asarray(picture())).mean() < 8


def test_what_is_no_whole_picture_is_rejected_with_a_reason() -> None:
    jpeg, png, webp = (encoded(picture(200, 200), kind) for kind in ("JPEG", "PNG", "WEBP"))
    assert reason(b"") == "empty file"
    assert reason(b"once upon a time") == "not a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF picture"
    for data in (jpeg, png, webp):
        assert "broken picture" in reason(data[: len(data) // 2])
        assert reason(data[:12])
    assert "broken picture" in reason(png[:60] + bytes(20) + png[80:])


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x18ftypavif" + bytes(20), "AVIF"),
        (b"8BPS\0\1", "a Photoshop file"),
        (b"\n<!DOCTYPE html><p>404", "a web page, not a picture"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS: run 'git lfs pull'"),
        (encoded(picture(), "JPEG2000"), "JPEG 2000"),
    ],
)
def test_a_format_that_is_not_read_is_named(data: bytes, name: str) -> None:
    assert reason(data).endswith(f"({name})")


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "AVIF"])
def test_other_formats_are_read_and_stored_anew(kind: str) -> None:
    decoded = decode(encoded(picture(), kind))
    assert isinstance(decoded, Decoded) and decoded.suffix == ""
    assert np.abs(np.asarray(decoded.image).astype(int) - np.asarray(picture())).mean() < 8


def test_a_bomb_is_not_decoded() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    assert reason(bomb).startswith("too large")
    assert reason(encoded(picture(30, 20), "PNG"), max_pixels=599) == "too large: 30x20 is more than 599 pixels"
    assert pixels(encoded(picture(30, 20), "PNG"), max_pixels=600).shape == (20, 30, 3)


@pytest.mark.timeout(30)
def test_passes_without_end_over_a_picture() -> None:
    """Each is stated in 14 bytes, and goes over four million pixels."""
    buffer = io.BytesIO()
    Image.new("L", (2000, 2000)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert isinstance(decode(data, 4_000_000), Decoded)
    many = decode(data[:-2] + scan * 50_000 + data[-2:], 4_000_000)
    assert isinstance(many, Rejected) and many.reason.startswith("too many passes over 2000x2000")


def test_what_is_allowed_is_decoded_however_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow refuses what is twice its own limit, which is a global of its module."""
    big = encoded(Image.new("L", (14_000, 13_000)), "PNG")
    decoded = decode(big, max_pixels=200_000_000)
    assert isinstance(decoded, Decoded) and decoded.width * decoded.height > 178_956_970
    assert reason(big).startswith("too large: 14000x13000")


def test_a_gif_whose_frame_is_wider_than_it_says_is_not_decoded() -> None:
    data = encoded(picture(8, 8).convert("P"), "GIF")
    frame = data.index(b"\x2c\x00\x00\x00\x00")  # where the frame's place and size begin
    wide = data[: frame + 5] + struct.pack("<HH", 60_000, 60_000) + data[frame + 9 :]
    assert reason(wide).startswith("too large: 60000x60000")


def test_transparency_becomes_white() -> None:
    image = picture().convert("RGBA")
    image.putalpha(Image.fromarray(np.repeat(np.array([[0], [255]], np.uint8), [8, 8], 0).repeat(24, 1)))
    for kind in ("PNG", "WEBP"):
        data = encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
        shown = pixels(data)
        assert (shown[:8] == 255).all()
        assert np.array_equal(shown[8:], np.asarray(picture())[8:])
        assert decode(data).suffix == ""  # type: ignore[union-attr]
    grey = Image.fromarray(np.array([[[0, 0], [40, 255]]], np.uint8), "LA")
    assert pixels(encoded(grey, "PNG")).tolist() == [[[255] * 3, [40] * 3]]


@pytest.mark.parametrize("kind", ["LA", "RGBA", "P"])
def test_transparency_becomes_the_colour_that_is_asked_for(kind: str) -> None:
    half = Image.fromarray(np.array([[[0, 0], [40, 255]]], np.uint8), "LA").convert("RGBA")
    data = encoded(half.convert(kind), "PNG")
    decoded = decode(data, background="#102030")
    assert isinstance(decoded, Decoded)
    assert np.asarray(decoded.image).tolist() == [[[0x10, 0x20, 0x30], [40] * 3]]


def test_palettes_with_and_without_transparency() -> None:
    palette = picture().quantize(16)
    assert np.array_equal(pixels(encoded(palette, "PNG")), np.asarray(palette.convert("RGB")))
    hidden = int(np.asarray(palette)[0, 0])
    shown = pixels(encoded(palette, "PNG", transparency=hidden))
    assert (shown[np.asarray(palette) == hidden] == 255).all()
    assert np.array_equal(
        shown[np.asarray(palette) != hidden], np.asarray(palette.convert("RGB"))[np.asarray(palette) != hidden]
    )


def test_sixteen_bits_keep_the_high_byte() -> None:
    values = np.array([[0, 255, 256, 4660, 65535]], np.uint16)
    data = encoded(Image.fromarray(values), "PNG")
    assert pixels(data)[0, :, 0].tolist() == [0, 0, 1, 18, 255]


def test_values_without_a_known_white_are_refused() -> None:
    values = Image.fromarray(np.array([[0, 0.5, 1]], np.float32))
    assert reason(encoded(values, "TIFF")).startswith("32 bits a channel")


def test_cmyk_grey_and_bilevel() -> None:
    cmyk = pixels(encoded(picture().convert("CMYK"), "JPEG", quality=95))
    assert np.abs(cmyk.astype(int) - np.asarray(picture())).mean() < 8
    assert np.array_equal(pixels(encoded(picture().convert("L"), "PNG"))[..., 1], np.asarray(picture().convert("L")))
    assert set(np.unique(pixels(encoded(picture().convert("1"), "PNG")))) <= {0, 255}


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
    assert (pixels(data) == (255, 0, 0)).all()
    assert decode(data).suffix == ""  # type: ignore[union-attr]


def test_rotated_photographs_are_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode(encoded(picture(24, 16), "JPEG", exif=exif, quality=95))
    assert isinstance(decoded, Decoded)
    assert (decoded.width, decoded.height, decoded.suffix) == (16, 24, "")
    upright = np.asarray(picture(24, 16).rotate(-90, expand=True)).astype(int)
    assert np.abs(np.asarray(decoded.image) - upright).mean() < 4


def test_broken_exif_does_not_cost_the_picture() -> None:
    data = encoded(picture(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\xff\xff")
    assert isinstance(decode(data), Decoded)


def adm(image: Image.Image, size: int) -> np.ndarray:
    """The rule once more, on arrays: box-halve while twice as large, bicubic to the shorter side, centre."""
    while min(image.size) >= 2 * size:
        image = image.reduce(2) if all(side % 2 == 0 for side in image.size) else image.resize(
            (image.size[0] // 2, image.size[1] // 2), Image.Resampling.BOX)  # fmt: skip
    factor = size / min(image.size)
    image = image.resize((round(image.size[0] * factor), round(image.size[1] * factor)), Image.Resampling.BICUBIC)
    values = np.array(image)
    top, left = (values.shape[0] - size) // 2, (values.shape[1] - size) // 2
    return values[top : top + size, left : left + size]


@pytest.mark.parametrize("shape", [(64, 64), (100, 37), (33, 32), (130, 257), (20, 50), (31, 31), (500, 65)])
def test_centre_crop_is_adms(shape: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*shape[::-1], 3), np.uint8))
    cropped = centre_crop(image, 32)
    assert cropped.size == (32, 32)
    assert np.abs(np.asarray(cropped).astype(int) - adm(image, 32)).max() <= 1  # reduce rounds its own way


def test_a_picture_of_the_right_size_is_untouched() -> None:
    image = picture(32, 32)
    assert centre_crop(image, 32) is image


def test_a_hair_is_not_blown_up_to_a_bomb() -> None:
    with pytest.raises(ValueError, match="too narrow"):
        centre_crop(Image.new("RGB", (1, 5000)), 256)


def test_lossless_means_lossless_and_repeatable() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    data = lossless_webp(noise)
    assert np.array_equal(pixels(data), np.asarray(noise))
    assert data == lossless_webp(noise)


def test_thumbnails_are_small_webp() -> None:
    data = thumbnail(np.asarray(picture(300, 100)))
    with Image.open(io.BytesIO(data)) as small:
        assert (small.format, small.size) == ("WEBP", (64, 21))
    with Image.open(io.BytesIO(thumbnail(np.asarray(picture(10, 10))))) as small:
        assert small.size == (10, 10)
