"""Formats that Pillow reads by a plug-in alone: HEIC and JPEG XL, where their plug-ins are installed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec

from PIL import Image

JXL_STREAM, JXL_CONTAINER = b"\xff\x0a", b"\0\0\0\x0cJXL "
SIZE_BITS = (9, 13, 18, 30)
RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")
"""Of the container that HEIC shares with AVIF and films, at its ninth byte."""


@dataclass(frozen=True)
class Plugin:
    """What reads a format: `name` is the format's for Pillow, `title` for people."""

    name: str
    title: str
    suffixes: tuple[str, ...]
    package: str
    module: str

    @property
    def installed(self) -> bool:
        return find_spec(self.module) is not None

    @property
    def remedy(self) -> str:
        return f"{self.title}, which is read where the package {self.package} is installed"


HEIF = Plugin("HEIF", "HEIC", ("heic", "heif", "hif"), "pillow-heif", "pillow_heif")
JXL = Plugin("JXL", "JPEG XL", ("jxl",), "pillow-jxl-plugin", "pillow_jxl")
PLUGINS = (HEIF, JXL)
READ = tuple(suffix for plugin in PLUGINS if plugin.installed for suffix in plugin.suffixes)
"""Suffixes of those that are read here."""


def plugin_of(suffix: str) -> Plugin | None:
    return next((plugin for plugin in PLUGINS if suffix in plugin.suffixes), None)


def plugin_for(data: bytes) -> Plugin | None:
    """The plug-in that a picture needs, by its first bytes."""
    if data.startswith((JXL_STREAM, JXL_CONTAINER)):
        return JXL
    return HEIF if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS else None


@cache
def enable(plugin: Plugin) -> str:
    """Has Pillow know the format, once in a process; its name for Pillow. ImportError where the plug-in does not load."""
    module = import_module(plugin.module)
    if plugin is HEIF:
        module.register_heif_opener()
    else:
        module.JpegXLImagePlugin.DECODE_THREADS = 0  # workers share a machine's cores
    return plugin.name


def is_upright(image: Image.Image) -> bool:
    """Whether its decoder has turned it, whatever its metadata still say: JPEG XL's does, but for a packed JPEG."""
    return image.format == JXL.name and not getattr(image, "jpeg", False)


def jxl_size(data: bytes) -> tuple[int, int]:
    """Width and height as a JPEG XL picture states them, which its plug-in does not look at before it decodes all.

    ValueError where there is no such statement. Source: ISO/IEC 18181-1, the size header.
    """
    bits = _Bits(_stream(data)[2:14])
    small = bits.take(1)

    def side() -> int:
        return 8 * (bits.take(5) + 1) if small else bits.take(SIZE_BITS[bits.take(2)]) + 1

    height, ratio = side(), bits.take(3)
    if not ratio:
        return side(), height
    across, down = RATIOS[ratio]
    return height * across // down, height


def _stream(data: bytes) -> bytes:
    """The codestream's beginning: the file itself, or what lies in a box of a container."""
    if data.startswith(JXL_STREAM):
        return data
    at = 0
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind in (b"jxlc", b"jxlp"):
            start = at + (16 if size == 1 else 8) + (4 if kind == b"jxlp" else 0)
            return data[start : start + 16]
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:
            break
        at += size
    raise ValueError("a JPEG XL container without a picture")


class _Bits:
    """The lowest of each byte come first."""

    def __init__(self, data: bytes) -> None:
        self._rest, self._left = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, count: int) -> int:
        """The number in the next bits; ValueError where there are fewer."""
        if count > self._left:
            raise ValueError("a JPEG XL picture that ends before its size")
        value = self._rest & ((1 << count) - 1)
        self._rest, self._left = self._rest >> count, self._left - count
        return value
