"""Odd metadata never costs a whole picture, and colours are those that a viewer shows."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from storage.images.decoding import Decoded, Rejected, decode

CASES = Path(__file__).parents[4] / "shared" / "cases"


def photograph() -> Image.Image:
    """24 x 16, smooth, no side like another."""
    small = np.random.default_rng(0).integers(0, 256, (2, 3, 3), np.uint8)
    return Image.fromarray(small).resize((24, 16), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def shown(data: bytes) -> np.ndarray:
    decoded = decode(data)
    assert isinstance(decoded, Decoded), decoded
    return np.asarray(decoded.image).astype(int)


def png_with(*chunks: tuple[bytes, bytes], image: Image.Image | None = None, crc: int | None = None) -> bytes:
    """A PNG with further chunks behind its header."""
    plain = encoded(image or photograph(), "PNG")
    head = 8 + 25
    more = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)
        for kind, data in chunks
    ]
    return plain[:head] + b"".join(more) + plain[head:]


def exif(*tags: tuple[int, int, int, bytes]) -> bytes:
    """Little-endian EXIF of (tag, type, count, four bytes of value)."""
    entries = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in tags)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)


# --- metadata --------------------------------------------------------------------------------------------------------


def test_every_orientation_is_turned_upright() -> None:
    from PIL import ImageOps

    for value in range(1, 9):
        tags = Image.Exif()
        tags[0x0112] = value
        data = encoded(photograph(), "PNG", exif=tags)
        with Image.open(io.BytesIO(data)) as image:
            assert np.array_equal(shown(data), np.asarray(ImageOps.exif_transpose(image))), value


@pytest.mark.parametrize("resolution", [b"-1\0\0", struct.pack("<i", -1)])
def test_a_rotated_photograph_with_a_nonsensical_resolution(resolution: bytes) -> None:
    """Its orientation counts; the rest of its EXIF could not even be written again."""
    kind = 2 if resolution.startswith(b"-") else 9
    data = encoded(
        photograph(), "JPEG", quality=95, exif=exif((0x0112, 3, 1, b"\6\0\0\0"), (0x011A, kind, 1, resolution))
    )
    upright = np.asarray(photograph().rotate(-90, expand=True)).astype(int)
    assert np.abs(shown(data) - upright).mean() < 4


@pytest.mark.parametrize(
    "data",
    [
        png_with((b"eXIf", b"\0\x08\0\2\1\x12\0\3")),
        png_with((b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(40 << 20)))),
        png_with((b"iCCP", b"profile\0\0" + zlib.compress(bytes(40 << 20)))),
        png_with((b"iCCP", b"profile\0\0not compressed")),
        png_with((b"tEXt", b"Comment\0words"), crc=7),
        png_with((b"pHYs", b"\1")),
    ],
    ids=["exif without head", "text of 40 MB", "profile of 40 MB", "broken profile", "wrong checksum", "short chunk"],
)
def test_what_is_odd_beside_the_pixels_is_left_out(data: bytes) -> None:
    assert np.array_equal(shown(data), np.asarray(photograph()))


def test_large_metadata_is_not_stored() -> None:
    """Other people's Pillow opens no file whose text or profile is larger than a MiB."""
    decoded = decode(png_with((b"iCCP", b"profile\0\0" + zlib.compress(bytes(3 << 19)))))
    assert isinstance(decoded, Decoded) and decoded.suffix == ""


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_nothing_but_its_end_marker(progressive: bool) -> None:
    whole = encoded(photograph().resize((96, 64)), "JPEG", quality=95, progressive=progressive)
    assert np.array_equal(shown(whole[:-2]), shown(whole))
    for lost in (40, 200, len(whole) // 3):
        assert isinstance(decode(whole[:-lost]), Rejected), lost


# --- colours ---------------------------------------------------------------------------------------------------------


def swapped_profile() -> bytes:
    """sRGB's profile with the primaries of red and green exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    table = range(132, 132 + 12 * struct.unpack_from(">I", profile, 128)[0], 12)
    red, green = (next(at for at in table if profile[at : at + 4] == name) for name in (b"rXYZ", b"gXYZ"))
    places = profile[red + 4 : red + 12], profile[green + 4 : green + 12]
    profile[green + 4 : green + 12], profile[red + 4 : red + 12] = places
    return bytes(profile)


def test_colours_that_only_the_profile_tells() -> None:
    red = Image.new("RGB", (8, 8), (220, 30, 30))
    green = np.full((8, 8, 3), (30, 220, 30))
    for kind in ("PNG", "TIFF"):
        data = encoded(red, kind, icc_profile=swapped_profile())
        assert np.abs(shown(data) - green).max() <= 2
        assert decode(data).suffix == ""  # type: ignore[union-attr]
    half = red.convert("RGBA")
    half.putalpha(Image.linear_gradient("L").resize((8, 8)))
    seen = shown(encoded(half, "PNG", icc_profile=swapped_profile()))
    assert (seen[..., 1] > seen[..., 0])[1:].all() and seen[0].min() > 230
    palette = red.quantize(4)
    assert np.abs(shown(encoded(palette, "PNG", icc_profile=swapped_profile())) - green).max() <= 2


def test_srgb_by_any_name_changes_no_byte() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(photograph(), "PNG", icc_profile=profile)
    decoded = decode(data)
    assert isinstance(decoded, Decoded) and decoded.suffix == "png"
    assert np.array_equal(np.asarray(decoded.image), np.asarray(photograph()))


@pytest.mark.parametrize("profile", [b"", b"nonsense", swapped_profile()[:200]])
def test_a_profile_that_cannot_be_read_counts_as_none(profile: bytes) -> None:
    assert np.array_equal(shown(encoded(photograph(), "PNG", icc_profile=profile)), np.asarray(photograph()))


def test_a_profile_of_another_kind_of_picture_counts_as_none() -> None:
    grey = photograph().convert("L")
    assert np.array_equal(shown(encoded(grey, "PNG", icc_profile=swapped_profile()))[..., 0], np.asarray(grey))


# --- as people have them ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (CASES / "metadata").exists(), reason="the collection of cases is not beside the checkout")
def test_the_collected_cases() -> None:
    files = [file for file in sorted((CASES / "metadata").rglob("*.*")) if file.is_file()]
    refused = {file.name: found for file in files if isinstance(found := decode(file.read_bytes()), Rejected)}
    assert len(files) == 46 and refused == {}
    colours = shown((CASES / "gamut" / "shown-green.png").read_bytes()).mean((0, 1))
    assert colours.argmax() == 1
