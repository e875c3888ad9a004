"""Bytes of any picture to an RGB square, or the reason why not.

Everything a folder of pictures may hold arrives here: truncated files, decompression bombs, CMYK, 16 bits a channel,
palettes, transparency, animations, rotated photographs, other colours than sRGB's. What can be shown as RGB is, the
rest is a `Rejected`.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from storage.images import formats, metadata

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
SUFFIX_OF = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
MAX_PIXELS = 89_478_485  # a quarter of a GiB in 24 bits, Pillow's own threshold
WHITE = "#ffffff"
SCAN, MAX_SCANS = b"\xff\xda", 16
"""A pass over the whole picture may be stated in 14 bytes; encoders write about ten. So many of the largest are read."""
THUMBNAIL_SIDE = 64
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit would hold whatever `max_pixels` says
COMMON_METADATA = PngImagePlugin.MAX_TEXT_CHUNK  # files with more do not open in other people's Pillow
PngImagePlugin.MAX_TEXT_CHUNK = 16 << 20  # profiles of printers exceed that

BEGINNINGS = {
    b"8BPS": "a Photoshop file",
    b"%PDF": "a PDF",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"<svg": "SVG",
    b"<?xml": "XML",
    b"<!doctype html": "a web page, not a picture",
    b"<html": "a web page, not a picture",
    b"version https://git-lfs": "a pointer of Git LFS: run 'git lfs pull'",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "compressed by gzip",
}


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


def decode(data: bytes, max_pixels: int = MAX_PIXELS, background: str = WHITE) -> Decoded | Rejected:
    """Decodes the first frame of a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF to upright 8-bit RGB in sRGB.

    HEIC and JPEG XL too, where their plug-ins are installed.
    Transparency becomes `background`, a colour by name or as #RRGGBB. The header's size is checked against `max_pixels` before a pixel is decoded.
    """
    if not data:
        return Rejected("empty file")
    known: tuple[str, ...] = FORMATS
    if plugin := formats.plugin_for(data):
        if not plugin.installed:
            return Rejected(plugin.remedy)
        known = (formats.enable(plugin),)
    first: Rejected | None = None
    for version in metadata.versions(data):
        result = _attempt(version, max_pixels, background, known)
        if isinstance(result, Decoded):
            # A file that opened only without its metadata is not stored with it.
            return result if version is data else Decoded(result.image, "")
        first = first or result
    assert first is not None, "there is at least one version"
    return _without_end_marker(data, max_pixels, background) or first


def _attempt(data: bytes, max_pixels: int, background: str, known: tuple[str, ...] = FORMATS) -> Decoded | Rejected:
    try:
        if known == (formats.JXL.name,):
            width, height = formats.jxl_size(data)
            if width * height > max_pixels:
                return _too_large(width, height, max_pixels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of size we judge ourselves; of doubtful metadata there is no end
            image = Image.open(io.BytesIO(data), formats=known)
            pixels = image.width * image.height
            if pixels > max_pixels:
                return _too_large(image.width, image.height, max_pixels)
            if image.format == "JPEG" and pixels * data.count(SCAN) > MAX_SCANS * max_pixels:
                return Rejected(f"too many passes over {image.width}x{image.height} pixels in a progressive JPEG")
            return _upright_rgb(image, background)
    except Image.UnidentifiedImageError:
        if known != FORMATS:
            return Rejected("broken picture: not even its header can be read")
        return Rejected(f"not a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF picture{_what_it_is(data)}")
    except Exception as error:  # noqa: BLE001 (codecs fail on hostile bytes in every way there is)
        message = f"broken picture: {type(error).__name__}: {error}"[:200]
        return Rejected(message.encode("utf-8", "backslashreplace").decode())


def _too_large(width: int, height: int, max_pixels: int) -> Rejected:
    return Rejected(f"too large: {width}x{height} is more than {max_pixels} pixels")


def _what_it_is(data: bytes) -> str:
    start = data[:64].lstrip().lower()
    named = [name for beginning, name in BEGINNINGS.items() if start.startswith(beginning.lower())]
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        named.append("AVIF")
    return f" ({named[0]})" if named else ""


def _without_end_marker(data: bytes, max_pixels: int, background: str) -> Decoded | None:
    """A JPEG of which nothing but the last two bytes is missing."""
    attempts = [_attempt(ended, max_pixels, background) for ended in metadata.with_end(data)]
    decoded = [attempt for attempt in attempts if isinstance(attempt, Decoded)]
    if not decoded or len(decoded) < len(attempts):
        return None
    pixels = [each.image.tobytes() for each in decoded]
    return Decoded(decoded[0].image, "") if pixels.count(pixels[0]) == len(pixels) else None


def _upright_rgb(image: Image.Image, background: str) -> Decoded | Rejected:
    animated = getattr(image, "is_animated", False)  # to count all frames takes the square of their number in a TIFF
    if animated:
        image.seek(0)
    image.load()
    if image.mode in ("I", "F"):
        return Rejected("32 bits a channel, of which nothing says what is white: save it with 8 or 16")
    turn = None if formats.is_upright(image) else metadata.UPRIGHT.get(metadata.orientation(image))
    rgb = to_rgb(image, background)
    modest = all(len(value) <= COMMON_METADATA for value in image.info.values() if isinstance(value, str | bytes))
    plain = rgb is image and not animated and turn is None and modest
    suffix = SUFFIX_OF.get(image.format or "", "") if plain else ""
    return Decoded(rgb if turn is None else rgb.transpose(turn), suffix)


def to_rgb(image: Image.Image, background: str = WHITE) -> Image.Image:
    """Any Pillow mode to 8-bit RGB in sRGB; 16-bit values keep their high byte, transparent pixels become `background`.

    The very same image where it is that already.
    """
    if image.mode.startswith("I"):
        high_byte = (np.asarray(image).clip(0, 65535).astype(np.uint16) >> 8).astype(np.uint8)
        return to_rgb(_with_profile_of(image, Image.fromarray(high_byte)), background)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return _on(background, image)
    if image.mode not in ("RGB", "L", "CMYK"):
        return to_rgb(image.convert("RGB"), background)
    converted = metadata.to_srgb(image)
    if converted is not None:
        return converted
    return image if image.mode == "RGB" else image.convert("RGB")


def _on(background: str, image: Image.Image) -> Image.Image:
    straight = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)).convert("RGBA")
    grey = image.mode in ("L", "LA", "La", "1")
    colours = metadata.to_srgb(_with_profile_of(image, straight.convert("L" if grey else "RGB")))
    if colours is not None:
        colours.putalpha(straight.getchannel("A"))
        straight = colours
    return Image.alpha_composite(Image.new("RGBA", image.size, background), straight).convert("RGB")


def _with_profile_of(image: Image.Image, other: Image.Image) -> Image.Image:
    other.info = {name: value for name, value in image.info.items() if name == "icc_profile"}
    return other


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

    The least effort: at 256 px 1.6 ms and 120 KB, where effort 1 took 8.7 ms for 110 KB and was most of an ingest's time.
    """
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True, quality=0, method=0)
    return buffer.getvalue()


def thumbnail(image: NDArray[np.uint8]) -> bytes:
    """A WebP of uint8 [H,W,3], its longer side at most 64 pixels, for the bank's `thumbnail` column."""
    small = Image.fromarray(image)
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=85)
    return buffer.getvalue()
