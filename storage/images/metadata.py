"""What lies beside the pixels in a picture's file: orientation, colour profile, and all that may be broken in it.

Metadata is not the picture: what cannot be made out counts as absent, and a file that does not open because of it is
opened without it.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns such a picture upright; 1, and anything else, is upright."""
INDISTINGUISHABLE = 2
"""A profile that moves no sampled colour by more levels of 255 than this is sRGB by another name."""
MODE_OF = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""A profile's colour space -> the Pillow mode that it describes."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_KEPT = (b"tRNS", b"fcTL", b"fdAT", b"acTL")
"""Chunks that PNG calls ancillary and that still decide what is seen."""


def orientation(image: Image.Image) -> int:
    """The key in `UPRIGHT` of a picture that is not stored upright, else 1."""
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 (EXIF is written by everyone, each in another way)
        return 1
    return value if isinstance(value, int) and value in UPRIGHT else 1


# --- colours ---------------------------------------------------------------------------------------------------------


def to_srgb(image: Image.Image) -> Image.Image | None:
    """An RGB, L or CMYK picture with a profile of its own as RGB in sRGB.

    None where it has no profile, where that does not fit its mode, cannot be read, or is sRGB already.
    """
    profile = image.info.get("icc_profile")
    transform = _transform(profile, image.mode) if isinstance(profile, bytes) and profile else None
    return None if transform is None else ImageCms.applyTransform(image, transform)


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        if MODE_OF.get(source.profile.xcolor_space.strip()) != mode:
            return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        return None if mode == "RGB" and _changes_nothing(transform) else transform
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(16, -1, 3)
    moved = np.asarray(ImageCms.applyTransform(Image.fromarray(cube), transform)).astype(int) - cube
    return bool(np.abs(moved).max() <= INDISTINGUISHABLE)


# --- files without their metadata ------------------------------------------------------------------------------------


def versions(data: bytes) -> Iterator[bytes]:
    """The file as it is, then without metadata but for its colour profile, then without that too."""
    yield data
    for keep_profile in (True, False):
        bare = _bare(data, keep_profile)
        if bare != data:
            yield bare


def _bare(data: bytes, keep_profile: bool) -> bytes:
    if data.startswith(PNG_SIGNATURE):
        return _bare_png(data, keep_profile)
    if data.startswith(b"\xff\xd8"):
        return _bare_jpeg(data, keep_profile)
    return data


def _bare_png(data: bytes, keep_profile: bool) -> bytes:
    kept = (*PNG_KEPT, b"iCCP") if keep_profile else PNG_KEPT
    parts, place = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if kind[:1].isupper() or kind in kept:
            parts.append(data[place:end])
        place = end
    return b"".join(parts)


def _bare_jpeg(data: bytes, keep_profile: bool) -> bytes:
    """Without comments and application segments, but for JFIF's and Adobe's, which say what the channels are."""
    parts, place = [data[:2]], 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        marker, length = struct.unpack_from(">xBH", data, place)
        segment = data[place : place + 2 + length]
        is_metadata = marker == 0xFE or 0xE0 <= marker <= 0xEF
        is_profile = marker == 0xE2 and segment[4:15] == b"ICC_PROFILE"
        if not is_metadata or marker in (0xE0, 0xEE) or (is_profile and keep_profile):
            parts.append(segment)
        place += 2 + length
    return b"".join([*parts, data[place:]])


END_OF_JPEG = b"\xff\xd9"
PADDINGS = (b"", bytes(64), b"\x5a" * 64)


def with_end(data: bytes) -> list[bytes]:
    """A JPEG that lacks its end marker, ended in several ways; nothing for other files.

    Only where all decode to the same pixels does nothing but the marker lack: pixels that lack too are made up from
    what lies before the marker, each time other ones.
    """
    if not data.startswith(b"\xff\xd8") or data.rstrip(b"\0").endswith(END_OF_JPEG):
        return []
    return [data + padding + END_OF_JPEG for padding in PADDINGS]
