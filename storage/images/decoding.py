"""Bytes of any picture to an RGB square, or the reason why not.

Everything a folder of pictures may hold arrives here: truncated files, decompression bombs, CMYK, 16 bits a channel,
palettes, transparency, animations, rotated photographs. What can be shown as RGB is, the rest is a `Rejected`.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
SUFFIX_OF = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
MAX_PIXELS = 89_478_485  # a quarter of a GiB in 24 bits, Pillow's own threshold
EXIF_ORIENTATION = 0x0112
THUMBNAIL_SIDE = 64
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit would hold whatever `max_pixels` says


@dataclass(frozen=True)
class Rejected:
    """A picture that cannot be used, and why, in words for the index."""

    reason: str


@dataclass(frozen=True)
class Decoded:
    """A picture as upright RGB. `suffix` names its encoding when those bytes decode to exactly this image, else ''."""

    image: Image.Image
    suffix: str

    @property
    def width(self) -> int:
        return self.image.width

    @property
    def height(self) -> int:
        return self.image.height


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Decoded | Rejected:
    """Decodes the first frame of a JPEG, PNG, WebP or GIF to upright 8-bit RGB, transparency on white.

    The header's size is checked against `max_pixels` before a pixel is decoded.
    """
    if not data:
        return Rejected("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of size we judge ourselves; of doubtful metadata there is no end
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > max_pixels:
                return Rejected(f"too large: {image.width}x{image.height} is more than {max_pixels} pixels")
            return _upright_rgb(image)
    except Image.UnidentifiedImageError:
        return Rejected("not a JPEG, PNG, WebP or GIF picture")
    except Exception as error:  # noqa: BLE001 (codecs fail on hostile bytes in every way there is)
        return Rejected(f"broken picture: {type(error).__name__}: {error}"[:200])


def _upright_rgb(image: Image.Image) -> Decoded:
    animated = getattr(image, "n_frames", 1) > 1
    if animated:
        image.seek(0)
    image.load()
    rotated = image.getexif().get(EXIF_ORIENTATION, 1) not in (0, 1)
    plain = image.mode == "RGB" and "transparency" not in image.info and not animated and not rotated
    suffix = SUFFIX_OF.get(image.format or "", "") if plain else ""
    return Decoded(to_rgb(ImageOps.exif_transpose(image) if rotated else image), suffix)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to 8-bit RGB; 16-bit values keep their high byte, transparent pixels become white."""
    if image.mode.startswith("I"):
        high_byte = (np.asarray(image).clip(0, 65535).astype(np.uint16) >> 8).astype(np.uint8)
        return Image.fromarray(high_byte).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        canvas = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(canvas, _straight_alpha(image)).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _straight_alpha(image: Image.Image) -> Image.Image:
    straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)
    return image.convert(straight).convert("RGBA")


def centre_crop(image: Image.Image, size: int, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The central square of `image`, `size` pixels wide, resampled as ADM's reference pictures are.

    Halve with a box filter while the shorter side is at least twice `size`, bring the shorter side to `size` by
    bicubic interpolation (also upwards), cut the centre. A picture that is `size` by `size` is returned untouched.
    Source: the preprocessing of Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis" (2021).
    ValueError when the picture is so narrow that enlarging it would exceed `max_pixels`.
    """
    if image.size == (size, size):
        return image
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > max_pixels:
        raise ValueError(f"too narrow: {image.width}x{image.height} would become {width}x{height}")
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def lossless_webp(image: Image.Image) -> bytes:
    """The picture as lossless WebP; the same pixels give the same bytes.

    Effort 1 costs 25 ms at 256 px; 4, the codec's default, costs 100 ms and saves 5 %.
    """
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True, quality=25, method=1)
    return buffer.getvalue()


def thumbnail(image: NDArray[np.uint8]) -> bytes:
    """A WebP of uint8 [H,W,3], its longer side at most 64 pixels, for the bank's `thumbnail` column."""
    small = Image.fromarray(image)
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=85)
    return buffer.getvalue()
